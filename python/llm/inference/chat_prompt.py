"""Conversations as token ids, with tools and calls in the form that the model's template expects."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llm.errors import ChatTemplateError, InvalidArgumentError
from llm.inference.answer_format import AnswerFormat
from llm.inference.parts import AnswerSetup, parameter_types
from llm.inference.tool_prompt import DESCRIBED_FORMATS, described, without_tools
from llm.tokenization import BaseTokenizer, ChatOptions, encode_chat
from llm.tokenization.chat import check_roles

Message = Mapping[str, Any]

# Number of tokens at a prompt's end in which the opening of its reasoning is looked for.
_TAIL_TOKENS = 16


def chat_ids(
    tokenizer: BaseTokenizer, messages: Sequence[Message], options: ChatOptions, form: AnswerFormat
) -> list[int]:
    """Returns a conversation as token ids.

    Arguments of calls reach the template as mappings, and as JSON texts if it fails with mappings.

    Raises:
        ChatTemplateError: The tokenizer has no chat template, or the template rejects the conversation.
        InvalidArgumentError: The model can't be told about tools.
    """
    check_roles(messages)
    error: ChatTemplateError | None = None
    for expected, inputs in template_forms(messages, options, form):
        try:
            return encode_chat(tokenizer, expected, **inputs)
        except ChatTemplateError as failed:
            error = error or failed
    assert error is not None  # noqa: S101 (there is at least one form)
    raise error


def template_forms(
    messages: Sequence[Message], options: ChatOptions, form: AnswerFormat
) -> Iterator[tuple[Sequence[Message], ChatOptions]]:
    """Yields the forms of a conversation that a template may accept, with its further inputs, best first.

    Training encodes conversations in the same forms, so that it sees the ids that serving sees.

    Raises:
        InvalidArgumentError: The model can't be told about tools.
    """
    tools = options.get("tools")
    if not form.renders_tools and (tools or any(_has_tools(message) for message in messages)):
        messages = _in_plain_roles(messages, tools, form)
        options = {**options, "tools": None}
    yield messages, options
    with_texts = [_with_text_arguments(message) for message in messages]
    if with_texts != list(messages):
        yield with_texts, options


def answer_setup(
    tokenizer: BaseTokenizer, token_ids: Sequence[int], options: ChatOptions, form: AnswerFormat
) -> AnswerSetup | None:
    """Returns how to split the answers to a prompt; None if they have no parts.

    Args:
        tokenizer: The model's tokenizer.
        token_ids: The prompt.
        options: The inputs of the template, whose tools may be called.
        form: How the model writes its answers.
    """
    tools = options.get("tools") or ()
    calls = form.calls if tools else None
    if calls is None and form.reasoning is None:
        return None
    return AnswerSetup(
        format=calls,
        reasoning=form.reasoning,
        starts_in_reasoning=form.reasoning is not None and _ends_with(tokenizer, token_ids, form.reasoning[0]),
        tools=parameter_types([tool["function"] for tool in tools]) if calls else {},
    )


def kept_special_ids(setup: AnswerSetup | None, form: AnswerFormat) -> tuple[int, ...]:
    """Returns the special tokens that mark the parts of an answer."""
    if setup is None:
        return ()
    return form.reasoning_ids if setup.format is None else (*form.reasoning_ids, *form.call_ids)


def _in_plain_roles(
    messages: Sequence[Message], tools: Sequence[Message] | None, form: AnswerFormat
) -> Sequence[Message]:
    if form.calls in DESCRIBED_FORMATS:
        return described(messages, tools, form.calls) if tools else without_tools(messages, form.calls)
    if not tools:
        return without_tools(messages, "hermes")
    raise InvalidArgumentError(
        "`tools` need a chat template that renders them, got a model whose template doesn't\n"
        "hint: serve it with `--tool-parser hermes`, which describes them in the system message, or train it with a "
        "`--chat-template` that renders them"
    )


def _has_tools(message: Message) -> bool:
    return message.get("role") == "tool" or bool(message.get("tool_calls"))


def _with_text_arguments(message: Message) -> Message:
    calls = message.get("tool_calls")
    return {**message, "tool_calls": [_with_text(call) for call in calls]} if calls else message


def _with_text(call: Message) -> Message:
    arguments = call["function"]["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": text}}


def _ends_with(tokenizer: BaseTokenizer, token_ids: Sequence[int], marker: str) -> bool:
    tail = b"".join(tokenizer.id_to_piece(token_id) for token_id in token_ids[-_TAIL_TOKENS:])
    return tail.rstrip().endswith(marker.encode())
