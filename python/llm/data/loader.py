"""Batches of training samples in a global order, whose whole state is one position."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm.data.base import Dataset
from llm.data.batch import Batch
from llm.data.order import GlobalOrder, StoredOrder
from llm.errors import DataError
from llm.settings.run import TrainingConfig

# Samples that are looked up in the order at a time: one look-up of a small batch takes as long as one of hundreds.
_LOOKED_UP = 1024


class BatchLoader:
    """Finds the samples of any optimizer step in O(1), so resuming does not iterate over earlier samples.

    The samples of a step depend on the seed and its position in the global order only. Processes and passes split the
    same batch into parts, which differ by at most one sample, so together they see the samples that a single process
    would see, and any number of them goes on where another number stopped.

    Attributes:
        log_file: If set, a line for each part with the position, the part and the numbers of its samples is appended.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, parts: int = 1) -> None:
        if batch_size < parts:
            raise DataError(
                f"`training.batch_size` must be at least devices × gradient_accumulation_steps ({parts}), "
                f"got {batch_size}\nhint: raise it, or use fewer devices or passes"
            )
        if len(dataset) < batch_size:
            raise DataError(
                f"the training data has {len(dataset)} samples, fewer than one batch of {batch_size}\n"
                "hint: add data, or lower `training.batch_size` or `data.context_length`"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.parts = parts
        self.log_file: Path | None = None
        self._order: GlobalOrder | StoredOrder = GlobalOrder(dataset.sizes, seed, dataset.weights)
        self._origin = 0  # the position of step 0, had all steps this batch size
        self._window = (0, np.empty(0, np.int64))  # a position, and the numbers of the samples from there on

    @classmethod
    def for_training(cls, dataset: Dataset, settings: TrainingConfig, world_size: int) -> "BatchLoader":
        """Returns the loader for a run of `world_size` processes.

        Raises:
            DataError: There are fewer samples than one batch, or a batch has fewer samples than processes × passes.
        """
        parts = settings.gradient_accumulation_steps * world_size
        return cls(dataset, settings.batch_size, settings.seed, parts)

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches in as many samples as are as long as the data, but at least one."""
        return max(1, self.dataset.epoch_samples // self.batch_size)

    def state(self, step: int) -> dict[str, Any]:
        """Returns what a checkpoint after `step` steps holds: the position of the next sample, and the order's weights.

        Of an old run the state is empty, so that the run keeps its order.
        """
        if isinstance(self._order, StoredOrder):
            return {}
        return {"position": self._origin + step * self.batch_size, "segments": self._order.state()}

    def restore(self, state: Mapping[str, Any] | None, step: int) -> None:
        """Goes on at the position of a checkpoint of `step` steps; weights that have changed hold from there on.

        Args:
            state: What `state` returned; None or empty for a checkpoint of a run that began before positions were kept.
            step: Number of optimizer steps so far.

        Raises:
            CheckpointError: The state is of other sources.
        """
        self._window = (0, np.empty(0, np.int64))
        if not state:
            self._order = StoredOrder(len(self.dataset), self.seed, self.batch_size)
            return
        order = GlobalOrder(self.dataset.sizes, self.seed, self.dataset.weights)
        wanted = order.segments[0].weights
        order.restore(state["segments"])
        order.change_weights(state["position"], wanted)
        self._order = order
        self._origin = state["position"] - step * self.batch_size

    def sample_ids(self, step: int, idx: int) -> NDArray[np.int64]:
        """Returns the numbers of the samples in part `idx` of the batch of `step`; both count from 0."""
        start = self._origin + step * self.batch_size
        first, last = (start + edge * self.batch_size // self.parts for edge in (idx, idx + 1))
        if isinstance(self._order, StoredOrder):
            return self._order.at(np.arange(first, last))
        begin, numbers = self._window
        if first < begin or last > begin + len(numbers):
            begin, numbers = first, self._order.at(np.arange(first, max(last, first + _LOOKED_UP)))
            self._window = (begin, numbers)
        return numbers[first - begin : last - begin].copy()

    def part(self, step: int, idx: int) -> Batch:
        """Returns part `idx` of the batch of `step`; both count from 0."""
        ids = self.sample_ids(step, idx)
        if self.log_file is not None:
            line = {"position": self._origin + step * self.batch_size, "part": idx, "ids": ids.tolist()}
            with self.log_file.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
        return self.dataset.batch(ids)


def in_order(dataset: Dataset, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
    """Yields every sample once, in batches; each of `world_size` processes gets every `world_size`-th batch."""
    for number, start in enumerate(range(0, len(dataset), batch_size)):
        if number % world_size == rank:
            yield dataset.batch(np.arange(start, min(start + batch_size, len(dataset))))
