"""Base classes for sources of training samples."""

import abc

import numpy as np
from numpy.typing import NDArray

from llm.data.batch import Batch


class Dataset(abc.ABC):
    """A collection of samples with random access.

    Attributes:
        source_names: Names of the sources that samples come from; empty unless there are several.
    """

    source_names: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of samples of each source; samples are numbered through all sources."""
        return (len(self),)

    @property
    def epoch_samples(self) -> int:
        """Number of samples that together are as long as the data; smaller than the length if samples overlap."""
        return len(self)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Share of each source in the order of training; None for as many samples as each has."""
        return None

    @abc.abstractmethod
    def __len__(self) -> int:
        """Returns the number of samples."""

    @abc.abstractmethod
    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Returns the samples at `indices`, in that order."""


class BaseDataModule(abc.ABC):
    """A source with a training set and a validation set.

    Subclass it for data of your own and pass the instance to `TrainingEngine`.
    """

    @abc.abstractmethod
    def train_dataset(self) -> Dataset:
        """Returns the training samples."""

    @abc.abstractmethod
    def validation_dataset(self) -> Dataset | None:
        """Returns the validation samples, or None to skip validation."""
