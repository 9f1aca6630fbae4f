"""Grammars of answers with calls, each in the model's own format, in llguidance's variant of Lark."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from llm._rust import ANSWER_FORMATS
from llm.errors import InvalidArgumentError
from llm.inference.answer_format import AnswerFormat
from llm.inference.parts import declared_type

Schema = Mapping[str, Any]

_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
# Keywords of a text's schema that plain text between tags can't be held to.
_UNENFORCED_IN_TEXT = ("pattern", "minLength", "maxLength", "format", "const")
_PLAIN_NAME = re.compile(r"[\w.:/-]+")
_ANY = r"/(.|\n)*/"
_PARAMETER = "<parameter={}>\n"
# White space as Python's `json` writes it, which is what models are trained on.
_SPACED = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
# Text that no format without markers takes for a call.
_NO_CALL = r"/(\s*[^\s{\[](.|\n)*)?/"


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True):
    """A function as the grammar sees it.

    Attributes:
        name: The function's name.
        parameters: JSON Schema of its arguments.
    """

    name: str
    parameters: Schema


class AnswerShape(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer may consist of.

    Attributes:
        functions: The functions that may be called.
        is_required: Whether the answer must call a function.
        is_parallel: Whether it may call several.
        text: JSON Schema of the text of an answer that calls none; None for any text.
        starts_in_reasoning: Whether the prompt ends within reasoning.
    """

    functions: Sequence[CalledFunction] = ()
    is_required: bool = False
    is_parallel: bool = True
    text: Schema | bool | None = None
    starts_in_reasoning: bool = False


class _Style(msgspec.Struct, frozen=True, kw_only=True):
    """How a format writes calls.

    Attributes:
        call: Returns the terms of one call.
        marker: What tells calls from text; empty if only their place at the beginning does.
        opening: Text between the marker and the first call.
        separator: Text between calls; None if there can be only one.
        closing: Text after the last call.
    """

    call: "Callable[[_Writer, CalledFunction], str]"
    marker: str = ""
    opening: str = ""
    separator: str | None = None
    closing: str = ""


def arguments_schema(parameters: Schema | None) -> Schema:
    """Returns the schema of a function's arguments, which are always an object."""
    return {"type": "object", **parameters} if parameters else _NO_ARGUMENTS


def answer_grammar(form: AnswerFormat, special_tokens: Mapping[str, int], shape: AnswerShape) -> str:
    """Returns the grammar of an answer: its reasoning, and calls or text.

    Args:
        form: How the model writes its answers.
        special_tokens: The tokenizer's special tokens, which stand for themselves where a format's markers are some.
        shape: What the answer may consist of.

    Raises:
        InvalidArgumentError: The model's format can't hold a function to its schema.
    """
    markers = (*dict(ANSWER_FORMATS).get(form.calls or "", ()), *(form.reasoning or ()))
    writer = _Writer({marker: special_tokens[marker] for marker in markers if marker in special_tokens})
    start = _content(writer, form, shape)
    if form.reasoning is not None:
        thoughts = _reasoning(writer, form.reasoning, starts_in=shape.starts_in_reasoning)
        start = f"{thoughts} ({start})"
    return "\n".join([f"start: {start}", *writer.rules]) + "\n"


def _content(writer: "_Writer", form: AnswerFormat, shape: AnswerShape) -> str:
    text = None if shape.text is None else writer.json(shape.text)
    if not shape.functions:
        return text or _ANY
    style = _STYLES[form.calls or "json", form.is_newer]
    one = writer.rule("call", " | ".join(f"({style.call(writer, function)})" for function in shape.functions))
    has_more = style.separator is not None and shape.is_parallel
    more = f"({writer.terms(style.separator or '', one)})*" if has_more else ""
    calls = writer.rule("calls", f"{writer.terms(style.opening, one)} {more} {writer.terms(style.closing)}")
    whole = writer.terms(style.marker, calls)
    if shape.is_required:
        return whole
    if text is not None:
        return f"{whole} | {text}"
    if not style.marker:
        return f"{whole} | {_NO_CALL}"
    if style.marker in writer.special:
        return f"{_ANY} ({whole})?"
    writer.rules.append(f"lead[suffix={_quoted(style.marker)}]: {_ANY}")
    return f"lead {calls} | {_ANY}"


def _reasoning(writer: "_Writer", markers: tuple[str, str], *, starts_in: bool) -> str:
    start, end = markers
    if end in writer.special:
        thoughts = f"{_ANY} {writer.terms(end)}"
    else:
        writer.rules.append(f"thoughts[suffix={_quoted(end)}]: {_ANY}")
        thoughts = "thoughts"
    return f"{thoughts} /\\n*/" if starts_in else f"({writer.terms(start)} {thoughts} /\\n*/)?"


class _Writer:
    """Collects the rules of a grammar.

    Args:
        special: Ids of the markers that are special tokens.
    """

    def __init__(self, special: Mapping[str, int]) -> None:
        self.special = special
        self.rules: list[str] = []
        self._split = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    def rule(self, name: str, terms: str) -> str:
        """Adds a rule and returns its name."""
        numbered = f"{name}_{len(self.rules)}"
        self.rules.append(f"{numbered}: {terms}")
        return numbered

    def json(self, schema: Schema | bool) -> str:
        """Adds a rule for JSON of a schema and returns its name."""
        fields = dict(schema) if isinstance(schema, Mapping) else {} if schema else {"not": {}}
        return self.rule("json", f"%json {json.dumps(fields | _SPACED)}")

    def terms(self, text: str, *rules: str) -> str:
        """Returns the terms of a text, in which special tokens stand for themselves, followed by rules."""
        texts = self._split.split(text)
        ids = [f"<[{self.special[marker]}]>" for marker in self._split.findall(text)]
        found = [_quoted(texts[0])] if texts[0] else []
        for token, rest in zip(ids, texts[1:], strict=True):
            found += [token, _quoted(rest)] if rest else [token]
        return " ".join((*found, *rules))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json_call(key: str, before: str = "", after: str = "") -> "Callable[[_Writer, CalledFunction], str]":
    def terms(writer: "_Writer", function: CalledFunction) -> str:
        opening = f'{before}{{"name": {_quoted(function.name)}, "{key}": '
        return f"{writer.terms(opening, writer.json(function.parameters))} {writer.terms('}' + after)}"

    return terms


