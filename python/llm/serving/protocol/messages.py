"""Types of `/v1/messages` and `/v1/messages/count_tokens`, in the form of Anthropic's API."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from llm.serving.protocol.common import SamplingFields, StopString
from llm.serving.protocol.described import (
    EFFORT,
    FORM,
    MODEL,
    STREAM,
    TEMPLATE_VARIABLES,
    TOOL_CHOICE,
    TOOL_DESCRIPTION,
    TOOL_NAME,
    TOOL_SCHEMA,
    TOOL_STRICT,
    TOOLS,
)
from llm.serving.protocol.tools import FunctionName

MAX_STOP_SEQUENCES = 32


class TextBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A block of text."""

    text: str


class ThinkingBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="thinking"):
    """The model's reasoning; the signature of an earlier turn is accepted and not checked."""

    thinking: str
    signature: str = ""


class RedactedThinkingBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="redacted_thinking"):
    """Reasoning that only Anthropic's own servers can read; it never reaches the model."""

    data: str = ""


class ToolUseBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_use"):
    """A call of a tool, with its arguments as an object."""

    id: Annotated[str, Meta(min_length=1)]
    name: FunctionName
    input: dict[str, Any]


class TextSource(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A document that is given as text."""

    data: str
    media_type: Literal["text/plain"] = "text/plain"


class ContentSource(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="content"):
    """A document that is given as blocks of text."""

    content: str | list[TextBlock]


class DocumentBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="document"):
    """A document that the prompt quotes."""

    source: TextSource | ContentSource
    title: str | None = None
    context: str | None = None


class SearchResultBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="search_result"):
    """A result of a search by the client, which the prompt quotes."""

    source: str
    title: str
    content: list[TextBlock]


QuotedBlock = TextBlock | DocumentBlock | SearchResultBlock


class ToolResultBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_result"):
    """What a tool returned; of an error, the content tells the model."""

    tool_use_id: Annotated[str, Meta(min_length=1)]
    content: str | list[QuotedBlock] | None = None
    is_error: bool | None = None


InputBlock = (
    TextBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | DocumentBlock
    | SearchResultBlock
)


class InputMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[InputBlock]


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that the client runs."""

    name: Annotated[FunctionName, TOOL_NAME]
    input_schema: Annotated[dict[str, Any], TOOL_SCHEMA]
    description: Annotated[str | None, TOOL_DESCRIPTION] = None
    type: Literal["custom"] | None = None
    strict: Annotated[bool | None, TOOL_STRICT] = None


class AutoToolChoice(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="auto"):
    """The model decides whether to call tools."""

    disable_parallel_tool_use: bool | None = None


class AnyToolChoice(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="any"):
    """The model must call a tool."""

    disable_parallel_tool_use: bool | None = None


class NamedToolChoice(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="tool"):
    """The model must call the named tool."""

    name: FunctionName
    disable_parallel_tool_use: bool | None = None


class NoToolChoice(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="none"):
    """The model must not call tools."""


Display = Literal["summarized", "omitted"] | None


class EnabledThinking(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="enabled"):
    """Asks for reasoning; the budget is accepted and not enforced."""

    budget_tokens: Annotated[int, Meta(ge=1)]
    display: Display = None


class AdaptiveThinking(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="adaptive"):
    """Allows reasoning, as much as the model sees fit."""

    display: Display = None


class BetweenToolsThinking(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="between_tools"):
    """Allows reasoning, which the model may also do between calls of tools."""


class DisabledThinking(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="disabled"):
    """Asks for an answer without reasoning."""


class JsonFormat(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    """A JSON Schema that the answer's text must satisfy."""

    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How much effort to spend, and the form of the answer."""

    effort: Annotated[Literal["low", "medium", "high", "xhigh", "max"] | None, EFFORT] = None
    format: Annotated[JsonFormat | None, FORM] = None


class CountTokensRequest(SamplingFields, frozen=True, kw_only=True):
    """The request body of `POST /v1/messages/count_tokens`: all that becomes the prompt.

    Clients may send the body of `/v1/messages`; sampling parameters change no count.
    """

    model: Annotated[str, MODEL]
    messages: Annotated[list[InputMessage], Meta(min_length=1, description="The conversation, oldest turn first.")]
    system: Annotated[str | list[TextBlock] | None, Meta(description="Instructions before the conversation.")] = None
    tools: Annotated[list[Tool] | None, TOOLS] = None
    tool_choice: Annotated[AutoToolChoice | AnyToolChoice | NamedToolChoice | NoToolChoice | None, TOOL_CHOICE] = None
    thinking: Annotated[
        EnabledThinking | AdaptiveThinking | BetweenToolsThinking | DisabledThinking | None,
        Meta(description="Whether the model reasons before it answers, for templates that know the switch."),
    ] = None
    output_config: Annotated[OutputConfig | None, Meta(description="Effort and form of the answer.")] = None
    output_format: Annotated[JsonFormat | None, Meta(description="The same as `output_config.format`.")] = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, TEMPLATE_VARIABLES] = None


class MessagesRequest(CountTokensRequest, frozen=True, kw_only=True):
    """The request body of `POST /v1/messages`; beside Anthropic's fields, it takes the server's sampling parameters."""

    max_tokens: Annotated[
        int, Meta(ge=1, description="Largest number of new tokens; cut to what the context has left.")
    ]
    stop_sequences: (
        Annotated[list[StopString], Meta(max_length=MAX_STOP_SEQUENCES, description="Texts that end the answer.")]
        | None
    ) = None
    stream: Annotated[bool | None, STREAM] = None
    context_management: Annotated[
        dict[str, Any] | None, Meta(description="Accepted; no edit is made to the conversation.")
    ] = None


# The names that the fields of a chat request have in this API.
CHAT_FIELD_NAMES = {
    ".function.parameters": ".input_schema",
    ".function": "",
    "response_format.json_schema": "output_config.format",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "chat_template_kwargs": "thinking",
}


class TokensCount(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/v1/messages/count_tokens`."""

    input_tokens: int


class MessageUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a message; `input_tokens` leaves out those that the prefix cache held."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
OutputBlock = TextBlock | ThinkingBlock | ToolUseBlock


class ContextManagement(msgspec.Struct, frozen=True, kw_only=True):
    """The edits that the server made to the conversation: none."""

    applied_edits: tuple[()] = ()


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """The response of `/v1/messages`."""

    id: str
    model: str
    content: list[OutputBlock]
    usage: MessageUsage
    role: Literal["assistant"] = "assistant"
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    context_management: ContextManagement | UnsetType = UNSET


class MessageStart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message_start"):
    """The first event of a stream: the message without content."""

    message: Message


class ContentBlockStart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="content_block_start"):
    """The event that opens a block, with nothing in it."""

    index: int
    content_block: OutputBlock


class TextDelta(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text_delta"):
    """More text of a text block."""

    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="thinking_delta"):
    """More reasoning of a thinking block."""

    thinking: str


class SignatureDelta(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="signature_delta"):
    """The signature that ends a thinking block."""

    signature: str


class InputJsonDelta(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="input_json_delta"):
    """More of a tool call's arguments, as JSON text."""

    partial_json: str


class ContentBlockDelta(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="content_block_delta"):
    """The event that adds to a block."""

    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class ContentBlockStop(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="content_block_stop"):
    """The event that closes a block."""

    index: int


class MessageEnding(msgspec.Struct, frozen=True, kw_only=True):
    """Why a streamed message ended."""

    stop_reason: StopReason
    stop_sequence: str | None = None


class MessageDelta(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message_delta"):
    """The event that says why the message ended, with the final usage."""

    delta: MessageEnding
    usage: MessageUsage
    context_management: ContextManagement | UnsetType = UNSET


class MessageStop(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message_stop"):
    """The last event of a stream."""


class Ping(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="ping"):
    """An event that only shows that the connection works."""


class MessagesError(msgspec.Struct, frozen=True, kw_only=True):
    """The kind of an error and its message."""

    type: str
    message: str


class MessagesErrorResponse(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="error"):
    """The body of an error response, and the event of an error inside a stream."""

    error: MessagesError
    request_id: str
