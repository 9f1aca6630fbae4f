"""What a request of `/v1/responses` may hold: items, tools and keys, the others refused by their names."""

from typing import Any

from llm.serving.errors import bad_request, unsupported
from llm.serving.forms import RequestForm, objects_in
from llm.serving.known_keys import Refused
from llm.serving.parsing import shown
from llm.serving.protocol.responses import CHAT_FIELD_NAMES, INCLUDABLE, ResponsesRequest

_ITEMS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")
_ROLES = ("user", "assistant", "system", "developer")
_CONTENT = ("input_text", "output_text", "refusal")
_CHOICES = ("none", "auto", "required")

# Keys of this API that ask for what this server doesn't have.
_REFUSED = {
    "context_management": Refused("shorten the conversation", ([],)),
    "conversation": Refused("send `previous_response_id`"),
    "image": Refused("the model reads text only"),
    "moderation": Refused(""),
    "prompt": Refused("send the prompt's text as `instructions` and `input`"),
}
# Keys that leave the answer as it is: of billing, routing and caching.
_ACCEPTED = frozenset(
    {
        "access_programs",
        "background_options",
        "client_metadata",
        "prompt_cache_options",
        "prompt_cache_retention",
        "stream_options",
    }
)
_ALLOWED = {
    "format.type": ("text", "json_object", "json_schema"),
    "truncation": ("auto", "disabled"),
    "verbosity": ("low", "medium", "high"),
    "effort": ("none", "minimal", "low", "medium", "high", "xhigh", "max"),
    "status": ("in_progress", "completed", "incomplete"),
    "mode": ("auto", "required"),
}


def _check(raw: dict[str, Any]) -> None:
    """Refuses items and tools that the server doesn't have by their names, and names the types that may be left out."""
    for where, item in objects_in(raw, "input"):
        _check_item(item, where)
    for where, tool in objects_in(raw, "tools"):
        _check_tool(tool, ("function", "namespace"), where)
    _check_choice(raw.get("tool_choice"))
    include = raw.get("include")
    for position, name in enumerate(include if isinstance(include, list) else ()):
        if name not in INCLUDABLE:
            where = f"include[{position}]"
            raise bad_request(f"`{where}` must be one of {', '.join(INCLUDABLE)}, got {shown(name)}", param=where)


def _check_tool(tool: dict[str, Any], allowed: tuple[str, ...], where: str) -> None:
    kind = tool.get("type")
    if kind not in allowed:
        message = f"`{where}.type` {shown(kind)} is not supported; allowed: {', '.join(allowed)}"
        hint = "hint: offer what the tool does as a function that the client runs"
        raise unsupported(f"{message}\n{hint}", f"{where}.type")
    if kind == "namespace":
        for inner, each in objects_in(tool, "tools", where):
            _check_tool(each, ("function",), inner)


def _check_choice(choice: object) -> None:
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if isinstance(choice, dict) and kind not in ("function", "allowed_tools"):
        message = f"`tool_choice.type` {shown(kind)} is not supported; allowed: function, allowed_tools"
        raise unsupported(message, "tool_choice.type")
    if isinstance(choice, str) and choice not in _CHOICES:
        message = f"`tool_choice` must be one of {', '.join(_CHOICES)}, or an object, got {shown(choice)}"
        raise bad_request(message, param="tool_choice")


def _check_item(item: dict[str, Any], where: str) -> None:
    if item.get("type") is None:
        item["type"] = "message" if "role" in item else "item_reference"
    kind = item["type"]
    if kind not in _ITEMS:
        message = f"`{where}.type` {shown(kind)} is not supported; allowed: {', '.join(_ITEMS)}"
        raise unsupported(message, f"{where}.type")
    if kind == "message" and item.get("role") not in _ROLES:
        message = f"`{where}.role` must be one of {', '.join(_ROLES)}, got {shown(item.get('role'))}"
        raise bad_request(message, param=f"{where}.role")
    _check_content(item, "content", _CONTENT if kind == "message" else ("reasoning_text",), where)
    _check_content(item, "output", ("input_text",), where)


def _check_content(item: dict[str, Any], field: str, allowed: tuple[str, ...], where: str) -> None:
    for place, part in objects_in(item, field, where):
        if part.get("type") not in allowed:
            message = f"`{place}.type` {shown(part.get('type'))} is not supported; allowed: {', '.join(allowed)}"
            raise unsupported(message, f"{place}.type")


RESPONSES_FORM = RequestForm(
    request_type=ResponsesRequest,
    refused=_REFUSED,
    names=CHAT_FIELD_NAMES,
    accepted=_ACCEPTED,
    allowed=_ALLOWED,
    check=_check,
)
