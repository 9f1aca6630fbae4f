"""Batches that a data module passes to a task."""

from dataclasses import dataclass

import torch
from torch import Tensor

from llm.models import IGNORED_LABEL

__all__ = ["IGNORED_LABEL", "Batch", "RegressionBatch", "TokenBatch"]


@dataclass(frozen=True)
class TokenBatch:
    """Token sequences, concatenated.

    Attributes:
        token_ids: int64 `[T]`.
        labels: int64 `[T]`, the next token at each position, or `IGNORED_LABEL` to exclude the position from the loss.
        lengths: Length of each sequence; they sum to `T`.
        sources: Index of each sequence's source; empty unless there are several sources.
    """

    token_ids: Tensor
    labels: Tensor
    lengths: tuple[int, ...]
    sources: tuple[int, ...] = ()

    def to(self, device: torch.device) -> "TokenBatch":
        """Returns the batch on `device`."""
        return TokenBatch(self.token_ids.to(device), self.labels.to(device), self.lengths, self.sources)


@dataclass(frozen=True)
class RegressionBatch:
    """Regression samples: features fp32 `[B, F]` and targets fp32 `[B]`."""

    features: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "RegressionBatch":
        """Returns the batch on `device`."""
        return RegressionBatch(self.features.to(device), self.targets.to(device))


Batch = TokenBatch | RegressionBatch
