"""Types that several endpoints share: the fields of every generating request, and the encoder of all answers.

Error messages quote the ranges in `Meta`. `llm.serving.parsing` handles every parameter that isn't a field here.
"""

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta, UnsetType

from llm.inference.outputs import Usage
from llm.settings.sampling import TokenId, nullable_fields

MAX_STOP_STRINGS = 4
MAX_STOP_TOKEN_IDS = 64

StopString = Annotated[str, Meta(min_length=1)]
StopStrings = Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a stream: data sent besides the text."""

    include_usage: bool | None = None


# The fields that OpenAI's API defines in its own way; all others are those of `SamplingParams`.
OWN_FIELDS = ("temperature", "stop", "stop_token_ids", "logprobs")
if TYPE_CHECKING:

    class _SharedFields(msgspec.Struct, frozen=True, kw_only=True):
        def __getattr__(self, name: str) -> Any: ...
else:
    _SharedFields = msgspec.defstruct("_SharedFields", nullable_fields(skip=OWN_FIELDS), frozen=True, kw_only=True)


class GenerationRequest(_SharedFields, frozen=True, kw_only=True):
    """Fields of both endpoints; null always means the default.

    Fields that OpenAI's API lacks, such as `top_k`, are extensions shared with other servers.
    """

    model: Annotated[str, Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    stop: StopString | StopStrings | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    stop_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    # Whether to add special tokens such as BOS to a text; a chat template writes its own.
    add_special_tokens: bool | None = None

    @property
    def num_logprobs(self) -> int | None:
        """Returns how many most likely tokens to report per position, or None for no log-probabilities."""
        raise NotImplementedError

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Returns `stop` as a tuple, whether the request holds a string or a list."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        """Returns whether the stream ends with a chunk that holds the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


# Absent unless requested; if requested, null in every chunk but the last.
UsageField = Usage | UnsetType | None

encoder = msgspec.json.Encoder()
