"""The global order of samples: which sample stands at a position, for one source or a weighted mixture of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm.data.permutation import permuted
from llm.errors import CheckpointError, ConfigError

# Samples in the pattern by which sources take turns; a weight below a 131,072th of all is rounded up to one of it.
_PATTERN = 1 << 16


@dataclass(frozen=True)
class Segment:
    """A part of the order with the same weights.

    Attributes:
        start: The position from which the weights hold.
        weights: One for each source; they need not sum to 1.
    """

    start: int
    weights: tuple[float, ...]


class GlobalOrder:
    """An endless order of samples; every position is found without those before it.

    Each source is gone through in epochs: every sample of a source comes once in each, shuffled anew. Sources take
    turns as their weights say. Weights may change from a position on; what lies before keeps its order.

    Args:
        sizes: Number of samples of each source. Samples are numbered through all sources.
        seed: Determines the order.
        weights: Share of each source; None for as many as each has samples.
    """

    def __init__(self, sizes: Sequence[int], seed: int, weights: Sequence[float] | None = None) -> None:
        self.sizes = tuple(sizes)
        self.seed = seed
        self.segments = [Segment(0, tuple(weights) if weights is not None else tuple(map(float, sizes)))]
        self._patterns: dict[tuple[float, ...], _Pattern] = {}

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the numbers of the samples at `positions`, int64 `[N]`."""
        starts = [segment.start for segment in self.segments]
        which = np.searchsorted(starts, positions, side="right") - 1
        numbers = np.empty(len(positions), np.int64)
        before = np.zeros(len(self.sizes), np.int64)
        for idx, segment in enumerate(self.segments):
            chosen = np.flatnonzero(which == idx)
            pattern = self._pattern(segment.weights)
            numbers[chosen] = self._numbers(*pattern.at(positions[chosen] - segment.start), before)
            if idx + 1 < len(starts):
                before = before + pattern.counts(starts[idx + 1] - segment.start)
        return numbers

    def change_weights(self, position: int, weights: Sequence[float]) -> None:
        """Lets other weights hold from `position` on; earlier positions keep their samples."""
        self.segments = [segment for segment in self.segments if segment.start < position] or []
        if not self.segments or self.segments[-1].weights != tuple(weights):
            self.segments.append(Segment(position, tuple(weights)))

    def state(self) -> list[list[Any]]:
        """Returns the segments for a file."""
        return [[segment.start, list(segment.weights)] for segment in self.segments]

    def restore(self, state: Sequence[Sequence[Any]]) -> None:
        """Takes over the segments of `state`.

        Raises:
            CheckpointError: They are of another number of sources.
        """
        segments = [Segment(int(start), tuple(map(float, weights))) for start, weights in state]
        if any(len(segment.weights) != len(self.sizes) for segment in segments):
            raise CheckpointError(
                f"the checkpoint's order of samples is of {len(segments[0].weights)} sources, the run has "
                f"{len(self.sizes)}\nhint: resume with the sources that the run was started with"
            )
        self.segments = segments

    def _numbers(
        self, sources: NDArray[np.int64], turns: NDArray[np.int64], before: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Returns the samples that sources take in their own turns of a segment."""
        numbers = np.empty(len(sources), np.int64)
        first = 0
        for source, size in enumerate(self.sizes):
            own = np.flatnonzero(sources == source)
            epochs, places = np.divmod(turns[own] + before[source], max(1, size))
            for epoch in np.unique(epochs):
                there = epochs == epoch
                key = (self.seed, source, int(epoch))
                numbers[own[there]] = first + permuted(places[there], size, key)
            first += size
        return numbers

    def _pattern(self, weights: tuple[float, ...]) -> "_Pattern":
        if weights not in self._patterns:
            self._patterns[weights] = _Pattern(weights)
        return self._patterns[weights]


class _Pattern:
    """The turns of sources, evenly spread, in a block that repeats."""

    def __init__(self, weights: tuple[float, ...]) -> None:
        if not weights or min(weights) < 0 or sum(weights) <= 0:
            raise ConfigError(f"weights of sources must be at least 0 and one above it, got {weights}")
        self.shares = _shares(weights)
        self.size = int(self.shares.sum())
        moments = np.concatenate([(np.arange(share) + 0.5) / share for share in self.shares])
        labels = np.repeat(np.arange(len(weights)), self.shares)
        self.sources = labels[np.argsort(moments, kind="stable")]
        self.turns = np.empty(self.size, np.int64)
        for source in range(len(weights)):
            own = self.sources == source
            self.turns[own] = np.arange(own.sum())

    def at(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns which source stands at each position, and how many turns that source had before it."""
        blocks, places = np.divmod(positions, self.size)
        sources = self.sources[places]
        return sources, blocks * self.shares[sources] + self.turns[places]

    def counts(self, length: int) -> NDArray[np.int64]:
        """Returns how many turns each source has in the first `length` positions."""
        blocks, rest = divmod(length, self.size)
        return blocks * self.shares + np.bincount(self.sources[:rest], minlength=len(self.shares))


def _shares(weights: tuple[float, ...]) -> NDArray[np.int64]:
    """Returns each source's turns in a block: the largest remainders are rounded up, no positive weight down to 0."""
    if sum(weight > 0 for weight in weights) == 1:
        return np.array([int(weight > 0) for weight in weights], np.int64)
    exact = np.array(weights) / sum(weights) * _PATTERN
    shares = np.floor(exact).astype(np.int64)
    missing = _PATTERN - int(shares.sum())
    shares[np.argsort(shares - exact, kind="stable")[:missing]] += 1
    return np.where((exact > 0) & (shares == 0), 1, shares)


class StoredOrder:
    """The order of runs whose checkpoints have no position: an array per epoch, whose last samples are left out.

    Args:
        size: Number of samples.
        seed: Determines the order.
        batch_size: Samples of a step; an epoch has whole batches only.
    """

    def __init__(self, size: int, seed: int, batch_size: int) -> None:
        self.size = size
        self.seed = seed
        self.per_epoch = size // batch_size * batch_size
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the numbers of the samples at `positions`, all of one batch."""
        epochs, places = np.divmod(positions, self.per_epoch)
        return self._epoch(int(epochs[0]))[places] if len(positions) else positions

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64)))
            self._order = (epoch, generator.permutation(self.size))
        return self._order[1]
