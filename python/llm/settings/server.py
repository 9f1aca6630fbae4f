"""The settings of a server."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from llm.settings.engine import Speculation


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a server listens, who may ask, and how much it takes."""

    host: Annotated[str, Meta(min_length=1, description="Address to listen on; 0.0.0.0 for every interface.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 picks a free one.")] = 8000
    api_keys: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...], Meta(description="Keys that are let in; none: everyone is.")
    ] = ()
    served_model_name: (
        Annotated[str, Meta(min_length=1, description="Name clients ask for; null: the directory's.")] | None
    ) = None
    dtype: Annotated[str, Meta(description="Number type of the weights: auto, float32, bfloat16 or float16.")] = "auto"
    max_running_requests: (
        Annotated[int, Meta(ge=1, description="Requests generated at once; null: the engine's.")] | None
    ) = None
    max_waiting_requests: (
        Annotated[int, Meta(ge=1, description="Requests that may queue, more get a 429; null: the engine's.")] | None
    ) = None
    max_waiting_tokens: (
        Annotated[int, Meta(ge=1, description="Tokens that may queue, more get a 429; null: any number.")] | None
    ) = None
    enable_prefix_caching: Annotated[
        bool, Meta(description="Keep what is computed for prompts that begin the same.")
    ] = True
    max_model_len: Annotated[int, Meta(ge=1, description="Longest context; null: the model's.")] | None = None
    max_batch_tokens: (
        Annotated[int, Meta(ge=1, description="Tokens computed in a step; null: the engine's.")] | None
    ) = None
    kv_cache_memory_bytes: (
        Annotated[int, Meta(ge=1, description="Memory of the key-value cache; null: a share of what is free.")] | None
    ) = None
    backend: Annotated[
        Literal["auto", "kernels", "torch"], Meta(description="What runs the model; auto: CPU kernels if they can.")
    ] = "auto"
    num_threads: (
        Annotated[int, Meta(ge=1, le=1024, description="Threads of the CPU kernels; null: one a core.")] | None
    ) = None
    enable_cuda_graphs: Annotated[
        bool, Meta(description="On CUDA decode by captured passes; the start takes longer.")
    ] = True
    speculative: Annotated[
        Speculation | None, Meta(description="Where guesses of tokens come from; null: none are made.")
    ] = None
    max_body_bytes: Annotated[int, Meta(ge=1, description="Largest request body taken.")] = 10 * 2**20
    allowed_origins: Annotated[
        tuple[str, ...], Meta(description="Web pages that may call from a browser (CORS); `*` for all.")
    ] = ()
    grace_s: Annotated[float, Meta(ge=0.0, description="Seconds that running requests get when the server stops.")] = (
        10.0
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"], Meta(description="How much is logged.")
    ] = "info"

    def __repr__(self) -> str:
        """Leaves the keys out: a config ends up in tracebacks and logs."""
        shown = ((name, getattr(self, name)) for name in self.__struct_fields__ if name != "api_keys")
        fields = ", ".join(f"{name}={value!r}" for name, value in shown)
        return f"ServerConfig({fields}, api_keys=<{len(self.api_keys)} hidden>)"
