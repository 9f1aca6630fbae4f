"""What a data module hands to a task."""

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED_LABEL = -100


@dataclass(frozen=True)
class TokenBatch:
    """Sequences of tokens, one after the other.

    Attributes:
        token_ids: int64 `[T]`.
        labels: int64 `[T]`, the token that follows each; `IGNORED_LABEL` where none is to be learnt.
        lengths: Of the sequences; their sum is `T`.
    """

    token_ids: Tensor
    labels: Tensor
    lengths: tuple[int, ...]

    def to(self, device: torch.device) -> "TokenBatch":
        """The same batch on `device`."""
        return TokenBatch(self.token_ids.to(device), self.labels.to(device), self.lengths)


@dataclass(frozen=True)
class RegressionBatch:
    """Features fp32 `[B, F]` and targets fp32 `[B]`."""

    features: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "RegressionBatch":
        """The same batch on `device`."""
        return RegressionBatch(self.features.to(device), self.targets.to(device))


Batch = TokenBatch | RegressionBatch
