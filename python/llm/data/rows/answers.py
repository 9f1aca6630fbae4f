"""Samples of answers: pairs of them, or single ones."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llm.data.rows.samples import Rows, check_cut, too_long_error
from llm.data.samples import TokenSamples
from llm.errors import DataError
from llm.tokenization import TokenArray

# `pairs`: chosen and rejected; `whole`: so too, with the last token read; `labels`: single answers.
Form: TypeAlias = Literal["pairs", "whole", "labels"]
WANTED, UNWANTED, MISMATCHED = 1.0, -1.0, 0.0


class AnswerSamples(TokenSamples):
    """Answers with their prompts, two sequences a sample.

    In the form `labels`, the second sequence is the prompt with the answer to another prompt: that of the nearest row
    before it with another prompt, so it depends on nothing but the rows. Columns are `mark` (`WANTED`, `UNWANTED` or
    `MISMATCHED`), `margin`, and `reference` if that is known.

    Args:
        rows: A sequence for each answer; of pairs, the chosen one before the rejected one.
        context_length: Places of a sequence.
        too_long: What happens to rows with a longer sequence: `error`, `drop` or `cut`.
        form: What a sample consists of.
        digest: Names what the samples are made from.

    Attributes:
        reference: Log-probabilities of a sample's two answers by the model that the run started from, fp32 `[N, 2]`;
            None: not known, or not needed.

    Raises:
        DataError: A sequence is too long, nothing of an answer is left after the cut, or a pair no longer differs.
    """

    def __init__(self, rows: Rows, context_length: int, too_long: str, form: Form, digest: str) -> None:
        self.rows, self.form, self.digest = rows, form, digest
        self.reference: NDArray[np.float32] | None = None
        # The last token of a sequence is only predicted, except where a head reads it.
        self.limit = context_length + (form != "whole")
        self._step = 1 if form == "labels" else 2
        if len(rows.lengths) % self._step:
            raise DataError("pairs must have two sequences each; the stored rows are of another loss")
        is_long = rows.lengths > self.limit
        of_sample = is_long.reshape(-1, self._step).any(1)
        self.num_too_long = int(of_sample.sum())
        self._first: NDArray[np.int64] = np.arange(0, len(is_long), self._step)
        if is_long.any() and too_long == "error":
            raise too_long_error(rows, is_long, self.limit, self._step)
        if too_long == "drop":
            self._first = self._first[~of_sample]
        else:
            check_cut(rows, is_long, self.limit)
            if form != "labels":
                self._check_differ(np.flatnonzero(of_sample))
        places = max(1, self._step * len(self._first) * context_length)
        self.filled = float(np.minimum(rows.lengths, self.limit).sum()) / places

    def _check_differ(self, cut: NDArray[np.int64]) -> None:
        """Checks that the answers of each pair with a cut one still differ."""
        for pair in 2 * cut:
            chosen, rejected = (self.rows.row(int(number))[0][: self.limit] for number in (pair, pair + 1))
            if np.array_equal(chosen, rejected):
                raise DataError(
                    f"{self.rows.where(int(pair))}: `chosen` and `rejected` are the same answer when they are cut to "
                    f"{self.limit:,} tokens\nhint: `data.too_long=drop` leaves such rows out, or raise "
                    "`data.context_length`"
                )

    def __len__(self) -> int:
        return len(self._first)

    def sequences(self, idx: int) -> list[TokenArray]:
        """Returns the two sequences of a sample."""
        return [ids for ids, _ in self._pair(idx)]

    def masks(self, idx: int) -> list[NDArray[np.bool_]]:
        """Returns which tokens of each sequence are the answer."""
        return [is_answer for _, is_answer in self._pair(idx)]

    def columns(self, idx: int) -> Mapping[str, Sequence[float]]:
        """Returns what is known about the two sequences."""
        first = int(self._first[idx])
        marks = (WANTED, UNWANTED)
        if self.form == "labels":
            marks = (WANTED if self._is_wanted(first) else UNWANTED, MISMATCHED)
        margin = float(self.rows.margins[first]) if len(self.rows.margins) else 0.0
        found: dict[str, Sequence[float]] = {"mark": marks, "margin": (margin, margin)}
        if self.reference is not None:
            found["reference"] = [float(value) for value in self.reference[idx]]
        return found

    def _pair(self, idx: int) -> list[tuple[TokenArray, NDArray[np.bool_]]]:
        first = int(self._first[idx])
        if self.form == "labels":
            return [self._cut(*self.rows.row(first)), self._cut(*self._mismatched(idx))]
        return [self._cut(*self.rows.row(number)) for number in (first, first + 1)]

    def _cut(self, ids: TokenArray, is_answer: NDArray[np.bool_]) -> tuple[TokenArray, NDArray[np.bool_]]:
        ids, is_answer = ids[: self.limit], is_answer[: self.limit]
        if self.form != "whole":
            return ids, is_answer
        # A batch leaves out the last token, which is one more here.
        return np.concatenate([ids, ids[-1:]]), np.concatenate([is_answer, np.zeros(1, np.bool_)])

    def _is_wanted(self, number: int) -> bool:
        start, length = int(self.rows.starts[number]), int(self.rows.lengths[number])
        return int(self.rows.learnt[start : start + length].max()) == 1

    def _mismatched(self, idx: int) -> tuple[TokenArray, NDArray[np.bool_]]:
        """Returns the prompt of a sample with the answer of an earlier one."""
        prompt, _ = self._divided(int(self._first[idx]))
        for distance in range(1, len(self) + 1):
            other, answer = self._divided(int(self._first[idx - distance]))
            if len(self) == distance or not np.array_equal(prompt, other):
                break
        is_answer = np.arange(len(prompt) + len(answer)) >= len(prompt)
        return np.concatenate([prompt, answer]), is_answer

    def _divided(self, number: int) -> tuple[TokenArray, TokenArray]:
        """Returns the ids before a row's first answered token, and those from there on."""
        ids, is_answer = self.rows.row(number)
        border = int(np.argmax(is_answer))
        return ids[:border], ids[border:]
