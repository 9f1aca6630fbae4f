"""A sample in colours: which tokens are learnt, which are only read, and where documents end."""

from collections.abc import Iterator

import numpy as np
from rich.text import Text

from llm.data.base import Dataset
from llm.data.batch import IGNORED_LABEL, TokenBatch
from llm.errors import InvalidArgumentError
from llm.tokenization import BaseTokenizer

_LEARNT = ("green", "bold green")
_AVOIDED = ("red", "bold red")
# What a sequence of a preference is, by its mark.
_SIDES = {1.0: ("wanted", _LEARNT), -1.0: ("unwanted", _AVOIDED), 0.0: ("with the answer to another prompt", _LEARNT)}
_READ = ("dim", "dim italic")


def preview_lines(dataset: Dataset, idx: int, tokenizer: BaseTokenizer) -> Iterator[Text]:
    """Yields each sequence of a sample after a line about it; neighbouring tokens differ in weight.

    Raises:
        InvalidArgumentError: There is no such sample, or samples aren't of tokens.
    """
    if idx >= len(dataset):
        raise InvalidArgumentError(f"`sample` must be below the number of samples, {len(dataset)}, got {idx}")
    batch = dataset.batch(np.array([idx]))
    if not isinstance(batch, TokenBatch):
        raise InvalidArgumentError("samples must be of tokens to be shown, got numbers")
    start = 0
    marks = batch.columns["mark"].tolist() if "mark" in batch.columns else []
    for number, length in enumerate(batch.lengths):
        labels = batch.labels[start : start + length].tolist()
        first = batch.token_ids[start : start + 1].tolist()
        num_learnt = sum(label != IGNORED_LABEL for label in labels)
        side, style = _SIDES[marks[number]] if marks else ("", _LEARNT)
        words = f"{num_learnt} of the answer, {side}" if side else f"{num_learnt} learnt"
        yield Text(f"── {length} tokens, {words} ──", style="cyan")
        # The first token of a sequence is read only; every other one is a label.
        read = batch.token_ids[start + 1 : start + length].tolist()
        yield _coloured([*first, *read, labels[-1]], labels, tokenizer, style)
        start += length


def _coloured(ids: list[int], labels: list[int], tokenizer: BaseTokenizer, learnt: tuple[str, str]) -> Text:
    text = Text()
    for number, token in enumerate(ids):
        if token == IGNORED_LABEL:
            continue
        is_learnt = number > 0 and labels[number - 1] != IGNORED_LABEL
        text.append(tokenizer.decode([token]), style=(learnt if is_learnt else _READ)[number % 2])
    return text
