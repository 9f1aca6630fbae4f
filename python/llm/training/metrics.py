"""Metrics of a run in progress."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class FitStart:
    """Facts about a run, known before its first step."""

    first_step: int
    total_steps: int
    unit: str
    num_parameters: int
    precision: str
    device: str


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one optimizer step.

    Attributes:
        step: Number of optimizer steps so far, including this one.
        loss: Mean loss over the targets of the whole batch.
        learning_rate: Learning rate of this step.
        grad_norm: Global gradient norm before clipping.
        targets_per_s: Targets per second over the steps since the last line of the log.
        skipped_steps: Number of steps that the fp16 loss scaler has skipped so far.
        facts: Further values from the task, such as auxiliary losses and the load of experts.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    targets_per_s: float
    skipped_steps: int
    facts: dict[str, Any] = field(default_factory=dict)

    def record(self, unit: str) -> dict[str, Any]:
        """Returns the step's line of the log."""
        values = asdict(self)
        values |= values.pop("facts")
        values[f"{unit}_per_s"] = round(values.pop("targets_per_s"), 1)
        return values
