"""Order of training samples: shuffled per epoch, resumable from two integers, sharded without changing the batch."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from llm.data.base import Dataset
from llm.data.batch import Batch
from llm.errors import DataError
from llm.settings.run import TrainingConfig


class BatchLoader:
    """Finds the samples of any optimizer step in O(1), so resuming does not iterate over earlier samples.

    The samples of a step depend on the seed and the step only. Processes and accumulation passes split the same batch
    into parts, which differ by at most one sample, so together they see the samples that a single process would see.
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
        self._order: tuple[int, NDArray[np.int64]] | None = None

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
        """Number of whole batches per epoch; the samples left over are skipped in that epoch."""
        return len(self.dataset) // self.batch_size

    def part(self, step: int, idx: int) -> Batch:
        """Returns part `idx` of the batch of `step`; both count from 0."""
        return self.dataset.batch(self.sample_ids(step, idx))

    def sample_ids(self, step: int, idx: int) -> NDArray[np.int64]:
        """Returns the numbers of a part's samples in the dataset."""
        epoch, position = divmod(step, self.steps_per_epoch)
        first, last = (position * self.batch_size + edge * self.batch_size // self.parts for edge in (idx, idx + 1))
        return self._epoch_order(epoch)[first:last]

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64)))
            self._order = (epoch, generator.permutation(len(self.dataset)))
        return self._order[1]


def in_order(dataset: Dataset, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
    """Yields every sample once, in batches; each of `world_size` processes gets every `world_size`-th batch."""
    for number, start in enumerate(range(0, len(dataset), batch_size)):
        if number % world_size == rank:
            yield dataset.batch(np.arange(start, min(start + batch_size, len(dataset))))