def _named_call(before: str, between: str, after: str) -> "Callable[[_Writer, CalledFunction], str]":
    def terms(writer: "_Writer", function: CalledFunction) -> str:
        opening = f"{before}{function.name}{between}"
        return f"{writer.terms(opening, writer.json(function.parameters))} {writer.terms(after)}"

    return terms


def _xml_call(writer: "_Writer", function: CalledFunction) -> str:
    properties, required = _properties(function)
    found = [writer.terms(f"\n<function={function.name}>\n")]
    for name, schema in properties.items():
        value = _xml_value(writer, function, _named(function, name), schema)
        parameter = f"({writer.terms(_PARAMETER.format(name))} {value})"
        found.append(parameter if name in required else f"{parameter}?")
    return " ".join((*found, writer.terms("</function>\n</tool_call>")))


def _xml_value(writer: "_Writer", function: CalledFunction, name: str, schema: Any) -> str:
    end = "\n</parameter>\n"
    if declared_type(schema) != "string":
        return f"{writer.json(_with_definitions(function, schema))} {writer.terms(end)}"
    if values := schema.get("enum"):
        return "(" + " | ".join(writer.terms(str(value) + end) for value in values) + ")"
    for keyword in _UNENFORCED_IN_TEXT:
        if keyword in schema:
            raise InvalidArgumentError(
                f"`{keyword}` of the argument {name} can't be enforced in the format qwen_coder, whose texts are plain"
            )
    text = f"text_{len(writer.rules)}"
    writer.rules.append(f"{text}[suffix={_quoted(end)}]: {_ANY}")
    return text


def _python_call(writer: "_Writer", function: CalledFunction) -> str:
    properties, required = _properties(function)
    optional = [name for name in properties if name not in required]
    rules = {
        name: writer.rule(
            "argument",
            f"{writer.terms(_named(function, name) + '=')} {writer.json(_with_definitions(function, schema))}",
        )
        for name, schema in properties.items()
    }
    chains = (
        [_chain([rules[name] for name in required], [rules[name] for name in optional])]
        if required
        else [_chain([rules[name]], [rules[later] for later in optional[at + 1 :]]) for at, name in enumerate(optional)]
    )
    arguments = "" if not chains else f"({' | '.join(chains)})" + ("" if required else "?")
    return f"{writer.terms(function.name + '(')} {arguments} {writer.terms(')')}"


def _chain(first: Sequence[str], optional: Sequence[str]) -> str:
    return ' ", " '.join(first) + "".join(f' (", " {rule})?' for rule in optional)


def _named(function: CalledFunction, name: str) -> str:
    if _PLAIN_NAME.fullmatch(name) is None:
        raise InvalidArgumentError(
            f"the arguments of {function.name} must have names of letters, digits and `_.:/-` in this model's format, "
            f"got {name!r}"
        )
    return name


def _with_definitions(function: CalledFunction, schema: Any) -> Schema | bool:
    """Returns a part of the parameters' schema together with the definitions that it may refer to."""
    if not isinstance(schema, Mapping):
        return bool(schema)
    shared = {name: function.parameters[name] for name in ("$defs", "definitions") if name in function.parameters}
    return {**shared, **schema}


def _properties(function: CalledFunction) -> tuple[Mapping[str, Any], list[str]]:
    """Returns the declared arguments, and the names of those that a call must have."""
    declared, required = function.parameters.get("properties"), function.parameters.get("required")
    properties = declared if isinstance(declared, Mapping) else {}
    return properties, [name for name in properties if isinstance(required, list) and name in required]


_HERMES = _json_call("arguments", "\n", "\n</tool_call>")
_DEEPSEEK = {"marker": "<｜tool▁calls▁begin｜>", "closing": "<｜tool▁calls▁end｜>"}
_DEEPSEEK_END = "<｜tool▁call▁end｜>"

# By the name of the format, and whether it is the newer of two forms.
_STYLES = {
    ("hermes", False): _Style(marker="<tool_call>", separator="\n<tool_call>", call=_HERMES),
    ("qwen_coder", False): _Style(marker="<tool_call>", separator="\n<tool_call>", call=_xml_call),
    ("llama3_json", False): _Style(call=_json_call("parameters")),
    ("llama4_pythonic", False): _Style(opening="[", separator=", ", closing="]", call=_python_call),
    ("mistral", False): _Style(
        marker="[TOOL_CALLS]", opening="[", separator=", ", closing="]", call=_json_call("arguments")
    ),
    ("mistral", True): _Style(marker="[TOOL_CALLS]", separator="[TOOL_CALLS]", call=_named_call("", "[ARGS]", "")),
    ("deepseek", False): _Style(
        **_DEEPSEEK,
        separator="\n",
        call=_named_call("<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "\n```json\n", f"\n```{_DEEPSEEK_END}"),
    ),
    ("deepseek", True): _Style(
        **_DEEPSEEK, separator="", call=_named_call("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", _DEEPSEEK_END)
    ),
    ("json", False): _Style(call=_json_call("arguments")),
}
