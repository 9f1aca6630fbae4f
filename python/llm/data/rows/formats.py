"""The formats in which fine-tuning data comes, each read into the messages of OpenAI's API."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from llm.data.readers import Row
from llm.data.rows.messages import checked_messages, listed
from llm.errors import DataError
from llm.tokenization import ConversationOptions

# Who speaks in a row of `conversations`.
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "function_call",
}


@dataclass(frozen=True)
class ChatRow:
    """A conversation to learn from.

    Attributes:
        messages: The messages, as in OpenAI's API.
        options: Tools, documents and variables for the chat template.
        plain: Prompt and completion as plain text, for a model without a chat template; None for a conversation.
        num_read: Number of messages at the start that are never learnt.
        is_wanted: Whether the answer is one to learn, or one to avoid.
        margin: By how much a chosen answer is better than its rejected one; 0 says nothing about it.
    """

    messages: Sequence[Mapping[str, Any]]
    options: ConversationOptions = field(default_factory=ConversationOptions)
    plain: tuple[str, str] | None = None
    num_read: int = 0
    is_wanted: bool = True
    margin: float = 0.0


class _Format(NamedTuple):
    """How rows of a format are known and read; `fields` lists the names of each field that a row must have."""

    fields: tuple[tuple[str, ...], ...]
    read: Callable[[Mapping[str, Any]], ChatRow]

    def fits(self, values: Mapping[str, Any]) -> bool:
        """Returns whether a row has every field."""
        return all(any(values.get(name) is not None for name in names) for names in self.fields)


def format_of(values: Mapping[str, Any]) -> str | None:
    """Returns the format of a row by the fields that it has; None if it has those of none."""
    return next((name for name, one in _FORMATS.items() if one.fits(values)), None)


def chat_row(row: Row, row_format: str = "auto") -> ChatRow:
    """Reads a row.

    Args:
        row: The row.
        row_format: The name of its format, or `auto`.

    Raises:
        DataError: The row is of no format, or breaks the rules of its format; the message says where it stands.
    """
    name = format_of(row.values) if row_format == "auto" else row_format
    if name is not None and name not in _FORMATS:
        raise DataError(
            f"`data.row_format` must be one of auto, {', '.join(_FORMATS)} for conversations, got {row_format!r}\n"
            "hint: `llm dpo` and `llm reward` learn from preferences"
        )
    if name is None or not _FORMATS[name].fits(row.values):
        raise DataError(f"{row.where}: {_no_format(row.values, row_format)}")
    try:
        return _FORMATS[name].read(row.values)
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from None


def _no_format(values: Mapping[str, Any], row_format: str) -> str:
    there = ", ".join(f"`{name}`" for name, value in values.items() if value is not None) or "none"
    wanted = {name: one for name, one in _FORMATS.items() if row_format in ("auto", name)}
    ways = ", or ".join(
        " and ".join("/".join(f"`{word}`" for word in names) for names in one.fields) for one in wanted.values()
    )
    return f"a row must have the fields {ways}; those there are {there}"


def _messages(values: Mapping[str, Any]) -> ChatRow:
    return ChatRow(checked_messages(listed("messages", values["messages"])), named_options(values))


def _conversations(values: Mapping[str, Any]) -> ChatRow:
    turns = listed("conversations", values["conversations"])
    messages = [
        turn if isinstance(turn, Mapping) and "role" in turn else _turn(turn, idx) for idx, turn in enumerate(turns)
    ]
    return ChatRow(checked_messages([*named_system(values), *messages]), named_options(values))


def _turn(turn: Any, idx: int) -> Mapping[str, Any]:
    """Returns one turn of ShareGPT's form as a message."""
    speaker = turn.get("from") if isinstance(turn, Mapping) else None
    if not isinstance(speaker, str) or speaker not in _SPEAKERS:
        allowed = ", ".join(f"`{name}`" for name in _SPEAKERS)
        raise DataError(f"turn {idx + 1}: `from` must be one of {allowed}, got {speaker!r}")
    role, value = _SPEAKERS[speaker], turn.get("value")
    if role != "function_call":
        return {"role": role, "content": value}
    try:
        call = msgspec.json.decode(value)
        return {"role": "assistant", "tool_calls": [{"type": "function", "function": dict(call)}]}
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        raise DataError(f"turn {idx + 1}: the value of `function_call` must be a JSON object: {error}") from None


