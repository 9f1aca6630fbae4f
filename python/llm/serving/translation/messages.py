"""Requests of `/v1/messages` as chat requests."""

from collections.abc import Iterable, Iterator
from typing import Any

from llm.serving.errors import bad_request
from llm.serving.protocol.chat import ChatCompletionRequest
from llm.serving.protocol.common import encoder
from llm.serving.protocol.messages import (
    AnyToolChoice,
    AutoToolChoice,
    ContentSource,
    CountTokensRequest,
    DisabledThinking,
    DocumentBlock,
    InputMessage,
    MessagesRequest,
    NamedToolChoice,
    NoToolChoice,
    QuotedBlock,
    RedactedThinkingBlock,
    SearchResultBlock,
    TextBlock,
    TextSource,
    ThinkingBlock,
    Tool,
    ToolResultBlock,
    ToolUseBlock,
)

# Claude Code opens the system prompt with a line that differs in every request: it would defeat the prefix cache.
_BILLING_PREFIX = "x-anthropic-billing-header:"


def chat_body(request: CountTokensRequest) -> dict[str, Any]:
    """Returns the body of the chat request that has the same prompt and parameters.

    Raises:
        APIError: 400 if no message has content for the model.
    """
    shared = set(request.__struct_fields__) & set(ChatCompletionRequest.__struct_fields__)
    body = {name: value for name in shared if (value := getattr(request, name)) is not None}
    body["messages"] = _chat_messages(request)
    if not body["messages"]:
        raise bad_request("`messages` must contain a block that the model reads, got none", param="messages")
    if body["messages"][-1]["role"] == "assistant":
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    body |= _tool_fields(request) | _thinking_fields(request)
    if isinstance(request, MessagesRequest):
        body.update(max_tokens=request.max_tokens, stop=request.stop_sequences)
    return body


def _tool_fields(request: CountTokensRequest) -> dict[str, Any]:
    fields: dict[str, Any] = {"tools": [_chat_tool(tool) for tool in request.tools or ()] or None}
    match request.tool_choice:
        case NoToolChoice():
            return fields | {"tool_choice": "none"}
        case AutoToolChoice():
            fields["tool_choice"] = "auto"
        case AnyToolChoice():
            fields["tool_choice"] = "required"
        case NamedToolChoice(name=name):
            fields["tool_choice"] = {"type": "function", "function": {"name": name}}
        case None:
            return fields | {"tool_choice": None}
    if request.tool_choice.disable_parallel_tool_use:
        fields["parallel_tool_calls"] = False
    return fields


def _chat_tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function if tool.strict is None else function | {"strict": tool.strict}}


def _thinking_fields(request: CountTokensRequest) -> dict[str, Any]:
    """Returns the fields that reach the template, and the form of the answer."""
    fields: dict[str, Any] = {}
    if request.thinking is not None:
        enabled = not isinstance(request.thinking, DisabledThinking)
        variables = {"enable_thinking": enabled, "thinking": enabled}  # Qwen's name and DeepSeek's
        fields["chat_template_kwargs"] = variables | (request.chat_template_kwargs or {})
    config = request.output_config
    if config is not None and config.effort is not None:
        fields["reasoning_effort"] = config.effort
    form = (config.format if config is not None else None) or request.output_format
    if form is not None:
        fields["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": form.schema, "strict": True},
        }
    return fields


def _chat_messages(request: CountTokensRequest) -> list[dict[str, Any]]:
    """Returns the turns as chat messages, with neighbours of one role joined, as Anthropic's API reads them."""
    joined: list[dict[str, Any]] = []
    for message in _turns(request):
        last = joined[-1] if joined else None
        if last is not None and last["role"] == message["role"] != "tool" and "tool_calls" not in last:
            last["content"] = "\n\n".join(filter(None, (last["content"], message["content"])))
            last |= {name: value for name, value in message.items() if name not in ("role", "content")}
        else:
            joined.append(message)
    return joined


def _turns(request: CountTokensRequest) -> Iterator[dict[str, Any]]:
    if request.system:
        blocks = [TextBlock(text=request.system)] if isinstance(request.system, str) else request.system
        yield {"role": "system", "content": _text(blocks)}
    for message in request.messages:
        if isinstance(message.content, str):
            yield {"role": message.role, "content": message.content}
        elif message.role == "assistant":
            yield _assistant_turn(message)
        else:
            yield from _user_turns(message)


def _user_turns(message: InputMessage) -> Iterator[dict[str, Any]]:
    """Yields the results of tools and the text of a turn in their order."""
    texts: list[QuotedBlock] = []
    for block in message.content:
        if not isinstance(block, ToolResultBlock):
            texts.append(block)  # type: ignore[arg-type] # other kinds were refused for this role
            continue
        if texts:
            yield {"role": message.role, "content": _text(texts)}
            texts = []
        content = block.content if isinstance(block.content, str) else _text(block.content or ())
        yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}
    if texts:
        yield {"role": message.role, "content": _text(texts)}


def _assistant_turn(message: InputMessage) -> dict[str, Any]:
    texts: list[QuotedBlock] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in message.content:
        match block:
            case ThinkingBlock(thinking=thinking):
                thoughts.append(thinking)
            case ToolUseBlock():
                function = {"name": block.name, "arguments": encoder.encode(block.input).decode()}
                calls.append({"id": block.id, "type": "function", "function": function})
            case RedactedThinkingBlock():
                pass
            case TextBlock():
                texts.append(block)
    turn: dict[str, Any] = {"role": "assistant", "content": _text(texts)}
    if thoughts:
        turn["reasoning_content"] = "\n\n".join(thoughts)
    return turn | {"tool_calls": calls} if calls else turn


def _text(blocks: Iterable[QuotedBlock]) -> str:
    """Returns blocks as one text, each a paragraph of its own."""
    texts = (_block_text(block) for block in blocks)
    return "\n\n".join(text for text in texts if not text.startswith(_BILLING_PREFIX))


def _block_text(block: QuotedBlock) -> str:
    match block:
        case TextBlock(text=text):
            return text
        case SearchResultBlock():
            return "\n".join((block.title, block.source, _text(block.content)))
        case DocumentBlock(source=ContentSource(content=str(content))):
            body = content
        case DocumentBlock(source=ContentSource(content=list(content))):
            body = _text(content)
        case DocumentBlock(source=TextSource(data=body)):
            pass
    return "\n".join(filter(None, (block.title, block.context, body)))
