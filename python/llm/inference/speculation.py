"""Where guesses of the next tokens come from."""

from typing import Annotated, TypeAlias

import msgspec

from llm.errors import ConfigError


class NgramSpeculation(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="method", tag="ngram"
):
    """Guesses the next tokens from what followed the last few the last time; no answer changes.

    Raises:
        ConfigError: `max_ngram` below `min_ngram`.
    """

    num_draft_tokens: Annotated[int, msgspec.Meta(ge=1, le=64, description="Tokens guessed at most.")] = 4
    max_ngram: Annotated[int, msgspec.Meta(ge=1, description="Most last tokens that are looked for.")] = 4
    min_ngram: Annotated[int, msgspec.Meta(ge=1, description="Fewest; below it nothing is guessed.")] = 2

    def __post_init__(self) -> None:
        """Checks the rule across fields."""
        if self.max_ngram < self.min_ngram:
            raise ConfigError(f"`max_ngram` must be at least `min_ngram` {self.min_ngram}, got {self.max_ngram}")


class DraftSpeculation(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="method", tag="draft"
):
    """Has a smaller model of the same vocabulary guess the next tokens; no answer changes."""

    path: Annotated[str, msgspec.Meta(min_length=1, description="Checkpoint of the smaller model.")]
    num_draft_tokens: Annotated[int, msgspec.Meta(ge=1, le=64, description="Tokens guessed at most.")] = 4
    kv_cache_memory_bytes: (
        Annotated[int, msgspec.Meta(ge=1, description="Size of its cache; null: a share of free memory.")] | None
    ) = None


Speculation: TypeAlias = NgramSpeculation | DraftSpeculation
