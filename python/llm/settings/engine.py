"""The limits of an engine, and the source of its draft tokens."""

from typing import Annotated, Literal, TypeAlias

import msgspec

from llm.errors import ConfigError

Backend: TypeAlias = Literal["auto", "kernels", "torch"]


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


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of an engine."""

    max_model_len: Annotated[int, msgspec.Meta(ge=1, description="Longest context; null: the model's.")] | None = None
    block_size: Annotated[int, msgspec.Meta(ge=1, description="Tokens a cache block.")] = 16
    max_batch_tokens: (
        Annotated[int, msgspec.Meta(ge=1, description="Token budget of a step; null: 2048, on a CPU 256.")] | None
    ) = None
    max_prefill_chunk: (
        Annotated[int, msgspec.Meta(ge=1, description="Tokens of one prompt a step; null: the budget's rest.")] | None
    ) = None
    max_running_requests: Annotated[int, msgspec.Meta(ge=1, description="Requests decoded together.")] = 64
    max_waiting_requests: Annotated[int, msgspec.Meta(ge=1, description="Queue length; more are refused.")] = 1024
    max_waiting_tokens: (
        Annotated[int, msgspec.Meta(ge=1, description="Tokens queued; more are refused; null: any number.")] | None
    ) = None
    kv_cache_memory_bytes: (
        Annotated[int, msgspec.Meta(ge=1, description="Cache size; null: a share of free memory.")] | None
    ) = None
    backend: Annotated[Backend, msgspec.Meta(description="What runs the model; auto: CPU kernels if they can.")] = (
        "auto"
    )
    num_threads: (
        Annotated[int, msgspec.Meta(ge=1, le=1024, description="Threads of the CPU kernels; null: one a core.")] | None
    ) = None
    enable_prefix_caching: Annotated[
        bool, msgspec.Meta(description="Keep computed blocks for prompts that begin the same.")
    ] = True
    enable_cuda_graphs: Annotated[
        bool, msgspec.Meta(description="On CUDA decode by captured passes; the start takes longer.")
    ] = True
    speculative: Annotated[
        Speculation | None, msgspec.Meta(description="Where guesses of tokens come from; null: none are made.")
    ] = None
