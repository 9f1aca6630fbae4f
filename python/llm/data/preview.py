"""A sample in colours: which tokens are learnt, which are only read, and where documents end."""

from collections.abc import Iterator

import numpy as np
from rich.text import Text

from llm.data.base import Dataset
from llm.data.batch import IGNORED_LABEL, TokenBatch
from llm.errors import InvalidArgumentError
from llm.tokenization import BaseTokenizer

_LEARNT = ("green", "bold green")
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
    for length in batch.lengths:
        labels = batch.labels[start : start + length].tolist()
        first = batch.token_ids[start : start + 1].tolist()
        num_learnt = sum(label != IGNORED_LABEL for label in labels)
        yield Text(f"── {length} tokens, {num_learnt} learnt ──", style="cyan")
        # The first token of a sequence is read only; every other one is a label.
        yield _coloured([*first, *batch.token_ids[start + 1 : start + length].tolist(), labels[-1]], labels, tokenizer)
        start += length


def _coloured(ids: list[int], labels: list[int], tokenizer: BaseTokenizer) -> Text:
    text = Text()
    for number, token in enumerate(ids):
        if token == IGNORED_LABEL:
            continue
        is_learnt = number > 0 and labels[number - 1] != IGNORED_LABEL
        text.append(tokenizer.decode([token]), style=(_LEARNT if is_learnt else _READ)[number % 2])
    return text
