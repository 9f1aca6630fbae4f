"""Synthetic samples that a model can learn, for tests, benchmarks and trial runs without data."""

import numpy as np
import torch
from numpy.typing import NDArray

from llm.data.base import BaseDataModule, Dataset
from llm.data.batch import RegressionBatch, TokenBatch
from llm.errors import InvalidArgumentError


class _CountingTokens(Dataset):
    """Sequences that count up from a random start by a random stride, modulo the vocabulary."""

    def __init__(self, num_samples: int, context_length: int, vocab_size: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        start = generator.integers(0, vocab_size, (num_samples, 1))
        stride = generator.integers(1, 4, (num_samples, 1))
        self.tokens = (start + stride * np.arange(context_length + 1)) % vocab_size

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: NDArray[np.int64]) -> TokenBatch:
        rows = torch.from_numpy(self.tokens[indices])
        return TokenBatch(rows[:, :-1].flatten(), rows[:, 1:].flatten(), (rows.shape[1] - 1,) * len(rows))


class _LinearTargets(Dataset):
    """Normally distributed features; the targets are a fixed linear map of them plus noise."""

    def __init__(self, num_samples: int, num_features: int, seed: int, weight_seed: int) -> None:
        generator = np.random.default_rng(seed)
        weight = np.random.default_rng(weight_seed).normal(size=num_features) / np.sqrt(num_features)
        self.features = generator.normal(size=(num_samples, num_features)).astype(np.float32)
        noise = 0.1 * generator.normal(size=num_samples)
        self.targets = (self.features @ weight + noise).astype(np.float32)

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: NDArray[np.int64]) -> RegressionBatch:
        return RegressionBatch(torch.from_numpy(self.features[indices]), torch.from_numpy(self.targets[indices]))


class SyntheticDataModule(BaseDataModule):
    """Seeded synthetic samples: counting sequences or linear regression.

    Args:
        num_samples: Number of training samples; validation gets an eighth as many in addition.
        task: `lm` (needs `vocab_size` and `context_length`) or `regression` (needs `num_features`).
        seed: Determines every sample.

    Example:
        >>> from llm import SyntheticDataModule
        >>> data = SyntheticDataModule(64, task="lm", vocab_size=50, context_length=16)
        >>> len(data.train_dataset()), len(data.validation_dataset())
        (64, 8)
    """

    def __init__(
        self,
        num_samples: int = 1024,
        task: str = "lm",
        *,
        vocab_size: int = 256,
        context_length: int = 64,
        num_features: int = 16,
        seed: int = 0,
    ) -> None:
        if task not in ("lm", "regression"):
            raise InvalidArgumentError(f"`task` must be lm or regression, got {task!r}")
        self.num_samples = num_samples
        self.task = task
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.num_features = num_features
        self.seed = seed

    def train_dataset(self) -> Dataset:
        """Returns the training samples."""
        # Even seeds train and odd ones validate, so no two modules share a sample stream.
        return self._make(self.num_samples, seed=2 * self.seed)

    def validation_dataset(self) -> Dataset | None:
        """Returns samples of the same rule that training never sees."""
        return self._make(max(1, self.num_samples // 8), seed=2 * self.seed + 1)

    def _make(self, num_samples: int, seed: int) -> Dataset:
        if self.task == "regression":
            return _LinearTargets(num_samples, self.num_features, seed, weight_seed=self.seed)
        return _CountingTokens(num_samples, self.context_length, self.vocab_size, seed)
