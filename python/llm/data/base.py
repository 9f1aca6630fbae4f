"""What every source of training samples offers."""

import abc

import numpy as np
from numpy.typing import NDArray

from llm.data.batch import Batch


class Dataset(abc.ABC):
    """Samples that can be taken in any order."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abc.abstractmethod
    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """The samples at `indices`, in this order."""


class BaseDataModule(abc.ABC):
    """A training and a validation set.

    A user's own source subclasses this and goes straight to `TrainingEngine`.
    """

    @abc.abstractmethod
    def train_dataset(self) -> Dataset:
        """Samples to learn from."""

    @abc.abstractmethod
    def validation_dataset(self) -> Dataset | None:
        """Samples to be judged by; `None`: no validation."""
