"""The lowest validation loss of a run, and when to stop waiting for a lower one."""

from collections.abc import Mapping
from typing import Any


class BestLoss:
    """Remembers the lowest validation loss; its state is part of a checkpoint, so a resumed run decides alike.

    Attributes:
        loss: The lowest loss so far; None before the first validation.
        step: The step of that loss.
        num_worse: Number of validations since then.
    """

    def __init__(self) -> None:
        self.loss: float | None = None
        self.step = -1
        self.num_worse = 0

    def update(self, step: int, loss: float) -> None:
        """Takes the loss of a validation."""
        if self.loss is None or loss < self.loss:
            self.loss, self.step, self.num_worse = loss, step, 0
        else:
            self.num_worse += 1

    def is_over(self, patience: int | None) -> bool:
        """Returns whether the last `patience` validations found no lower loss."""
        return patience is not None and self.num_worse >= patience

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps."""
        return {"best_loss": self.loss, "best_step": self.step, "num_worse": self.num_worse}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a checkpoint's state; a checkpoint of an earlier version keeps none."""
        self.loss = state.get("best_loss")
        self.step = state.get("best_step", -1)
        self.num_worse = state.get("num_worse", 0)
