"""What a request of `/v1/messages` may hold: roles, blocks, tools and keys, the others refused by their names."""

from typing import Any

from llm.serving.errors import bad_request, unsupported
from llm.serving.forms import RequestForm, objects_in
from llm.serving.known_keys import Refused
from llm.serving.parsing import shown
from llm.serving.protocol.messages import CHAT_FIELD_NAMES, CountTokensRequest, MessagesRequest

_ROLES = ("user", "assistant", "system")
_QUOTED = ("text", "document", "search_result")
_BLOCKS = {
    "user": (*_QUOTED, "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}

_REFUSED = {
    "compaction": Refused("shorten the conversation"),
    "container": Refused("offer what the container would do as one of `tools`"),
    "fallbacks": Refused("", ([],)),
    "fallback_credit_token": Refused(""),
    "mcp_servers": Refused("call the servers in the client, and offer their tools as `tools`", ([],)),
    "thread": Refused("send the whole conversation as `messages`"),
}
# Keys that leave the answer as it is: of billing, routing and caching.
_ACCEPTED = frozenset(
    {
        "anthropic_version",
        "betas",
        "billing_policy",
        "cache_control",
        "diagnostics",
        "inference_geo",
        "metadata",
        "service_tier",
        "speed",
        "user_profile_id",
        "workspace_id",
    }
)
_ALLOWED = {
    "tool_choice.type": ("auto", "any", "tool", "none"),
    "thinking.type": ("enabled", "adaptive", "between_tools", "disabled"),
    "format.type": ("json_schema",),
    "source.type": ("text", "content"),
}


def _check(raw: dict[str, Any]) -> None:
    """Refuses roles, blocks and tools that the server doesn't have by their names."""
    for where, message in objects_in(raw, "messages"):
        _check_message(message, where)
    for where, tool in objects_in(raw, "tools"):
        kind = tool.get("type")
        if kind not in (None, "custom"):
            problem = f"`{where}.type` {shown(kind)} is not supported: only tools that the client defines are"
            raise unsupported(f"{problem}\nhint: give the tool a name and an `input_schema`", f"{where}.type")


def _check_message(message: dict[str, Any], where: str) -> None:
    role = message.get("role", "user")
    if role not in _ROLES:
        raise bad_request(
            f"`{where}.role` must be one of {', '.join(_ROLES)}, got {shown(role)}", param=f"{where}.role"
        )
    for place, block in objects_in(message, "content", where):
        _check_block(block, _BLOCKS[role], place)
        if block.get("type") == "tool_result":
            for inner, part in objects_in(block, "content", place):
                _check_block(part, _QUOTED, inner)


def _check_block(block: dict[str, Any], allowed: tuple[str, ...], where: str) -> None:
    kind = block.get("type")
    if kind not in allowed:
        message = f"`{where}.type` {shown(kind)} is not supported here; allowed: {', '.join(allowed)}"
        raise unsupported(message, f"{where}.type")
    source = block.get("source")
    if kind == "document" and isinstance(source, dict) and source.get("type") not in _ALLOWED["source.type"]:
        message = f"`{where}.source.type` {shown(source.get('type'))} is not supported; allowed: text, content"
        raise unsupported(f"{message}\nhint: send the document's text", f"{where}.source.type")


MESSAGES_FORM = RequestForm(
    request_type=MessagesRequest,
    refused=_REFUSED,
    names=CHAT_FIELD_NAMES,
    accepted=_ACCEPTED,
    allowed=_ALLOWED,
    check=_check,
)
COUNT_TOKENS_FORM = RequestForm(
    request_type=CountTokensRequest,
    refused=_REFUSED,
    names=CHAT_FIELD_NAMES,
    # What only the answer depends on: clients send the same body to both endpoints.
    accepted=_ACCEPTED.union(MessagesRequest.__struct_fields__),
    allowed=_ALLOWED,
    check=_check,
)
