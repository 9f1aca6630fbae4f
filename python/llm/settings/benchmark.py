"""The settings of `llm bench serve`."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from llm.errors import ConfigError


class ServingBenchmark(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server to measure, the load to put on it, and the limits that a good answer keeps."""

    url: Annotated[str, Meta(pattern="^https?://[^/]+", description="Address of the server.")] = "http://127.0.0.1:8000"
    api_key: Annotated[str, Meta(min_length=1, description="API key to send; null: none.")] | None = None
    model: Annotated[str, Meta(min_length=1, description="Model to ask; null: the server's first.")] | None = None
    endpoint: Annotated[Literal["chat", "completions"], Meta(description="Kind of requests.")] = "chat"
    clients: Annotated[
        int, Meta(ge=1, description="Clients that each send a request after the answer to the last.")
    ] = 8
    rate: (
        Annotated[float, Meta(gt=0.0, description="Requests a second at random times, instead of clients.")] | None
    ) = None
    trace: (
        Annotated[
            str, Meta(min_length=1, description="JSONL file of requests with their `arrival_s`, instead of clients.")
        ]
        | None
    ) = None
    requests: Annotated[int, Meta(ge=1, description="Requests of a repeat.")] = 100
    warmup: Annotated[int, Meta(ge=0, description="Requests before the first repeat that don't count.")] = 8
    repeats: Annotated[
        int, Meta(ge=1, description="Repeats of the load; comparing two reports needs five of each.")
    ] = 1
    prompts: (
        Annotated[str, Meta(min_length=1, description="JSONL file of prompts, or a text file with one a line.")] | None
    ) = None
    prompt_words: Annotated[int, Meta(ge=1, description="Words of a made-up prompt.")] = 128
    output_tokens: Annotated[int, Meta(ge=1, description="Tokens of an answer.")] = 128
    ignore_eos: Annotated[bool, Meta(description="Ask for answers of exactly this length.")] = True
    seed: Annotated[int, Meta(ge=0, le=2**31, description="Seed of prompts and arrivals.")] = 0
    timeout_s: Annotated[float, Meta(gt=0.0, description="Seconds after which a request has failed.")] = 300.0
    max_ttft_s: (
        Annotated[float, Meta(gt=0.0, description="Largest time to the first token of a good answer.")] | None
    ) = None
    max_tpot_s: (
        Annotated[float, Meta(gt=0.0, description="Largest mean time between tokens of a good answer.")] | None
    ) = None
    max_e2e_s: Annotated[float, Meta(gt=0.0, description="Largest duration of a good answer.")] | None = None

    def __post_init__(self) -> None:
        """Checks that at most one arrival process and one source of prompts is given.

        Raises:
            ConfigError: Two settings contradict each other.
        """
        if self.trace is not None and self.rate is not None:
            raise ConfigError("`trace` and `rate` both say when requests arrive\nhint: leave one out")
        if self.trace is not None and self.prompts is not None:
            raise ConfigError("`trace` and `prompts` both hold prompts\nhint: put the prompts into the trace")
