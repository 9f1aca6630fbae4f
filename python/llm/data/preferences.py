"""Rows of preferences as training samples."""

from pathlib import Path
from typing import cast

from llm.data.chat import ChatDataModule
from llm.data.readers import Row
from llm.data.rows.answers import AnswerSamples, Form
from llm.data.rows.preferences import PAIRS, preference_format
from llm.data.rows.samples import Rows, RowSamples
from llm.data.rows.store import RowSource
from llm.settings.run import DataConfig

_FORMS: dict[str, Form] = {"kto": "labels", "reward": "whole"}


class PreferenceDataModule(ChatDataModule):
    """Pairs of answers, or single ones, that `prepare` encoded with a `PreferenceEncoder`.

    Args:
        directory: What `prepare` wrote.
        context_length: Largest number of tokens of an answer with its prompt.
        config: Weights and limits; None takes the defaults.
        loss: `preference.loss`, which decides what a sample is.
    """

    def __init__(
        self, directory: str | Path, context_length: int, config: DataConfig | None = None, loss: str = "dpo"
    ) -> None:
        super().__init__(directory, context_length, config)
        self.form = _FORMS.get(loss, "pairs")
        self._row_sequences = 1 if self.form == "labels" else 2
        self._kept: dict[tuple[str, str], AnswerSamples] = {}

    @property
    def longest_row(self) -> int:
        """Tokens of the longest sequence, and one more where a head reads its last token too."""
        return super().longest_row + (self.form == "whole")

    def parts(self) -> list[AnswerSamples]:
        """Returns the samples of each source that are trained on, then those that are held out."""
        found = [
            self._samples(source, part)
            for part in ("train", "validation")
            for source in self._manifest.sources
            if len(self.rows(source, part).lengths)
        ]
        return cast(list[AnswerSamples], found)

    def notices(self) -> list[str]:
        """Returns what a user should know about the rows: how many there are, and what happens to long ones."""
        found = []
        what, per_sample = ("answers", 1) if self.form == "labels" else ("pairs", 2)
        for facts in self.facts():
            rows, tokens, learnt = (facts[name] + facts[f"validation_{name}"] for name in ("rows", "tokens", "learnt"))
            held_out = facts["validation_rows"] // per_sample
            words = f", {held_out:,} of them held out" if held_out else ""
            found.append(
                f"{facts['name']}: {rows // per_sample:,} {what}{words}; {learnt:,} of {tokens:,} tokens are answers"
            )
            if facts.get("too_long"):
                done = {"drop": "left out", "cut": "cut"}[self.config.too_long]
                found.append(
                    f"{facts['name']}: {facts['too_long']:,} of {facts['rows'] // per_sample:,} {what} are longer than "
                    f"{self.context_length} tokens and are {done}"
                )
        return found

    def _samples(self, source: RowSource, part: str) -> RowSamples | AnswerSamples:
        """Returns the samples of a part, always the same ones, which keep what is attached to them."""
        key = (source.name, part)
        if key not in self._kept:
            self._kept[key] = cast(AnswerSamples, super()._samples(source, part))
        return self._kept[key]

    def _samples_of(self, rows: Rows, digest: str) -> RowSamples | AnswerSamples:
        return AnswerSamples(rows, self.context_length, self.config.too_long, self.form, f"{digest}-{self.form}")

    @staticmethod
    def _sequences_of(row: Row) -> int:
        return 2 if preference_format(row.values) == PAIRS else 1
