"""Samples of tokens: windows of a stream, packed documents, mixtures of sources, selections."""

import abc
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from llm.data.base import Dataset
from llm.data.batch import IGNORED_LABEL, TokenBatch
from llm.data.shards import TokenStream
from llm.tokenization import TokenArray


class TokenSamples(Dataset):
    """Samples that are sequences of consecutive tokens, each of which is predicted from those before it."""

    @abc.abstractmethod
    def sequences(self, idx: int) -> list[TokenArray]:
        """Returns the sequences of a sample; of each, all tokens but the last are read, all but the first predicted."""

    def masks(self, idx: int) -> list[NDArray[np.bool_]]:  # noqa: ARG002
        """Returns which tokens of each sequence are learnt, bool `[T]`; empty if all are."""
        return []

    def columns(self, idx: int) -> Mapping[str, Sequence[float]]:  # noqa: ARG002
        """Returns further numbers of a sample by name, one for each sequence; all samples have the same names."""
        return {}

    def source(self, idx: int) -> int:  # noqa: ARG002
        """Returns the index of a sample's source."""
        return 0

    def batch(self, indices: NDArray[np.int64]) -> TokenBatch:
        """Returns the samples at `indices`."""
        samples = [self.sequences(int(idx)) for idx in indices]
        sequences = [sequence.astype(np.int64) for sample in samples for sequence in sample]
        labels = np.concatenate([sequence[1:] for sequence in sequences])
        if masks := [mask for idx in indices for mask in self.masks(int(idx))]:
            labels = np.where(np.concatenate([mask[1:] for mask in masks]), labels, IGNORED_LABEL)
        sources = [self.source(int(idx)) for idx in indices] if self.source_names else []
        columns = [self.columns(int(idx)) for idx in indices]
        return TokenBatch(
            token_ids=torch.from_numpy(np.concatenate([sequence[:-1] for sequence in sequences])),
            labels=torch.from_numpy(labels),
            lengths=tuple(len(sequence) - 1 for sequence in sequences),
            sources=tuple(source for source, sample in zip(sources, samples, strict=False) for _ in sample),
            columns={name: torch.tensor([value for one in columns for value in one[name]]) for name in columns[0]},
        )


class TokenWindows(TokenSamples):
    """Consecutive windows of `context_length` tokens; every token except the first is predicted exactly once."""

    def __init__(self, token_ids: TokenArray | TokenStream, context_length: int, keep_rest: bool) -> None:
        self.token_ids = token_ids
        self.context_length = context_length
        predicted = max(0, len(token_ids) - 1)
        self.num_windows = -(-predicted // context_length) if keep_rest else predicted // context_length
        self.num_dropped_tokens = 0 if keep_rest else predicted - self.num_windows * context_length

    def __len__(self) -> int:
        return self.num_windows

    def sequences(self, idx: int) -> list[TokenArray]:
        """Returns one window; the last window of the text can be shorter."""
        start = idx * self.context_length
        return [self.token_ids[start : start + self.context_length + 1]]


class TokenCrops(TokenSamples):
    """Crops of `context_length` tokens, one for each token that one can begin at; they overlap."""

    def __init__(self, token_ids: TokenArray | TokenStream, context_length: int) -> None:
        self.token_ids = token_ids
        self.context_length = context_length

    def __len__(self) -> int:
        return max(0, len(self.token_ids) - self.context_length)

    @property
    def epoch_samples(self) -> int:
        """Number of crops that together are as long as the text."""
        return max(0, len(self.token_ids) - 1) // self.context_length

    def sequences(self, idx: int) -> list[TokenArray]:
        """Returns the crop that begins at a token."""
        return [self.token_ids[idx : idx + self.context_length + 1]]


class Mixture(TokenSamples):
    """Several sources, whose samples are numbered one source after another.

    Args:
        parts: The samples of each source.
        names: The sources' names; empty if nobody asks where samples come from.
        weights: Share of each source in the order of training.
    """

    def __init__(
        self, parts: Sequence[TokenSamples], names: Sequence[str] = (), weights: Sequence[float] | None = None
    ) -> None:
        self.parts = tuple(parts)
        self.source_names = tuple(names)
        self._weights = None if weights is None else tuple(weights)
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of samples of each source."""
        return tuple(map(len, self.parts))

    @property
    def epoch_samples(self) -> int:
        """Number of samples that together are as long as all sources."""
        return sum(part.epoch_samples for part in self.parts)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Share of each source in the order of training."""
        return self._weights

    def source(self, idx: int) -> int:
        """Returns the index of a sample's source."""
        return int(np.searchsorted(self._starts, idx, side="right")) - 1

    def sequences(self, idx: int) -> list[TokenArray]:
        """Returns the sequences of a sample."""
        source = self.source(idx)
        return self.parts[source].sequences(idx - int(self._starts[source]))

    def masks(self, idx: int) -> list[NDArray[np.bool_]]:
        """Returns which tokens of a sample are learnt."""
        source = self.source(idx)
        return self.parts[source].masks(idx - int(self._starts[source]))

    def columns(self, idx: int) -> Mapping[str, Sequence[float]]:
        """Returns further numbers of a sample."""
        source = self.source(idx)
        return self.parts[source].columns(idx - int(self._starts[source]))


class Selected(TokenSamples):
    """A number of samples of another dataset: the first ones, or some that are spread evenly over all."""

    def __init__(self, samples: TokenSamples, num_samples: int, spread: bool = False) -> None:
        self.samples = samples
        self.num_samples = min(num_samples, len(samples))
        self.spread = spread
        self.source_names = samples.source_names

    def __len__(self) -> int:
        return self.num_samples

    def source(self, idx: int) -> int:
        """Returns the index of a sample's source."""
        return self.samples.source(self._number(idx))

    def sequences(self, idx: int) -> list[TokenArray]:
        """Returns the sequences of a sample."""
        return self.samples.sequences(self._number(idx))

    def masks(self, idx: int) -> list[NDArray[np.bool_]]:
        """Returns which tokens of a sample are learnt."""
        return self.samples.masks(self._number(idx))

    def columns(self, idx: int) -> Mapping[str, Sequence[float]]:
        """Returns further numbers of a sample."""
        return self.samples.columns(self._number(idx))

    def _number(self, idx: int) -> int:
        return idx * len(self.samples) // self.num_samples if self.spread else idx
