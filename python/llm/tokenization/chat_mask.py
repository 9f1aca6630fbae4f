"""Encodes conversations for training, with a mask of the tokens that the model learns to write."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from llm.errors import ChatTemplateError
from llm.tokenization.base import BaseTokenizer
from llm.tokenization.chat import ChatOptions, ConversationOptions, Message, render_any, tokenizer_template
from llm.tokenization.chat_sandbox import has_generation_blocks
from llm.tokenization.options import check_names

# Noncharacters, which Unicode reserves for internal use; valid text doesn't contain them.
_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))

_HINT = (
    "hint: enclose the assistant's part of the template in `{% generation %}` and `{% endgeneration %}`, which "
    "`transformers` supports too"
)


class ChatEncoding(msgspec.Struct, frozen=True, eq=False):
    """The token ids of a conversation and a mask of the assistant's tokens."""

    ids: NDArray[np.uint32]  # (T,)
    is_assistant: NDArray[np.bool_]  # (T,): tokens that the model must learn


class _Span(NamedTuple):
    """A range of characters in a text, from `start` to before `end`."""

    start: int
    end: int


def encode_chat_with_mask(
    tokenizer: BaseTokenizer,
    messages: Sequence[Message],
    *,
    template_name: str | None = None,
    **options: Unpack[ConversationOptions],
) -> ChatEncoding:
    """Returns the token ids of a conversation and a mask of the tokens that the assistant wrote.

    The ids equal those of `encode_chat` without a generation prompt, so training and serving see the same tokens. The
    mask of a turn begins after the text of the generation prompt and ends with the special token that ends the turn. It
    excludes text that the template writes after that token, such as a line end, because the model never generates it. A
    token that lies only partly in a turn is excluded too.

    `{% generation %}` blocks in the template mark turns exactly. Without them, a turn is the difference between the
    conversation up to the turn and the conversation before the turn with a generation prompt. A template that writes a
    turn differently once other messages follow is an error, unless only the turn's content changes, as in Qwen 3.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: The conversation; see `ChatTemplate.render`.
        template_name: Name of one of the tokenizer's templates; see `render_chat`.
        **options: Template inputs; see `ConversationOptions`.

    Raises:
        ChatTemplateError: Rendering failed (see `render_chat`), or the text of a turn can't be determined.
        InvalidArgumentError: Options contradict each other, or the tokenizer changes the text (see
            `encode_with_offsets`).
    """
    check_names(options, ConversationOptions)
    chat_options = cast(ChatOptions, {**options, "add_generation_prompt": False})
    template, chat_options = tokenizer_template(tokenizer, template_name, chat_options)
    conversation = _Conversation(template.source, messages, chat_options, template.render(messages, **chat_options))
    if has_generation_blocks(template.source):
        spans = conversation.generation_spans()
    else:
        spans = conversation.turn_spans(tuple(tokenizer.special_tokens))
    encoding = tokenizer.encode_with_offsets(conversation.text, allow_special=True)
    return ChatEncoding(encoding.ids, _inside(encoding.char_offsets, spans, len(conversation.text)))


