"""Rows of preferences: a prompt with a better and a worse answer, or with one answer and whether it is wanted."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llm.data.readers import Row
from llm.data.rows.formats import ChatRow, named_options, named_system
from llm.data.rows.messages import checked_messages, listed
from llm.errors import DataError

PAIRS, LABELS = "pairs", "labels"
_WAYS = (
    "`prompt`, `chosen` and `rejected`, or `chosen` and `rejected` as whole conversations, or `prompt`, `completion` "
    "and `label`"
)
_ANSWERS = ("completion", "response")
# Rewards differ by far less, and a loss of such a margin is still a number in every precision but float16.
_LARGEST_MARGIN = 1_000_000


def preference_format(values: Mapping[str, Any]) -> str | None:
    """Returns `pairs` or `labels`, by the fields that a row has; None if it is of neither format."""
    if all(values.get(name) is not None for name in ("chosen", "rejected")):
        return PAIRS
    has_answer = any(values.get(name) is not None for name in _ANSWERS)
    return LABELS if has_answer and values.get("label") is not None else None


def preference_rows(row: Row, row_format: str = "auto", *, pairs_only: bool = False) -> list[ChatRow]:
    """Reads a row into the conversations that it compares: the chosen one before the rejected one, or a single one.

    Args:
        row: The row.
        row_format: `pairs`, `labels` or `auto`.
        pairs_only: Whether the loss needs pairs.

    Raises:
        DataError: The row is of no format, of one that the loss can't learn from, or breaks its rules; the message says
            where it stands.
    """
    found = preference_format(row.values)
    if found is None or row_format not in ("auto", found):
        raise DataError(f"{row.where}: {_no_format(row.values, row_format)}")
    if found == LABELS and pairs_only:
        raise DataError(
            f"{row.where}: the row has one answer and its `label`, and this loss needs `chosen` and `rejected`\n"
            "hint: `preference.loss=kto` learns from single answers"
        )
    try:
        return _pair(row.values) if found == PAIRS else [_labelled(row.values)]
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from None


def _no_format(values: Mapping[str, Any], row_format: str) -> str:
    there = ", ".join(f"`{name}`" for name, value in values.items() if value is not None) or "none"
    wanted = {PAIRS: "`chosen` and `rejected`", LABELS: "`prompt`, `completion` and `label`"}.get(row_format, _WAYS)
    return f"a row must have the fields {wanted}; those there are {there}"


def _pair(values: Mapping[str, Any]) -> list[ChatRow]:
    chosen, rejected = (_answered(values, name) for name in ("chosen", "rejected"))
    if chosen.messages == rejected.messages:
        raise DataError("`chosen` and `rejected` must differ, got the same answer twice")
    pairs = zip(chosen.messages, rejected.messages, strict=False)
    shared = next(
        (idx for idx, (one, other) in enumerate(pairs) if one != other),
        min(len(chosen.messages), len(rejected.messages)),
    )
    if shared == 0:
        raise DataError(
            "`chosen` and `rejected` must answer the same prompt, got different first messages\n"
            "hint: give the messages before the answers as `prompt`"
        )
    margin = values.get("margin")
    if margin is not None and not (type(margin) in (int, float) and 0 <= margin <= _LARGEST_MARGIN):
        raise DataError(f"`margin` must be a number of at least 0 and at most {_LARGEST_MARGIN:,}, got {margin!r}")
    return [
        replace(_checked(one, name, shared), is_wanted=name == "chosen", margin=float(margin or 0.0))
        for one, name in ((chosen, "chosen"), (rejected, "rejected"))
    ]


def _labelled(values: Mapping[str, Any]) -> ChatRow:
    label = values["label"]
    if label not in (True, False, 0, 1):
        raise DataError(f"`label` must be true or false, got {label!r}")
    name = next(name for name in _ANSWERS if values.get(name) is not None)
    if values.get("prompt") is None:
        raise DataError("`prompt` is missing: what does the completion answer?")
    row = _answered(values, name)
    answer = values[name]
    num_answers = 1 if isinstance(answer, str) else len(listed(name, answer))
    return replace(_checked(row, name, len(row.messages) - num_answers), is_wanted=bool(label))


def _answered(values: Mapping[str, Any], name: str) -> ChatRow:
    """Returns the conversation that ends with the answer of a field."""
    prompt, answer = values.get("prompt"), values[name]
    if prompt is None and isinstance(answer, str):
        raise DataError(f"`prompt` is missing: `{name}` is text, which needs a prompt\nhint: add `prompt`")
    before = [] if prompt is None else _prompt(prompt)
    after = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else listed(name, answer)
    if isinstance(prompt, str) and any(_is_asked(message, prompt) for message in after):
        before = []  # UltraFeedback repeats the prompt within the answers
    try:
        messages = checked_messages([*named_system(values), *before, *after])
    except DataError as error:
        raise DataError(f"`{name}`: {error}") from None
    plain = (prompt, answer) if isinstance(prompt, str) and isinstance(answer, str) and len(messages) == 2 else None
    return ChatRow(messages, named_options(values), plain)


def _prompt(prompt: Any) -> Sequence[Any]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else listed("prompt", prompt)


def _is_asked(message: Any, prompt: str) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "user" and message.get("content") == prompt


def _checked(row: ChatRow, name: str, num_read: int) -> ChatRow:
    """Returns a row whose messages from `num_read` on are the answer.

    Raises:
        DataError: The answer has no turn of the assistant, doesn't begin with one, or is empty.
    """
    answer = row.messages[num_read:]
    if not answer:
        raise DataError(f"`{name}` must have an answer after what both conversations share, got none")
    if answer[0]["role"] != "assistant":
        raise DataError(
            f"`{name}`: the answer must begin with a turn of the assistant, got one of role `{answer[0]['role']}` as "
            f"message {num_read + 1}, where the conversations begin to differ"
        )
    for message in answer:
        others = message.keys() - {"role", "content"}
        if message["role"] == "assistant" and not message["content"].strip() and not others:
            raise DataError(f"`{name}` must have an answer, got an empty one")
    return replace(row, num_read=num_read)
