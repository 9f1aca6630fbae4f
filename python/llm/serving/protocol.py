"""The wire types of OpenAI's API: what a request may hold, what an answer looks like.

Ranges in `Meta` are the ones a client is told about. Whatever isn't a field here is judged by `llm.serving.parsing`.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from llm.inference.outputs import FinishReason, Usage
from llm.settings.sampling import NumLogprobs, TokenId, nullable_fields

MAX_STOP_STRINGS = 4
MAX_PROMPTS = 256
MAX_STOP_TOKEN_IDS = 64

StopString = Annotated[str, Meta(min_length=1)]
StopStrings = Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream holds besides the text."""

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
    # Whether BOS and the like come before a text; a chat template writes them itself.
    add_special_tokens: bool | None = None

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens to show; None shows no log-probabilities."""
        raise NotImplementedError

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whichever form it came in."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk that holds the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """One piece of a message's content; text is the only kind understood."""

    text: str


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one string; several parts are paragraphs of their own."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class ChatCompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens to show; None shows no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """`POST /v1/completions`; each prompt gets `n` choices."""

    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1, max_length=2**20)]
    logprobs: NumLogprobs | None = None

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens to show; None shows no log-probabilities."""
        return self.logprobs


# Absent unless asked for; null in every chunk but the last once it is.
UsageField = Usage | UnsetType | None


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A token that could have come, as text and bytes: a token need not be whole characters."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob, frozen=True, kw_only=True):
    """The token that came, and the likeliest in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probabilities of a chat's answer or of a chunk of it."""

    content: list[ContentLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probabilities of a completion or of a chunk of it, in columns."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class PromptLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """What the model said of a prompt's token, or of another in its place."""

    logprob: float
    rank: int
    decoded_token: str


# By token id; the first token has none. Absent unless asked for.
PromptLogprobs = list[dict[str, PromptLogprob] | None] | UnsetType


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a chat."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One answer and why it ended."""

    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of `/v1/chat/completions`."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    prompt_logprobs: PromptLogprobs = UNSET


class ChatDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a chunk adds to the message: the role once, then text, at the end nothing."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One choice's part of a chunk."""

    index: int
    delta: ChatDelta
    finish_reason: FinishReason | None = None
    logprobs: ChatLogprobs | None = None


class ChatCompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed chat; `usage` is there only when it was asked for."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: UsageField = UNSET


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt's text, or the part of it that a chunk adds."""

    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: CompletionLogprobs | None = None
    prompt_logprobs: PromptLogprobs = UNSET


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `/v1/completions`, and the shape of its chunks too."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: UsageField = UNSET


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be asked."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "llm-oxide"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `/v1/models`."""

    data: list[Model]
    object: Literal["list"] = "list"


class Health(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer of `/health`."""

    status: Literal["ok", "loading", "failed"]
    reason: str | None = None


encoder = msgspec.json.Encoder()
