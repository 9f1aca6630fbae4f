"""Request and response types of OpenAI's API.

Error messages quote the ranges in `Meta`. `llm.serving.parsing` handles every parameter that isn't a field here.
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


class TextPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """One part of a message's content; only text is supported."""

    text: str


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """Returns the content as one string, with several parts as separate paragraphs."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class ChatCompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """The request body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None

    @property
    def num_logprobs(self) -> int | None:
        """Returns how many most likely tokens to report per position, or None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """The request body of `POST /v1/completions`; each prompt gets `n` choices."""

    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1, max_length=2**20)]
    logprobs: NumLogprobs | None = None

    @property
    def num_logprobs(self) -> int | None:
        """Returns how many most likely tokens to report per position, or None for no log-probabilities."""
        return self.logprobs


# Absent unless requested; if requested, null in every chunk but the last.
UsageField = Usage | UnsetType | None


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate token as text and as bytes, because a token may hold incomplete characters."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob, frozen=True, kw_only=True):
    """The chosen token and the most likely tokens at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probabilities of a chat answer or one of its chunks."""

    content: list[ContentLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probabilities of a completion or one of its chunks, with one list per field."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class PromptLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """The log-probability of a prompt token, or of an alternative at its position."""

    logprob: float
    rank: int
    decoded_token: str


# By token id; null for the first token. Absent unless requested.
PromptLogprobs = list[dict[str, PromptLogprob] | None] | UnsetType


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The assistant's message in a chat answer."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of a chat answer, with its finish reason."""

    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/v1/chat/completions` without streaming."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    prompt_logprobs: PromptLogprobs = UNSET


class ChatDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The part of a message that a chunk adds: the role once, then text, and nothing at the end."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a chunk that belongs to one choice."""

    index: int
    delta: ChatDelta
    finish_reason: FinishReason | None = None
    logprobs: ChatLogprobs | None = None


class ChatCompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed chat; `usage` is present only if requested."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: UsageField = UNSET


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The text of one choice, or the part of the text that a chunk adds."""

    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: CompletionLogprobs | None = None
    prompt_logprobs: PromptLogprobs = UNSET


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/v1/completions`, and also each of its chunks."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: UsageField = UNSET


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that the server serves."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "llm-oxide"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/v1/models`."""

    data: list[Model]
    object: Literal["list"] = "list"


class Health(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The response of `/health`."""

    status: Literal["ok", "loading", "failed"]
    reason: str | None = None


encoder = msgspec.json.Encoder()
