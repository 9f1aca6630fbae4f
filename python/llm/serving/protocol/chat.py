"""Types of `/v1/chat/completions`."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from llm.inference.outputs import Usage
from llm.serving.protocol.common import ChatFinishReason, GenerationRequest, TokenIdsField, UsageField
from llm.serving.protocol.described import (
    EFFORT,
    NEW_TOKENS,
    PARALLEL_CALLS,
    TEMPLATE_VARIABLES,
    TOOL_CHOICE,
    TOOLS,
    VERBOSITY,
)
from llm.serving.protocol.logprobs import ChatLogprobs, PromptLogprobs
from llm.serving.protocol.tools import MessageToolCall, NamedTool, SentToolCall, Tool, ToolCallDelta, ToolMode
from llm.settings.sampling import NumLogprobs

ReasoningEffort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]
Verbosity: TypeAlias = Literal["low", "medium", "high"]


class TextPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """One part of a message's content; only text is supported."""

    text: str


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation."""

    role: Annotated[Role, Meta(description="Who says the message.")]
    content: Annotated[str | list[TextPart] | None, Meta(description="Text, or parts of type text.")] = None
    name: Annotated[str | None, Meta(description="The speaker's name, for templates that write it.")] = None
    tool_calls: Annotated[
        list[SentToolCall] | None,
        Meta(description="Calls of functions by the assistant, as an earlier answer held them."),
    ] = None
    tool_call_id: Annotated[
        str | None, Meta(description="The call whose result a message with the role `tool` holds.")
    ] = None
    reasoning_content: Annotated[
        str | None, Meta(description="Reasoning of an earlier answer; the template decides whether the model sees it.")
    ] = None
    reasoning: Annotated[str | None, Meta(description="The same as `reasoning_content`.")] = None

    @property
    def text(self) -> str:
        """Returns the content as one string, with several parts as separate paragraphs; empty without content."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""

    @property
    def may_lack_content(self) -> bool:
        """Returns whether the message has something else to say than its content."""
        return self.role == "assistant" and bool(self.tool_calls or self.reasoning_content or self.reasoning)


class ChatCompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """The request body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, description="The conversation, oldest message first.")]
    max_tokens: Annotated[int, NEW_TOKENS] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, description="The same as `max_tokens`.")] | None = None
    logprobs: Annotated[bool | None, Meta(description="Return the log-probability of each new token.")] = None
    top_logprobs: Annotated[
        NumLogprobs | None,
        Meta(description="Number of likeliest tokens to report at each position; only with `logprobs`."),
    ] = None
    reasoning_effort: Annotated[ReasoningEffort | None, EFFORT] = None
    verbosity: Annotated[Verbosity | None, VERBOSITY] = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, TEMPLATE_VARIABLES] = None
    documents: Annotated[
        list[dict[str, Any]] | None, Meta(description="Documents to answer from, for templates that write them.")
    ] = None
    add_generation_prompt: Annotated[
        bool | None, Meta(description="Whether the prompt ends with the opening of the assistant's turn; null: yes.")
    ] = None
    continue_final_message: Annotated[
        bool | None, Meta(description="Whether the model continues the last message.")
    ] = None
    tools: Annotated[list[Tool] | None, TOOLS] = None
    tool_choice: Annotated[ToolMode | NamedTool | None, TOOL_CHOICE] = None
    parallel_tool_calls: Annotated[bool | None, PARALLEL_CALLS] = None

    @property
    def offered_tools(self) -> list[Tool]:
        """Returns the tools that the model may call in this answer."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def num_logprobs(self) -> int | None:
        """Returns how many most likely tokens to report per position, or None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def template_variables(self) -> dict[str, Any]:
        """Returns the variables for the template; `chat_template_kwargs` wins over the fields with their own names.

        An effort also turns thinking on or off, because many templates know only that switch.
        """
        effort = {} if self.reasoning_effort is None else {"enable_thinking": self.reasoning_effort != "none"}
        named = {"reasoning_effort": self.reasoning_effort, "verbosity": self.verbosity} | effort
        return {name: value for name, value in named.items() if value is not None} | (self.chat_template_kwargs or {})


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The assistant's message in a chat answer."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[MessageToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of a chat answer, with its finish reason."""

    index: int
    message: AssistantMessage
    finish_reason: ChatFinishReason
    logprobs: ChatLogprobs | None = None
    token_ids: TokenIdsField = UNSET


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/v1/chat/completions` without streaming."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    prompt_logprobs: PromptLogprobs = UNSET
    prompt_token_ids: TokenIdsField = UNSET


class ChatDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The part of a message that a chunk adds: the role once, then reasoning, text and calls, nothing at the end."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a chunk that belongs to one choice."""

    index: int
    delta: ChatDelta
    finish_reason: ChatFinishReason | None = None
    logprobs: ChatLogprobs | None = None
    token_ids: TokenIdsField = UNSET


class ChatCompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed chat; `usage` is present only if requested."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: UsageField = UNSET
    prompt_token_ids: TokenIdsField = UNSET
