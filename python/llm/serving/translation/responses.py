"""Requests of `/v1/responses` as chat requests, and the items that they add to a conversation."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from llm.serving.protocol.chat import ChatCompletionRequest
from llm.serving.protocol.response_items import (
    AllowedTools,
    FunctionCall,
    FunctionCallOutput,
    FunctionTool,
    InputMessage,
    InputText,
    ItemReference,
    JsonObjectFormat,
    JsonSchemaFormat,
    KeptItem,
    NamedTool,
    OutputText,
    Reasoning,
    Refusal,
)
from llm.serving.protocol.responses import LOGPROBS, ResponsesRequest


def chat_body(request: ResponsesRequest, items: Sequence[KeptItem]) -> dict[str, Any]:
    """Returns the body of the chat request that has the same prompt and parameters.

    Args:
        request: The request.
        items: The whole conversation: items of the responses before it, then those of the request.
    """
    own = {"tools", "tool_choice", "top_logprobs"}
    shared = set(request.__struct_fields__) & set(ChatCompletionRequest.__struct_fields__) - own
    body = {name: value for name in shared if (value := getattr(request, name)) is not None}
    body["messages"] = _chat_messages(request.instructions, items)
    body |= _tool_fields(request) | _text_fields(request)
    if request.top_logprobs or LOGPROBS in (request.include or ()):
        body.update(logprobs=True, top_logprobs=request.top_logprobs or 0)
    body.update(max_tokens=request.max_output_tokens)
    # The answer is stored here, if at all; the chat endpoint knows no such field.
    return {name: value for name, value in body.items() if name not in ("store", "metadata", "user")}


def full_name(namespace: str, name: str) -> str:
    """Returns the name under which the model knows a function of a namespace."""
    return f"{namespace}.{name}" if namespace else name


def functions(request: ResponsesRequest) -> list[FunctionTool]:
    """Returns the request's functions; those of a namespace have it in their names."""
    found: list[FunctionTool] = []
    for tool in request.tools or ():
        if isinstance(tool, FunctionTool):
            found.append(tool)
        else:
            found += (msgspec.structs.replace(each, name=full_name(tool.name, each.name)) for each in tool.tools)
    return found


def input_items(request: ResponsesRequest, response_id: str) -> list[KeptItem | ItemReference]:
    """Returns the request's own items, each with an id; one text is one message of the user."""
    if isinstance(request.input, str):
        text = InputText(text=request.input)
        return [InputMessage(role="user", content=[text], id=_input_id(response_id, 0), status="completed")]
    return [_named(item, _input_id(response_id, at)) for at, item in enumerate(request.input)]


def response_of_item(item_id: str) -> str | None:
    """Returns the id of the response that an item's id was made for, or None for other ids."""
    _, _, rest = item_id.partition("_")
    owner, separator, _ = rest.rpartition("_")
    return f"resp_{owner}" if separator else None


def item_id(prefix: str, response_id: str, place: str) -> str:
    """Returns an item's id, which holds the id of its response, so that references need no index."""
    return f"{prefix}_{response_id.removeprefix('resp_')}_{place}"


def _input_id(response_id: str, position: int) -> str:
    return item_id("in", response_id, f"i{position}")


def _named(item: KeptItem | ItemReference, own_id: str) -> KeptItem | ItemReference:
    """Returns an item with an id and a status; a message's text becomes a part."""
    if isinstance(item, ItemReference):
        return item
    named = msgspec.structs.replace(item, id=item.id or own_id, status=item.status or "completed")
    if isinstance(named, InputMessage) and isinstance(named.content, str):
        kind = OutputText if named.role == "assistant" else InputText
        return msgspec.structs.replace(named, content=[kind(text=named.content)])
    return named


def _tool_fields(request: ResponsesRequest) -> dict[str, Any]:
    tools, choice = functions(request), request.tool_choice
    if isinstance(choice, AllowedTools):
        names = {tool.name for tool in choice.tools}
        tools, choice = [tool for tool in tools if tool.name in names], choice.mode
    if isinstance(choice, NamedTool):
        return {
            "tools": [_chat_tool(tool) for tool in tools],
            "tool_choice": {"type": "function", "function": {"name": choice.name}},
        }
    if not tools:
        return {} if choice in (None, "auto", "none") else {"tool_choice": choice}
    return {"tools": [_chat_tool(tool) for tool in tools]} | ({} if choice is None else {"tool_choice": choice})


def _chat_tool(tool: FunctionTool) -> dict[str, Any]:
    function = {"parameters": tool.parameters, "description": tool.description, "strict": tool.strict}
    given = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": {"name": tool.name} | given}


def _text_fields(request: ResponsesRequest) -> dict[str, Any]:
    """Returns the fields that say how to reason and which form the answer has."""
    fields: dict[str, Any] = {}
    if request.reasoning is not None and request.reasoning.effort is not None:
        fields["reasoning_effort"] = request.reasoning.effort
    if request.text is None:
        return fields
    if request.text.verbosity is not None:
        fields["verbosity"] = request.text.verbosity
    match request.text.format:
        case JsonObjectFormat():
            fields["response_format"] = {"type": "json_object"}
        case JsonSchemaFormat() as form:
            schema = {name: value for name, value in msgspec.to_builtins(form).items() if name != "type"}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return fields


def _chat_messages(instructions: str | None, items: Iterable[KeptItem]) -> list[dict[str, Any]]:
    """Returns the conversation as chat messages; the assistant's items in a row are one message."""
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    for item in items:
        match item:
            case InputMessage(role="assistant"):
                _assistant(messages, content=_text(item.content))
            case InputMessage(role="system" | "developer"):
                _instruct(messages, item.role, _text(item.content))
            case InputMessage():
                messages.append({"role": item.role, "content": _text(item.content)})
            case Reasoning():
                texts = [part.text for part in item.content or item.summary]
                _assistant(messages, reasoning_content="\n\n".join(texts))
            case FunctionCall():
                function = {"name": full_name(item.namespace or "", item.name), "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                _assistant(messages, tool_calls=[call])
            case FunctionCallOutput():
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
    return messages


def _instruct(messages: list[dict[str, Any]], role: str, text: str) -> None:
    """Adds to the instructions before, if there are any: many templates take only one message of the system."""
    if messages and messages[-1]["role"] in ("system", "developer"):
        messages[-1]["content"] += f"\n\n{text}"
    else:
        messages.append({"role": role, "content": text})


def _assistant(messages: list[dict[str, Any]], **fields: Any) -> None:
    """Adds fields to the assistant's turn that the conversation ends with, or begins such a turn."""
    last = messages[-1] if messages else None
    if last is None or last["role"] != "assistant":
        last = {"role": "assistant", "content": ""}
        messages.append(last)
    for name, value in fields.items():
        last[name] = _joined(last[name], value) if last.get(name) else value


def _joined(before: Any, after: Any) -> Any:
    return before + after if isinstance(before, list) else "\n\n".join((before, after))


def _text(content: str | Iterable[InputText | OutputText | Refusal]) -> str:
    if isinstance(content, str):
        return content
    return "\n\n".join(part.refusal if isinstance(part, Refusal) else part.text for part in content)
