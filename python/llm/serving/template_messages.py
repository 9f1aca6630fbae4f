"""Converts the messages of a request to those that chat templates expect."""

import hashlib
import string
from collections.abc import Sequence
from typing import Any

from llm.serving.answers.parts import MISTRAL_ID_CHARS
from llm.serving.protocol.chat import ChatMessage
from llm.serving.protocol.tools import SentToolCall
from llm.serving.tool_checks import sent_arguments

_MISTRAL_LETTERS = frozenset(string.ascii_letters + string.digits)


def template_messages(messages: Sequence[ChatMessage], format: str | None) -> list[dict[str, Any]]:
    """Returns the messages with arguments of calls as mappings, and results of calls with their function's name.

    Args:
        messages: The messages of a request.
        format: The model's format of calls, whose templates may want ids of calls in their own form.

    Raises:
        APIError: 400 if the arguments of a call are not a JSON object.
    """
    names: dict[str, str] = {}
    rendered = []
    for index, message in enumerate(messages):
        calls = message.tool_calls or ()
        names.update((call.id, call.function.name) for call in calls if call.id is not None)
        rendered.append(_template_message(message, index, names, format))
    return rendered


def _template_message(message: ChatMessage, index: int, names: dict[str, str], format: str | None) -> dict[str, Any]:
    # `developer` is OpenAI's newer name for `system`; templates know only the old name.
    role = "system" if message.role == "developer" else message.role
    rendered: dict[str, Any] = {"role": role, "content": message.text}
    calls = [
        _template_call(call, f"messages[{index}].tool_calls[{at}]", format)
        for at, call in enumerate(message.tool_calls or ())
    ]
    call_id = message.tool_call_id
    extra = {
        "name": message.name or (names.get(call_id or "") if role == "tool" else None),
        "tool_calls": calls,
        "tool_call_id": None if call_id is None else _call_id(call_id, format),
        "reasoning_content": message.reasoning_content or message.reasoning,
    }
    return rendered | {name: value for name, value in extra.items() if value}


def _template_call(call: SentToolCall, where: str, format: str | None) -> dict[str, Any]:
    arguments = sent_arguments(call.function, f"{where}.function.arguments")
    rendered = {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}
    return rendered if call.id is None else {"id": _call_id(call.id, format), **rendered}


def _call_id(call_id: str, format: str | None) -> str:
    """Returns the id; in the templates of Mistral's models, another id always has the same 9 letters."""
    if format != "mistral" or (len(call_id) == MISTRAL_ID_CHARS and _MISTRAL_LETTERS.issuperset(call_id)):
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:MISTRAL_ID_CHARS]
