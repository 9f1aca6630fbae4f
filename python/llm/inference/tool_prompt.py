"""Tools for chat templates that render none: described in the system message, and called in the format of Hermes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

# The formats in which tools are described.
DESCRIBED_FORMATS = ("hermes", "json")

_INTRODUCTION = """\
You can call functions. Each line is the JSON signature of one function:
<tools>
{tools}
</tools>

To call a function, answer with its name and arguments as a JSON object, and nothing after it:
{example}"""
_CALL = '{"name": "<name>", "arguments": {…}}'


def described(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], format: str
) -> list[dict[str, Any]]:
    """Returns a conversation in plain roles: tools in the system message, calls and their results as texts.

    Args:
        messages: The conversation.
        tools: The tools, as in OpenAI's API.
        format: The format of calls, one of `DESCRIBED_FORMATS`.
    """
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = _INTRODUCTION.format(tools=lines, example=_framed(_CALL, format))
    plain = [_plain(message, format) for message in messages]
    if plain and plain[0]["role"] == "system":
        return [plain[0] | {"content": f"{plain[0]['content']}\n\n{text}"}, *plain[1:]]
    return [{"role": "system", "content": text}, *plain]


def without_tools(messages: Sequence[Mapping[str, Any]], format: str) -> list[dict[str, Any]]:
    """Returns a conversation in plain roles, with calls and their results as texts."""
    return [_plain(message, format) for message in messages]


def _plain(message: Mapping[str, Any], format: str) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    texts = [_framed(json.dumps(_named(call["function"]), ensure_ascii=False), format) for call in calls]
    content = "\n".join([message.get("content") or "", *texts]).strip()
    return {name: value for name, value in message.items() if name != "tool_calls"} | {"content": content}


def _named(function: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": function["name"], "arguments": function["arguments"]}


def _framed(call: str, format: str) -> str:
    return f"<tool_call>\n{call}\n</tool_call>" if format == "hermes" else call
