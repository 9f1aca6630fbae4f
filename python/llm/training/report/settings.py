"""Settings as flat tables, and what differs between runs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from llm.settings.run import RunConfig

_OF_NEW_TOKENIZER = ("kind", "vocab_size", "pattern", "sample_bytes")


def flat_settings(config: RunConfig) -> dict[str, str]:
    """Returns every setting by its dotted name, as it is written on the command line."""
    return dict(_flat(msgspec.to_builtins(config), ""))


def differing(configs: Sequence[RunConfig]) -> dict[str, tuple[str, ...]]:
    """Returns the settings that are not equal in all of `configs`, each with its values; `-` where it has no effect."""
    tables = [flat_settings(config) | dict.fromkeys(_unused(config), "-") for config in configs]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = {name: tuple(table.get(name, "null") for table in tables) for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _unused(config: RunConfig) -> list[str]:
    """Returns the settings of a newly trained tokenizer if the run has trained none."""
    is_trained = config.tokenizer.path is None and config.training.init_from is None and config.data.kind == "text"
    return [] if is_trained else [f"tokenizer.{name}" for name in _OF_NEW_TOKENIZER]


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)))
    return found
