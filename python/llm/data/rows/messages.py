"""Messages of rows, checked and in the form that the chat path of inference gets them."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from llm.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")
_REASONING = ("reasoning_content", "reasoning", "thinking")


# Fields that hold no plain text; others may be the text of one message.
_ONLY_LISTS = ("messages", "conversations")


def listed(name: str, value: Any) -> list[Any]:
    """Returns a field that is a list, or the JSON text of one.

    Raises:
        DataError: It is neither.
    """
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError):
            raise DataError(f"`{name}` must be a list of messages, got text") from None
    if not isinstance(value, list) or not value:
        or_text = "" if name in _ONLY_LISTS else "text or "
        raise DataError(f"`{name}` must be {or_text}a list of at least one message, got {value!r:.99}")
    return value


def checked_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns messages as a chat template gets them in serving.

    `developer` becomes `system`, parts of text become one text, arguments of calls become mappings, and the result of a
    call gets the name of its function. Keys without a value are left out.

    Raises:
        DataError: A message breaks the rules, or none is the assistant's.
    """
    found = checked_turns(messages)
    if not any(message["role"] == "assistant" for message in found):
        roles = ", ".join(message["role"] for message in found)
        raise DataError(f"a row must have a turn of the assistant, which is what is learnt; its roles are {roles}")
    return found


def checked_turns(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns messages as `checked_messages` does, whoever speaks in them.

    Raises:
        DataError: A message breaks the rules.
    """
    names: dict[str, str] = {}
    return [_checked(message, idx, names) for idx, message in enumerate(messages)]


def _checked(message: Any, idx: int, names: dict[str, str]) -> dict[str, Any]:
    where = f"message {idx + 1}"
    if not isinstance(message, Mapping):
        raise DataError(f"{where} must be an object with `role` and `content`, got {message!r}")
    role = message.get("role")
    if role not in ROLES:
        allowed = ", ".join(f"`{name}`" for name in ROLES)
        raise DataError(f"{where}: `role` must be one of {allowed}, got {role!r}")
    found = {name: value for name, value in message.items() if value is not None}
    found["role"] = "system" if role == "developer" else role
    if calls := found.get("tool_calls"):
        if not isinstance(calls, list):
            raise DataError(f"{where}: `tool_calls` must be a list, got {calls!r}")
        found["tool_calls"] = [_call(call, where) for call in calls]
        names.update((str(call["id"]), call["function"]["name"]) for call in found["tool_calls"] if "id" in call)
    elif found.pop("content", None) is None and not (role == "assistant" and any(name in found for name in _REASONING)):
        raise DataError(f"{where} of role `{role}` must have `content`, got none")
    found["content"] = _text(message.get("content"), where)
    if role == "tool" and "name" not in found and (call_id := str(found.get("tool_call_id"))) in names:
        found["name"] = names[call_id]
    return found


def _text(content: Any, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [None]
    texts = [part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    if len(texts) < len(parts):
        raise DataError(f"{where}: `content` must be text or a list of parts with `text`, got {content!r}")
    return "\n".join(texts)  # as serving joins them


def _call(call: Any, where: str) -> dict[str, Any]:
    """Returns a call whose arguments are a mapping."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f"{where}: `tool_calls` must be calls of a `function` with a `name`, got {call!r}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments or "{}")
        except msgspec.DecodeError as error:
            raise DataError(f"{where}: `arguments` of a call must be a JSON object: {error}") from None
    if not isinstance(arguments, Mapping | None):
        raise DataError(f"{where}: `arguments` of a call must be a JSON object, got {arguments!r}")
    kept = {name: value for name, value in call.items() if value is not None and name != "function"}
    return {**kept, "type": "function", "function": {"name": function["name"], "arguments": dict(arguments or {})}}
