"""Types of `/v1/responses`, in the form of OpenAI's API."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llm.inference.outputs import CompletionTokensDetails
from llm.serving.protocol.common import SamplingFields
from llm.serving.protocol.described import (
    MODEL,
    NEW_TOKENS,
    PARALLEL_CALLS,
    STREAM,
    TEMPLATE_VARIABLES,
    TOOL_CHOICE,
    TOOLS,
    UNUSED,
)
from llm.serving.protocol.response_items import (
    InputItem,
    KeptItem,
    OutputItem,
    OutputText,
    ReasoningConfig,
    ReasoningText,
    ResponseTool,
    TextConfig,
    ToolChoice,
)
from llm.settings.sampling import NumLogprobs

MAX_METADATA = 16
Metadata = Annotated[dict[str, str], Meta(max_length=MAX_METADATA)]
LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    LOGPROBS,
)


class ResponsesRequest(SamplingFields, frozen=True, kw_only=True):
    """The request body of `POST /v1/responses`; beside OpenAI's fields, it takes the server's sampling parameters."""

    model: Annotated[str, MODEL]
    input: Annotated[str | list[InputItem], Meta(description="A text, or items of the conversation.")]
    instructions: Annotated[str | None, Meta(description="System message of this response only.")] = None
    max_output_tokens: Annotated[int, NEW_TOKENS] | None = None
    previous_response_id: Annotated[
        str | None, Meta(description="Stored response to continue, with all that came before it.")
    ] = None
    store: Annotated[bool | None, Meta(description="Whether to store the response; null: yes.")] = None
    background: Annotated[bool | None, Meta(description="Answer at once and generate afterwards; needs `store`.")] = (
        None
    )
    stream: Annotated[bool | None, STREAM] = None
    tools: Annotated[list[ResponseTool] | None, TOOLS] = None
    tool_choice: Annotated[ToolChoice | None, TOOL_CHOICE] = None
    parallel_tool_calls: Annotated[bool | None, PARALLEL_CALLS] = None
    text: Annotated[TextConfig | None, Meta(description="Form and length of the answer.")] = None
    reasoning: Annotated[ReasoningConfig | None, Meta(description="Effort of reasoning.")] = None
    include: Annotated[
        list[str] | None, Meta(description="What the response also holds; only log-probabilities add anything.")
    ] = None
    top_logprobs: Annotated[
        NumLogprobs | None, Meta(description="Number of likeliest tokens to report at each position.")
    ] = None
    metadata: Annotated[Metadata | None, Meta(description="Notes that are stored with the response.")] = None
    user: Annotated[str | None, UNUSED] = None
    truncation: Annotated[
        Literal["auto", "disabled"] | None,
        Meta(description="`auto` drops the oldest turns of a conversation that exceeds the context."),
    ] = None
    max_tool_calls: Annotated[
        int | None, Meta(description="Accepted; it counts calls of built-in tools, of which there are none.")
    ] = None
    prompt_cache_key: Annotated[str | None, Meta(description="Accepted; prefixes are always cached.")] = None
    safety_identifier: Annotated[str | None, UNUSED] = None
    service_tier: Annotated[str | None, UNUSED] = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, TEMPLATE_VARIABLES] = None


# The names that the fields of a chat request have in this API.
CHAT_FIELD_NAMES = {
    ".function": "",
    "response_format.json_schema": "text.format",
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "top_logprobs",
}


class CachedTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Prompt tokens that the prefix cache held."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a response."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: CachedTokens = CachedTokens()
    output_tokens_details: CompletionTokensDetails = CompletionTokensDetails()


ErrorCode = Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]


class ResponseError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a response failed."""

    code: ErrorCode
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Why a response ended early."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/v1/responses`, with the request's parameters."""

    id: str
    created_at: int
    status: ResponseStatus
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    tool_choice: ToolChoice
    tools: list[ResponseTool]
    text: TextConfig
    reasoning: ReasoningConfig
    object: Literal["response"] = "response"
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    metadata: dict[str, str] = {}
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int = 0
    background: bool = False
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str = "default"
    store: bool = True
    truncation: Literal["auto", "disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None


class DeletedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `DELETE /v1/responses/{id}`."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class InputItemList(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `GET /v1/responses/{id}/input_items`."""

    data: list[KeptItem]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every event of a stream holds."""

    sequence_number: int


class ResponseCreated(_Event, frozen=True, kw_only=True, tag="response.created"):
    """The first event of a stream."""

    response: Response


class ResponseInProgress(_Event, frozen=True, kw_only=True, tag="response.in_progress"):
    """The event after which the answer comes."""

    response: Response


class ResponseCompleted(_Event, frozen=True, kw_only=True, tag="response.completed"):
    """The last event of an answer that the model ended."""

    response: Response


class ResponseIncomplete(_Event, frozen=True, kw_only=True, tag="response.incomplete"):
    """The last event of an answer that a limit ended."""

    response: Response


class ResponseFailed(_Event, frozen=True, kw_only=True, tag="response.failed"):
    """The last event of an answer that an error ended."""

    response: Response


class OutputItemAdded(_Event, frozen=True, kw_only=True, tag="response.output_item.added"):
    """The event that opens an item."""

    output_index: int
    item: OutputItem


class OutputItemDone(_Event, frozen=True, kw_only=True, tag="response.output_item.done"):
    """The event that closes an item, with all it holds."""

    output_index: int
    item: OutputItem


class _ContentEvent(_Event, frozen=True, kw_only=True):
    """What every event about the content of an item holds; an item's content is one part here."""

    item_id: str
    output_index: int
    content_index: int = 0


class ContentPartAdded(_ContentEvent, frozen=True, kw_only=True, tag="response.content_part.added"):
    """The event that opens a part of an item's content."""

    part: OutputText | ReasoningText


class ContentPartDone(_ContentEvent, frozen=True, kw_only=True, tag="response.content_part.done"):
    """The event that closes a part of an item's content."""

    part: OutputText | ReasoningText


class OutputTextDelta(_ContentEvent, frozen=True, kw_only=True, tag="response.output_text.delta"):
    """More text."""

    delta: str
    logprobs: list[Any] = []


class OutputTextDone(_ContentEvent, frozen=True, kw_only=True, tag="response.output_text.done"):
    """The whole text of a part."""

    text: str
    logprobs: list[Any] = []


class ReasoningTextDelta(_ContentEvent, frozen=True, kw_only=True, tag="response.reasoning_text.delta"):
    """More reasoning."""

    delta: str


class ReasoningTextDone(_ContentEvent, frozen=True, kw_only=True, tag="response.reasoning_text.done"):
    """The whole reasoning of a part."""

    text: str


class ArgumentsDelta(_Event, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"):
    """More of a call's arguments."""

    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(_Event, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    """The whole arguments of a call."""

    item_id: str
    output_index: int
    name: str
    arguments: str


ResponseEvent = (
    ResponseCreated
    | ResponseInProgress
    | ResponseCompleted
    | ResponseIncomplete
    | ResponseFailed
    | OutputItemAdded
    | OutputItemDone
    | ContentPartAdded
    | ContentPartDone
    | OutputTextDelta
    | OutputTextDone
    | ReasoningTextDelta
    | ReasoningTextDone
    | ArgumentsDelta
    | ArgumentsDone
)
