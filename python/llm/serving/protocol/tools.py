"""Tools in requests, and calls of them in messages and answers."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from llm.serving.protocol.described import TOOL_DESCRIPTION, TOOL_NAME, TOOL_SCHEMA, TOOL_STRICT

FunctionName: TypeAlias = Annotated[str, Meta(pattern=r"^[\w.:/-]{1,256}$")]
ToolMode: TypeAlias = Literal["none", "auto", "required"]


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call; `parameters` is a JSON Schema of its arguments."""

    name: Annotated[FunctionName, TOOL_NAME]
    description: Annotated[str | None, TOOL_DESCRIPTION] = None
    parameters: Annotated[dict[str, Any] | None, TOOL_SCHEMA] = None
    strict: Annotated[bool | None, TOOL_STRICT] = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool of a request; only functions are supported."""

    type: Literal["function"]
    function: Function

    @property
    def for_template(self) -> dict[str, Any]:
        """Returns the tool as templates expect it, with given fields only."""
        function = self.function
        fields = {"name": function.name, "description": function.description, "parameters": function.parameters}
        return {"type": "function", "function": {name: value for name, value in fields.items() if value is not None}}


class NamedFunction(msgspec.Struct, frozen=True, kw_only=True):
    """The function that a request wants called."""

    name: FunctionName


class NamedTool(msgspec.Struct, frozen=True, kw_only=True):
    """The tool that a request wants called."""

    type: Literal["function"]
    function: NamedFunction


class SentFunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that a client sends back: its arguments as JSON text, or as an object."""

    name: FunctionName
    arguments: str | dict[str, Any] = ""


class SentToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call in a message that a client sends back."""

    function: SentFunctionCall
    id: str | None = None
    type: Literal["function"] = "function"


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """The function of a call in an answer, with its arguments as JSON text."""

    name: str
    arguments: str


class MessageToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call in an answer."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class FunctionCallDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The part of a call that a chunk adds: first its name, then its arguments."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A call in a chunk; only its first chunk has an id and a type."""

    index: int
    function: FunctionCallDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
