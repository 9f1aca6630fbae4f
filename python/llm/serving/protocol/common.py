"""Types that several endpoints share: the fields of every generating request, and the encoder of all answers.

Error messages quote the ranges in `Meta`. `llm.serving.parsing` handles every parameter that isn't a field here.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, UnsetType

from llm.inference.outputs import FinishReason, Usage
from llm.serving.protocol.described import MODEL, SPECIAL_TOKENS, STREAM
from llm.serving.protocol.formats import ResponseFormat
from llm.settings.sampling import GREEDY, TokenId, about, nullable_fields

MAX_STOP_STRINGS = 32
MAX_STOP_TOKEN_IDS = 64

StopString = Annotated[str, Meta(min_length=1)]
StopStrings = Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a stream: data sent besides the text."""

    include_usage: Annotated[bool | None, Meta(description="End the stream with a chunk that holds the usage.")] = None


# The fields that OpenAI's API defines in its own way; all others are those of `SamplingParams`.
OWN_FIELDS = ("temperature", "top_k", "top_p", "seed", "stop", "stop_token_ids", "logprobs")
_SEED_MASK = 2**63 - 1
if TYPE_CHECKING:

    class _SharedFields(msgspec.Struct, frozen=True, kw_only=True):
        def __getattr__(self, name: str) -> Any: ...
else:
    _SharedFields = msgspec.defstruct("_SharedFields", nullable_fields(skip=OWN_FIELDS), frozen=True, kw_only=True)


class GenerationRequest(_SharedFields, frozen=True, kw_only=True):
    """Fields of both endpoints; null always means the default.

    Fields that OpenAI's API lacks, such as `top_k`, are extensions shared with other servers.
    """

    model: Annotated[str, MODEL]
    stream: Annotated[bool | None, STREAM] = None
    stream_options: Annotated[StreamOptions | None, Meta(description="Options of the stream; only with `stream`.")] = (
        None
    )
    priority: (
        Annotated[int, Meta(ge=-(2**31), le=2**31 - 1, description="Place in the queue; lower numbers run first.")]
        | None
    ) = None
    stop: Annotated[StopString | StopStrings | None, about("stop")] = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0), about("temperature")] | None = None
    top_k: (
        Annotated[int, Meta(ge=-1, le=2**31 - 1, description="Number of likeliest tokens to keep; 0 or -1: all.")]
        | None
    ) = None
    top_p: (
        Annotated[
            float,
            Meta(ge=0.0, le=1.0, description="Probability mass of the likeliest tokens to keep; 0: only one token."),
        ]
        | None
    ) = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1), about("seed")] | None = None
    stop_token_ids: (
        Annotated[tuple[TokenId, ...], Meta(max_length=MAX_STOP_TOKEN_IDS), about("stop_token_ids")] | None
    ) = None
    response_format: Annotated[
        ResponseFormat | None, Meta(description="Form of the answer: any text, any JSON object, or JSON of a schema.")
    ] = None
    return_token_ids: Annotated[
        bool | None, Meta(description="Return the ids of the prompt's tokens and of each answer's.")
    ] = None
    add_special_tokens: Annotated[bool | None, SPECIAL_TOKENS] = None

    @property
    def num_logprobs(self) -> int | None:
        """Returns how many most likely tokens to report per position, or None for no log-probabilities."""
        raise NotImplementedError

    @property
    def num_sampled_logprobs(self) -> int | None:
        """Returns how many most likely tokens the engine reports per position, shown or not."""
        return self.num_logprobs

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Returns `stop` as a tuple, whether the request holds a string or a list."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def adapted(self) -> dict[str, Any]:
        """Returns the sampling values that `SamplingParams` has in another form; None means the default.

        A `top_k` of -1 keeps all tokens, a `top_p` of 0 only the likeliest. A `seed` of -1 draws a fresh seed, as in
        vLLM and llama.cpp; other negative seeds count as well.
        """
        values: dict[str, Any] = {"top_k": self.top_k, "top_p": self.top_p, "seed": self.seed}
        if self.top_k == -1:
            values["top_k"] = 0
        if self.top_p == 0:
            values |= {"top_p": None} | GREEDY
        if self.seed is not None and self.seed < 0:
            values["seed"] = None if self.seed == -1 else self.seed & _SEED_MASK
        return values

    @property
    def include_usage(self) -> bool:
        """Returns whether the stream ends with a chunk that holds the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


# `tool_calls`: the answer calls functions, and is complete.
ChatFinishReason = FinishReason | Literal["tool_calls"]

# Absent unless requested.
TokenIdsField = tuple[int, ...] | UnsetType

# What the APIs of messages and responses name or shape in their own way, or have no place for in an answer.
_OTHER_APIS_FIELDS = {"model", "stream", "stream_options", "n", "max_tokens", "stop", "logprobs", "prompt_logprobs"} | {
    *("return_token_ids", "response_format")
}
if TYPE_CHECKING:

    class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
        """Sampling parameters of every endpoint, for the APIs whose requests become chat requests."""
else:
    SamplingFields = msgspec.defstruct(
        "SamplingFields",
        [
            (field.name, field.type, None)
            for field in msgspec.structs.fields(GenerationRequest)
            if field.name not in _OTHER_APIS_FIELDS
        ],
        frozen=True,
        kw_only=True,
    )

# Absent unless requested; if requested, null in every chunk but the last.
UsageField = Usage | UnsetType | None

encoder = msgspec.json.Encoder()
