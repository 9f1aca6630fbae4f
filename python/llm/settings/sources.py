"""Settings of the sources that a run mixes."""

import re
from pathlib import Path
from typing import Annotated

import msgspec

# What a name isn't made of: wildcards, and separators where a path begins.
_PATTERN = re.compile(r"\[[^]]*\]|[*?/\\]")


class SourceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One source of a mixture."""

    paths: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, description="Files, directories or globs.")]
    name: Annotated[str, msgspec.Meta(description="Name in the log; empty: the first path's or its folder's.")] = ""
    weight: Annotated[float, msgspec.Meta(ge=0, description="Share of the samples, relative to other sources.")] = 1.0
    field: Annotated[str, msgspec.Meta(description="Field or column with the text; null: `data.field`.")] | None = None

    def named(self) -> "SourceConfig":
        """Returns the source with its name, or else that of its first path."""
        return msgspec.structs.replace(self, name=self.name or _default_name(self.paths[0]))


def _default_name(path: str) -> str:
    """Returns the last part of a path that is more than a pattern, up to its first dot: `web` of `web/*.jsonl.gz`."""
    parts = (part.partition(".")[0] for part in reversed(Path(path).parts))
    return next((part for part in parts if _PATTERN.sub("", part)), Path(path).name)
