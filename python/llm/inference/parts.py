"""Parts of an answer: reasoning, text and calls of functions."""

from collections.abc import Iterable, Mapping, Sequence
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


class AnswerSetup(msgspec.Struct, frozen=True, kw_only=True):
    """How to split the answers to one prompt into parts.

    Attributes:
        format: The format of calls, a name in `llm._rust.ANSWER_FORMATS`; None leaves calls in the text.
        reasoning: The texts around the reasoning; None leaves reasoning in the text.
        starts_in_reasoning: Whether the prompt ends within reasoning.
        tools: The functions that may be called.
        max_calls: Largest number of calls to keep; None keeps all.
    """

    format: str | None = None
    reasoning: tuple[str, str] | None = None
    starts_in_reasoning: bool = False
    tools: ParameterTypes = {}
    max_calls: int | None = None


class ToolCall(msgspec.Struct, frozen=True):
    """A call of a function.

    Attributes:
        name: The function's name.
        arguments: JSON text of its arguments, as the model wrote it; not JSON if the answer ends within it.
    """

    name: str
    arguments: str


class PartsParser:
    """Splits one answer into parts as its text arrives.

    Args:
        setup: How to split the answer.

    Raises:
        InvalidArgumentError: The format is unknown or a marker is empty.
    """

    def __init__(self, setup: AnswerSetup) -> None:
        self._parser = AnswerParser(setup.format, setup.reasoning, setup.starts_in_reasoning, setup.tools)
        self._max_calls = setup.max_calls

    @property
    def is_reasoning(self) -> bool:
        """Whether the answer is in its reasoning."""
        return self._parser.is_reasoning

    def push(self, text: str) -> list[Part]:
        """Takes more text and returns the parts that are now certain."""
        return self._kept(self._parser.push(text))

    def finish(self) -> list[Part]:
        """Ends the answer and returns what was held back."""
        return self._kept(self._parser.finish())

    def _kept(self, parts: list[tuple[PartKind, int | None, str]]) -> list[Part]:
        most = self._max_calls
        return [Part(*part) for part in parts if most is None or part[1] is None or part[1] < most]


def joined_text(parts: Iterable[Part], kind: PartKind) -> str:
    """Returns the text of all parts of a kind."""
    return "".join(part.text for part in parts if part.kind == kind)


def tool_calls(parts: Iterable[Part]) -> tuple[ToolCall, ...]:
    """Returns the calls in the parts of a whole answer."""
    calls: list[tuple[str, list[str]]] = []
    for part in parts:
        if part.kind == "call":
            calls.append((part.text, []))
        elif part.kind == "arguments":
            calls[-1][1].append(part.text)
    return tuple(ToolCall(name, "".join(arguments)) for name, arguments in calls)


def parameter_types(functions: Sequence[Mapping[str, Any]]) -> ParameterTypes:
    """Returns the declared types of each function's parameters; other than text, types are only told apart from it.

    Args:
        functions: Functions with `name` and a JSON Schema `parameters`.
    """
    return {function["name"]: _types(function.get("parameters")) for function in functions}


def _types(schema: Any) -> dict[str, str]:
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return {}
    declared = {name: declared_type(value) for name, value in properties.items()}
    return {name: kind for name, kind in declared.items() if kind is not None}


def declared_type(schema: Any) -> str | None:
    """Returns the one type that a schema declares, `string` for an `enum` of texts, or None if it declares none."""
    if not isinstance(schema, Mapping):
        return None
    if isinstance(values := schema.get("enum"), list) and values and all(isinstance(value, str) for value in values):
        return "string"
    kind = schema.get("type")
    return kind if isinstance(kind, str) else None
