"""Rows of conversations as training samples."""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm.data.base import BaseDataModule, Dataset
from llm.data.packing import ends_with_offsets
from llm.data.readers import Row
from llm.data.rows.answers import AnswerSamples
from llm.data.rows.encode import EncodedRow, RowEncoder
from llm.data.rows.samples import Rows, RowSamples
from llm.data.rows.store import RowFile, RowManifest, RowSource, encode_rows
from llm.data.samples import Mixture, Selected, TokenSamples
from llm.data.shards import TokenStream, open_ends, open_shard
from llm.errors import DataError
from llm.settings.run import DataConfig


class ChatDataModule(BaseDataModule):
    """Rows that were encoded once into memory-mapped shards of ids and masks.

    Args:
        directory: What `prepare` wrote.
        context_length: Number of tokens per sample.
        config: Weights, packing and limits; None takes the defaults.
    """

    _row_sequences = 1  # a border between training and validation doesn't divide so many

    def __init__(self, directory: str | Path, context_length: int, config: DataConfig | None = None) -> None:
        self.directory = Path(directory)
        self.context_length = context_length
        self.config = config or DataConfig()

    @staticmethod
    def prepare(directory: str | Path, config: DataConfig, encoder: RowEncoder) -> None:
        """Encodes the rows that `config` names; shards that exist are used again.

        Raises:
            DataError: There is no row, or one is wrong; the message names file and line.
            MissingExtraError: A file needs a package that is not installed.
        """
        encode_rows(config, encoder, Path(directory), cache=config.cache_directory)

    def train_dataset(self) -> Dataset:
        """Returns the samples of the training part.

        Raises:
            DataError: A source has no row left, or a row is too long.
        """
        named = [source for source in self._manifest.sources if not source.is_held_out]
        parts = [self._samples(source, "train") for source in named]
        if len(parts) == 1:
            return parts[0] if self.config.num_samples is None else Selected(parts[0], self.config.num_samples)
        weights = {source.name: source.weight for source in self.config.all_sources}
        return Mixture(parts, [one.name for one in named], [weights.get(one.name, one.weight or 1.0) for one in named])

    def validation_dataset(self) -> Dataset | None:
        """Returns samples of the held-out rows, spread evenly if there are more than `data.validation_tokens`."""
        named = [source for source in self._manifest.sources if len(self.rows(source, "validation").lengths)]
        parts: list[Any] = [self._samples(source, "validation") for source in named]
        samples: TokenSamples = parts[0] if len(parts) == 1 else Mixture(parts, [source.name for source in named])
        limit = self.config.validation_tokens
        if limit is not None and len(samples) * self.context_length > limit:
            samples = Selected(samples, -(-limit // self.context_length), spread=True)
        return samples if len(samples) else None

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row."""
        return max(int(self._all_rows(source).lengths.max()) for source in self._manifest.sources)

    @property
    def num_train_tokens(self) -> int:
        """Tokens of all rows that are trained on."""
        return sum(int(self.rows(source, "train").lengths.sum()) for source in self._manifest.sources)

    def first_rows(self, number: int) -> list[tuple[RowFile, list[EncodedRow]]]:
        """Returns the first rows of each source's first file, as they are stored."""
        found = []
        for source in self._manifest.sources:
            rows = self._all_rows(source)
            size = len(open_ends(source.files[0].files(self._folder)[0]))
            stored = [EncodedRow(*rows.row(idx)) for idx in range(min(number, size))]
            found.append((source.files[0], stored))
        return found

    def prompt_ids(self) -> list[int]:
        """Returns the ids before the first learnt token of a held-out row, or of the first one if none is held out."""
        for part in ("validation", "train"):
            for source in self._manifest.sources:
                rows = self.rows(source, part)
                if len(rows.lengths):
                    ids, is_learnt = rows.row(0)
                    first = int(np.argmax(is_learnt))
                    return [int(one) for one in ids[: max(1, first)]]
        return []

    def facts(self) -> list[dict[str, Any]]:
        """Returns counts of each source: rows, tokens, learnt tokens, samples, and rows that are too long."""
        found = []
        for source in self._manifest.sources:
            facts: dict[str, Any] = {"name": source.name, "weight": source.weight}
            for part in ("train", "validation"):
                rows = self.rows(source, part)
                prefix = "" if part == "train" else "validation_"
                facts[f"{prefix}rows"] = len(rows.lengths)
                facts[f"{prefix}tokens"] = int(rows.lengths.sum())
                facts[f"{prefix}learnt"] = _num_learnt(rows)
            if not source.is_held_out:
                samples = self._samples(source, "train")
                facts |= {"samples": len(samples), "filled": samples.filled, "too_long": samples.num_too_long}
            found.append(facts)
        return found

    def notices(self) -> list[str]:
        """Returns what a user should know about the rows: how many there are, and what happens to long ones."""
        found = []
        for facts in self.facts():
            rows, tokens, learnt = (facts[name] + facts[f"validation_{name}"] for name in ("rows", "tokens", "learnt"))
            held_out = f", {facts['validation_rows']:,} of them held out" if facts["validation_rows"] else ""
            found.append(f"{facts['name']}: {rows:,} rows{held_out}; {learnt:,} of {tokens:,} tokens are learnt")
            if facts.get("too_long"):
                what = {"drop": "left out", "cut": "cut"}[self.config.too_long]
                found.append(
                    f"{facts['name']}: {facts['too_long']:,} of {facts['rows']:,} rows are longer than a sample "
                    f"({self.context_length} tokens) and are {what}"
                )
        return found

    def row_lengths(self) -> Iterator[NDArray[np.int64]]:
        """Yields the number of tokens of each row, a source at a time."""
        for source in self._manifest.sources:
            yield self._all_rows(source).lengths

    def rows(self, source: RowSource, part: str) -> Rows:
        """Returns the rows of a source that are trained on, or those that are held out: the last ones."""
        rows = self._all_rows(source)
        size = len(rows.lengths)
        held_out = size if source.is_held_out else round(size * self._held_out_fraction)
        border = size - held_out
        border -= border % self._row_sequences
        return rows.part(0, border) if part == "train" else rows.part(border, size)

    @property
    def _held_out_fraction(self) -> float:
        has_own = any(source.is_held_out for source in self._manifest.sources)
        return 0.0 if has_own else self.config.validation_fraction

    @cached_property
    def _manifest(self) -> RowManifest:
        return RowManifest.read(self.directory)

    @property
    def _folder(self) -> Path:
        return Path(self._manifest.folder or self.directory)

    def _all_rows(self, source: RowSource) -> Rows:
        shards = [file.files(self._folder) for file in source.files]
        ends = [open_ends(ids) for ids, _ in shards]
        stops = np.concatenate([part + offset for part, offset in ends_with_offsets(ends)])
        starts = np.concatenate([np.zeros(1, np.int64), stops[:-1]])
        first = np.cumsum([0, *map(len, ends)])

        def where(idx: int) -> str:
            number = int(np.searchsorted(first, idx, side="right")) - 1
            return source.files[number].where(idx - int(first[number]), self._sequences_of)

        ids, learnt = (TokenStream([open_shard(pair[which]) for pair in shards]) for which in (0, 1))
        bits = [open_shard(file.margins(self._folder)) for file in source.files if file.has_margins]
        margins = np.concatenate([part.view(np.float32) for part in bits]) if bits else np.empty(0, np.float32)
        return Rows(ids, learnt, starts, stops - starts, where, margins)

    @staticmethod
    def _sequences_of(row: Row) -> int:  # noqa: ARG004
        """Returns the number of sequences of a row."""
        return 1

    def _samples_of(self, rows: Rows, digest: str) -> RowSamples | AnswerSamples:
        """Returns the samples that rows make up; `digest` names what they are made from."""
        return RowSamples(rows, self.context_length, self.config, self.directory / f"samples-{digest}.npy")

    def _samples(self, source: RowSource, part: str) -> RowSamples | AnswerSamples:
        rows = self.rows(source, part)
        settings = [self.context_length, self.config.packing, self.config.too_long, len(rows.lengths), part]
        made_from = json.dumps([[file.shard for file in source.files], *settings])
        samples = self._samples_of(rows, hashlib.sha256(made_from.encode()).hexdigest()[:32])
        if part == "train" and not len(samples):
            raise DataError(
                f"source `{source.name}` has no row to train on: {len(rows.lengths):,} rows, of which "
                f"{samples.num_too_long:,} are too long\nhint: add rows, lower `data.validation_fraction`, or raise "
                "`data.context_length`"
            )
        return samples


def _num_learnt(rows: Rows) -> int:
    if not len(rows.lengths):
        return 0
    return int(np.count_nonzero(rows.learnt[int(rows.starts[0]) : int(rows.starts[-1] + rows.lengths[-1])]))