def _prompt(values: Mapping[str, Any]) -> ChatRow:
    prompt, completion = values["prompt"], _first(values, "completion", "response")
    if isinstance(prompt, str) and isinstance(completion, str):
        messages = [*named_system(values), _user(prompt), {"role": "assistant", "content": completion}]
        plain = (prompt, completion) if len(messages) == 2 else None
        return ChatRow(checked_messages(messages), named_options(values), plain)
    turns = [
        *([_user(prompt)] if isinstance(prompt, str) else listed("prompt", prompt)),
        *(
            [{"role": "assistant", "content": completion}]
            if isinstance(completion, str)
            else listed("completion", completion)
        ),
    ]
    return ChatRow(checked_messages(turns), named_options(values))


def _instruction(values: Mapping[str, Any]) -> ChatRow:
    parts = [values["instruction"], _first(values, "input", "context")]
    output = _first(values, "output", "response")
    for name, value in (("instruction", parts[0]), ("input", parts[1]), ("output", output)):
        if not isinstance(value, str | None):
            raise DataError(f"`{name}` must be text, got {value!r}")
    prompt = "\n\n".join(part for part in parts if part)
    messages = [*named_system(values), *_history(values), _user(prompt), {"role": "assistant", "content": output}]
    plain = (f"{prompt}\n\n", output) if len(messages) == 2 else None
    return ChatRow(checked_messages(messages), named_options(values), plain)


def _history(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the earlier questions and answers of a row."""
    found: list[Mapping[str, Any]] = []
    pairs = values.get("history") or []
    if not isinstance(pairs, list):
        raise DataError(f"`history` must be a list, got {pairs!r}")
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(f"`history` must be pairs of a question and an answer, got {pair!r}")
        found += [_user(pair[0]), {"role": "assistant", "content": pair[1]}]
    return found


def _user(content: Any) -> Mapping[str, Any]:
    return {"role": "user", "content": content}


def named_system(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the system message that a row has in a field of its own."""
    return [{"role": "system", "content": values["system"]}] if values.get("system") else []


def _first(values: Mapping[str, Any], *names: str) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)


def named_options(values: Mapping[str, Any]) -> ConversationOptions:
    """Returns what a row gives the template besides its messages; Parquet files often hold tools as JSON text."""
    found = ConversationOptions()
    if tools := _parsed("tools", values.get("tools")):
        found["tools"] = [tool if isinstance(tool, Mapping) and "function" in tool else _tool(tool) for tool in tools]
    if documents := _parsed("documents", values.get("documents")):
        found["documents"] = documents
    if variables := values.get("chat_template_kwargs"):
        if not isinstance(variables, Mapping):
            raise DataError(f"`chat_template_kwargs` must be an object, got {variables!r}")
        found["variables"] = {name: value for name, value in variables.items() if value is not None}
    return found


def _tool(function: Any) -> Mapping[str, Any]:
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f"`tools` must be functions with a `name`, got {function!r}")
    return {"type": "function", "function": function}


def _parsed(name: str, value: Any) -> Any:
    if isinstance(value, str) and value.strip():
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise DataError(f"`{name}` must be a list or its JSON text: {error}") from None
    if value and not isinstance(value, list):
        raise DataError(f"`{name}` must be a list, got {value!r}")
    return value


_FORMATS = {
    "messages": _Format((("messages",),), _messages),
    "conversations": _Format((("conversations",),), _conversations),
    "prompt": _Format((("prompt",), ("completion", "response")), _prompt),
    "instruction": _Format((("instruction",), ("output", "response")), _instruction),
}
