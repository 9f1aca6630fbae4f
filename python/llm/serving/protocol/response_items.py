"""Items of `/v1/responses`: what a conversation consists of, as input and as output."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from llm.serving.protocol.described import (
    EFFORT,
    FORM,
    TOOL_DESCRIPTION,
    TOOL_NAME,
    TOOL_SCHEMA,
    TOOL_STRICT,
    VERBOSITY,
)
from llm.serving.protocol.logprobs import ContentLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]
Name = Annotated[str, Meta(min_length=1)]


class InputText(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="input_text"):
    """Text from the client."""

    text: str


class OutputText(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    """Text from the model."""

    text: str
    annotations: list[Any] = []
    logprobs: list[ContentLogprob] = []


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """A refusal of an earlier answer, which the prompt quotes as text."""

    refusal: str


class SummaryText(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="summary_text"):
    """A summary of reasoning."""

    text: str


class ReasoningText(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning_text"):
    """Reasoning as the model wrote it."""

    text: str


class InputMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """A message of the conversation; the type may be left out in a request."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputText | OutputText | Refusal]
    id: str | None = None
    status: ItemStatus | None = None


class OutputMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """The model's message."""

    id: str
    status: ItemStatus
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """A call of a function, with its arguments as JSON text."""

    call_id: Name
    name: Name
    arguments: str
    id: str | None = None
    status: ItemStatus | None = None
    namespace: str | UnsetType | None = UNSET


class FunctionCallOutput(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call_output"):
    """What a called function returned."""

    call_id: Name
    output: str | list[InputText]
    id: str | None = None
    status: ItemStatus | None = None


class Reasoning(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """The model's reasoning; of an earlier turn, templates that keep reasoning show it to the model."""

    id: str | None = None
    summary: list[SummaryText] = []
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None
    status: ItemStatus | None = None


class ItemReference(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="item_reference"):
    """An item of a stored response, by its id; the type may be left out in a request."""

    id: Name


InputItem = InputMessage | FunctionCall | FunctionCallOutput | Reasoning | ItemReference
OutputItem = OutputMessage | FunctionCall | Reasoning
# An item as it is stored and quoted: of a message, one type holds both kinds.
KeptItem = InputMessage | FunctionCall | FunctionCallOutput | Reasoning


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """A function that the client runs."""

    name: Annotated[Name, TOOL_NAME]
    parameters: Annotated[dict[str, Any] | None, TOOL_SCHEMA] = None
    description: Annotated[str | None, TOOL_DESCRIPTION] = None
    strict: Annotated[bool | None, TOOL_STRICT] = None


class NamespaceTool(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="namespace"):
    """Functions under a common name; the model sees each as `namespace.function`."""

    name: Name
    tools: list[FunctionTool]
    description: str | None = None


ResponseTool = FunctionTool | NamespaceTool


class NamedTool(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """The one function that the model must call."""

    name: Name


class AllowedTools(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="allowed_tools"):
    """The functions among `tools` that the model may call now."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool]


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedTools


class TextFormat(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """An answer of any form."""


class JsonObjectFormat(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    """An answer that is a JSON object."""


class JsonSchemaFormat(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="json_schema", omit_defaults=True
):
    """An answer that satisfies a JSON Schema."""

    name: Name
    schema: dict[str, Any]
    description: str | UnsetType | None = UNSET
    strict: bool | UnsetType | None = UNSET


class TextConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The form of the answer's text."""

    format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat | None, FORM] = None
    verbosity: Annotated[Literal["low", "medium", "high"] | None, VERBOSITY] = None


class ReasoningConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How much to reason; a summary is accepted, and the reasoning itself is in the answer."""

    effort: Annotated[Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None, EFFORT] = None
    summary: Annotated[
        Literal["auto", "concise", "detailed"] | None,
        Meta(description="Accepted; the answer holds the reasoning itself."),
    ] = None
    generate_summary: Annotated[
        Literal["auto", "concise", "detailed"] | None, Meta(description="The same as `summary`.")
    ] = None
