"""Settings as flat tables, and what differs between runs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from llm.settings.run import RunConfig


def flat_settings(config: RunConfig) -> dict[str, str]:
    """Returns every setting by its dotted name, as it is written on the command line."""
    return dict(_flat(msgspec.to_builtins(config), ""))


def differing(configs: Sequence[RunConfig]) -> dict[str, tuple[str, ...]]:
    """Returns the settings that are not equal in all of `configs`, each with its values."""
    tables = [flat_settings(config) for config in configs]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = {name: tuple(table.get(name, "null") for table in tables) for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)))
    return found
