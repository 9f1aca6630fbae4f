"""Figures of a run as it goes."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class FitStart:
    """What is known before the first step."""

    first_step: int
    total_steps: int
    unit: str
    num_parameters: int
    precision: str
    device: str


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step.

    Attributes:
        step: Optimizer steps done, this one included.
        loss: Mean over the targets of the whole batch.
        learning_rate: Used in this step.
        grad_norm: Global, before clipping.
        targets_per_s: Over the steps since the last line of the log.
        skipped_steps: Steps the fp16 loss scaler has left out so far.
        facts: What else the task says: further losses, the load of experts.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    targets_per_s: float
    skipped_steps: int
    facts: dict[str, Any] = field(default_factory=dict)

    def record(self, unit: str) -> dict[str, Any]:
        """The log's line."""
        values = asdict(self)
        values |= values.pop("facts")
        values[f"{unit}_per_s"] = round(values.pop("targets_per_s"), 1)
        return values