class _Conversation(NamedTuple):
    """A conversation, its rendering options and the rendered text."""

    source: str
    messages: Sequence[Message]
    options: ChatOptions
    text: str

    def generation_spans(self) -> list[_Span]:
        """Returns the spans of `{% generation %}` blocks, even if text passes through macros, variables or filters."""
        opening, closing = _unused(self.text, 2)
        marked = render_any(self.source, self.messages, self.options, (opening, closing))
        if marked.replace(opening, "").replace(closing, "") != self.text:
            raise _torn_block()
        return _marked_spans(marked, opening, closing)

    def turn_spans(self, special_tokens: tuple[str, ...]) -> list[_Span]:
        """Returns the assistant's turns, found by the text that each adds to the conversation before it."""
        assistant = [index for index, message in enumerate(self.messages) if message["role"] == "assistant"]
        return [_without_rest(self.text, self._turn(index), special_tokens) for index in assistant]

    def _turn(self, index: int) -> _Span:
        try:
            before = self._render(self.messages[:index], add_generation_prompt=True)
            if not self.text.startswith(before):
                raise ChatTemplateError("the conversation doesn't begin with the text before the generation prompt")
            span = _Span(len(before), self._end(index))
        except ChatTemplateError as error:
            raise ChatTemplateError(f"{_cant_tell(index)}: {error}\n{_HINT}") from error
        if span.end < span.start:
            raise ChatTemplateError(f"{_cant_tell(index)}: the generation prompt is longer than the turn\n{_HINT}")
        return span

    def _end(self, index: int) -> int:
        through = self._render(self.messages[: index + 1])
        return len(through) if self.text.startswith(through) else self._end_by_content(index, through)

    def _end_by_content(self, index: int, through: str) -> int:
        """Returns the end of a turn that the template writes differently once other messages follow.

        The text after the turn's content must be the same in both cases.
        """
        (mark,) = _unused(self.text + through, 1)
        message = {**self.messages[index], "content": _with_mark(self.messages[index].get("content"), mark)}
        marked = [*self.messages[:index], message, *self.messages[index + 1 :]]
        alone = self._render(marked[: index + 1]).split(mark)
        whole = self._render(marked).split(mark)
        is_same = len(alone) == len(whole) == 2 and "".join(alone) == through and "".join(whole) == self.text
        if not is_same or not whole[1].startswith(alone[1]):
            raise ChatTemplateError("the template changes it once other messages follow")
        return len(whole[0]) + len(alone[1])

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        return render_any(self.source, messages, {**self.options, "add_generation_prompt": add_generation_prompt})


def _cant_tell(index: int) -> str:
    return f"the turn of message {index} can't be separated from the rest of the conversation"


def _unused(text: str, number: int) -> tuple[str, ...]:
    marks = tuple(mark for mark in _MARKS if mark not in text)[:number]
    if len(marks) < number:
        raise ChatTemplateError("a conversation must not contain all noncharacters from U+FDD0 to U+FDEF")
    return marks


def _with_mark(content: Any, mark: str) -> Any:
    """Returns the content with a mark at its end, before trailing white space, which a template may trim."""
    if isinstance(content, str):
        kept = content.rstrip()
        return kept + mark + content[len(kept) :]
    if not isinstance(content, list | tuple) or not content or "text" not in content[-1]:
        raise ChatTemplateError("the template changes it once other messages follow, and its content is not text")
    return [*content[:-1], {**content[-1], "text": _with_mark(content[-1]["text"], mark)}]


def _marked_spans(marked: str, opening: str, closing: str) -> list[_Span]:
    """Returns the marked spans, as positions in the text without marks; blocks may be nested."""
    spans, open_at, place = [], list[int](), 0
    for part in re.split(f"([{opening}{closing}])", marked):
        if part == opening:
            open_at.append(place)
        elif part != closing:
            place += len(part)
        elif open_at:
            spans.append(_Span(open_at.pop(), place))
        else:
            raise _torn_block()
    if open_at:
        raise _torn_block()
    return spans


def _torn_block() -> ChatTemplateError:
    return ChatTemplateError(
        "the chat template must write the text of `{% generation %}` blocks unchanged, got one that changes it by "
        "filters around a block\nhint: move the filters into the block"
    )


def _without_rest(text: str, span: _Span, special_tokens: tuple[str, ...]) -> _Span:
    """Returns the turn without white space after the special token that ends it."""
    end = span.start + len(text[span.start : span.end].rstrip())
    return span._replace(end=end) if text[span.start : end].endswith(special_tokens) else span


def _inside(char_offsets: NDArray[np.int64], spans: Sequence[_Span], num_chars: int) -> NDArray[np.bool_]:
    """Returns a mask of the tokens with offsets (T, 2) that are not empty and lie completely in a span."""
    is_inside = np.zeros(num_chars, np.bool_)
    for start, end in spans:
        is_inside[start:end] = True
    before = np.concatenate([[0], np.cumsum(is_inside)])
    starts, ends = char_offsets.T
    result: NDArray[np.bool_] = (before[ends] - before[starts] == ends - starts) & (ends > starts)
    return result
