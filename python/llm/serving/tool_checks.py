"""Checks of a chat request's tools, and of the messages that belong to them, beyond the types of its fields."""

import json
from typing import Any

import msgspec

from llm.serving.errors import APIError, bad_request
from llm.serving.protocol.chat import ChatCompletionRequest
from llm.serving.protocol.tools import NamedTool, SentFunctionCall

_SHOWN_CHARS = 80


def tool_problem(request: ChatCompletionRequest) -> APIError | None:
    """Returns the first problem of a request's messages and tools."""
    for index, message in enumerate(request.messages):
        if message.content is None and not message.may_lack_content:
            param = f"messages[{index}].content"
            return bad_request(f"`{param}` is required", param=param, code="missing_required_parameter")
    return _choice_problem(request)


def sent_arguments(function: SentFunctionCall, param: str) -> dict[str, Any]:
    """Returns the arguments of a call that a client sent back.

    Raises:
        APIError: 400 if they are not a JSON object.
    """
    if isinstance(function.arguments, dict):
        return function.arguments
    try:
        arguments = msgspec.json.decode(function.arguments or "{}")
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        arguments = None
    if isinstance(arguments, dict):
        return arguments
    shown = json.dumps(function.arguments[:_SHOWN_CHARS], ensure_ascii=False)
    raise bad_request(f"`{param}` must be the text of a JSON object, got {shown}", param=param)


def _choice_problem(request: ChatCompletionRequest) -> APIError | None:
    choice = request.tool_choice
    if choice in (None, "none", "auto"):
        return None
    if not request.tools:
        return bad_request("`tool_choice` is only allowed with `tools`", param="tool_choice")
    names = [tool.function.name for tool in request.tools]
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        named = f"`tool_choice` must name one of `tools` ({', '.join(names)}), got {choice.function.name}"
        return bad_request(named, param="tool_choice")
    return None
