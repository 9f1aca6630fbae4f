"""Parts of an answer: reasoning, text and calls of functions."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from llm._rust import AnswerParser

PartKind = Literal["text", "reasoning", "call", "arguments"]

# The declared types of each function's parameters, by name.
ParameterTypes = dict[str, dict[str, str]]


class Part(msgspec.Struct, frozen=True, gc=False):
    """A piece of an answer.

    Attributes:
        kind: `text`, `reasoning`, `call` (a call begins) or `arguments` (its arguments go on).
        call: Index of the call, counted from 0; None for text and reasoning.
        text: The text; for `call` the function's name, for `arguments` a piece of JSON text.
    """

    kind: PartKind
    call: int | None
    text: str


class PartsParser:
    """Splits one answer into parts as its text arrives.

    Args:
        format: The format of calls, a name in `llm._rust.ANSWER_FORMATS`; None leaves calls in the text.
        reasoning: The texts around the reasoning; None leaves reasoning in the text.
        starts_in_reasoning: Whether the prompt ends within reasoning.
        tools: The functions that may be called.

    Raises:
        InvalidArgumentError: The format is unknown or a marker is empty.
    """

    def __init__(
        self,
        format: str | None,
        reasoning: tuple[str, str] | None = None,
        *,
        starts_in_reasoning: bool = False,
        tools: ParameterTypes | None = None,
    ) -> None:
        self._parser = AnswerParser(format, reasoning, starts_in_reasoning, tools)

    def push(self, text: str) -> list[Part]:
        """Takes more text and returns the parts that are now certain."""
        return [Part(*part) for part in self._parser.push(text)]

    def finish(self) -> list[Part]:
        """Ends the answer and returns what was held back."""
        return [Part(*part) for part in self._parser.finish()]


def parameter_types(functions: list[Mapping[str, Any]]) -> ParameterTypes:
    """Returns the declared types of each function's parameters; other than text, types are only told apart from it.

    Args:
        functions: Functions with `name` and a JSON Schema `parameters`.
    """
    return {function["name"]: _types(function.get("parameters")) for function in functions}


def _types(schema: Any) -> dict[str, str]:
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return {}
    declared = {name: _type(value) for name, value in properties.items()}
    return {name: kind for name, kind in declared.items() if kind is not None}


def _type(schema: Any) -> str | None:
    if not isinstance(schema, Mapping):
        return None
    if isinstance(values := schema.get("enum"), list) and values and all(isinstance(value, str) for value in values):
        return "string"
    kind = schema.get("type")
    return kind if isinstance(kind, str) else None
