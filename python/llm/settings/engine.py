"""The limits of an engine, and the source of its draft tokens."""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from llm.errors import ConfigError

Backend: TypeAlias = Literal["auto", "kernels", "torch"]
CacheDtype: TypeAlias = Literal["auto", "int8", "fp8"]


class NgramSpeculation(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="method", tag="ngram"
):
    """Guesses the next tokens from what followed the last few the last time; no answer changes.

    Raises:
        ConfigError: `max_ngram` below `min_ngram`.
    """

    num_draft_tokens: Annotated[int, Meta(ge=1, le=64, description="Largest number of draft tokens.")] = 4
    max_ngram: Annotated[int, Meta(ge=1, description="Longest suffix to look for, in tokens.")] = 4
    min_ngram: Annotated[int, Meta(ge=1, description="Shortest suffix that yields drafts, in tokens.")] = 2

    def __post_init__(self) -> None:
        """Checks the rule across fields."""
        if self.max_ngram < self.min_ngram:
            raise ConfigError(f"`max_ngram` must be at least `min_ngram` {self.min_ngram}, got {self.max_ngram}")


class DraftSpeculation(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="method", tag="draft"
):
    """Has a smaller model of the same vocabulary guess the next tokens; no answer changes."""

    path: Annotated[str, Meta(min_length=1, description="Checkpoint of the smaller model.")]
    num_draft_tokens: Annotated[int, Meta(ge=1, le=64, description="Largest number of draft tokens.")] = 4
    kv_cache_memory_bytes: (
        Annotated[int, Meta(ge=1, description="Size of the draft model's cache; null: a share of free memory.")] | None
    ) = None


Speculation: TypeAlias = NgramSpeculation | DraftSpeculation


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of an engine."""

    max_model_len: Annotated[int, Meta(ge=1, description="Longest context in tokens; null: the model's.")] | None = None
    block_size: Annotated[int, Meta(ge=1, description="Number of tokens in a cache block.")] = 16
    max_batch_tokens: (
        Annotated[int, Meta(ge=1, description="Largest number of tokens in a step; null: 2048, on a CPU 256.")] | None
    ) = None
    max_prefill_chunk: (
        Annotated[int, Meta(ge=1, description="Largest number of tokens of one prompt in a step; null: no limit.")]
        | None
    ) = None
    max_running_requests: Annotated[int, Meta(ge=1, description="Requests decoded together, at most.")] = 64
    max_waiting_requests: Annotated[
        int, Meta(ge=1, description="Largest number of waiting requests; more are refused.")
    ] = 1024
    max_waiting_tokens: (
        Annotated[int, Meta(ge=1, description="Largest number of waiting tokens; more are refused; null: no limit.")]
        | None
    ) = None
    kv_cache_memory_bytes: (
        Annotated[int, Meta(ge=1, description="Size of the key-value cache; null: a share of free memory.")] | None
    ) = None
    kv_cache_dtype: Annotated[CacheDtype, Meta(description="Format of cached keys and values; fp8: on CUDA.")] = "auto"
    backend: Annotated[
        Backend, Meta(description="Implementation that runs the model; auto: CPU kernels where they support it.")
    ] = "auto"
    tensor_parallel_size: Annotated[int, Meta(ge=1, description="Processes per model.")] = 1
    num_threads: (
        Annotated[int, Meta(ge=1, le=1024, description="Number of threads of the CPU kernels; null: one per core.")]
        | None
    ) = None
    packed_weights: Annotated[
        Literal["auto"] | bool,
        Meta(description="Keep quantised weights packed; auto: where CPU kernels can multiply."),
    ] = "auto"
    enable_prefix_caching: Annotated[
        bool, Meta(description="Reuse computed cache blocks for prompts with the same beginning.")
    ] = True
    enable_cuda_graphs: Annotated[
        bool, Meta(description="Decode with captured CUDA graphs: a slower start, faster tokens.")
    ] = True
    speculative: Annotated[Speculation | None, Meta(description="Source of draft tokens; null: none.")] = None
