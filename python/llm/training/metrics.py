"""Metrics of a run in progress."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from torch import nn

# Keys of the log that depend on the machine and its load; all others are equal in a resumed and a straight run.
MACHINE_KEYS = frozenset(
    {"elapsed_s", "tokens_per_s", "samples_per_s", "mfu", "memory_bytes", "rollout_s", "training_s"}
)


@dataclass(frozen=True)
class FitStart:
    """Facts about a run, known before its first step.

    Attributes:
        first_step: Number of steps that earlier starts of the run have finished.
        total_steps: Number of steps of the whole run.
        unit: What the loss is a mean over, `tokens` or `samples`.
        num_parameters: Number of trainable parameters.
        precision: Number type of matrix products.
        device: The device of the main process.
        model: The model itself, not its wrapper for several processes; leave its weights and gradients alone.
        targets: Number of targets so far.
        elapsed_s: Seconds of training so far.
        notices: What the user should know about this start, such as another number of processes than before.
    """

    first_step: int
    total_steps: int
    unit: str
    num_parameters: int
    precision: str
    device: str
    model: nn.Module | None = None
    targets: int = 0
    elapsed_s: float = 0.0
    notices: tuple[str, ...] = ()


class StepMetrics(msgspec.Struct, frozen=True):
    """Metrics of one optimizer step.

    Attributes:
        step: Number of optimizer steps so far, including this one.
        loss: Mean loss over the targets of the whole batch.
        learning_rate: Learning rate of this step.
        grad_norm: Global gradient norm before clipping.
        targets_per_s: Targets per second over the steps since the last line of the log.
        skipped_steps: Number of steps that the fp16 loss scaler has skipped so far.
        facts: Further values from the task, such as auxiliary losses and the load of experts.
        targets: Number of targets so far, over all devices and resumptions.
        smoothed_loss: Moving average of the loss.
        bits_per_byte: The smoothed loss in bits per byte of text; None if the data is not text.
        elapsed_s: Seconds of training so far, over all resumptions, with validation and checkpoints.
        eta_s: Estimate of the seconds left; None in the first step.
        mfu: Share of the devices' peak arithmetic that the model's own operations take; None if either is unknown.
        memory_bytes: Peak of allocated memory on a GPU, otherwise the resident memory of this process.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    targets_per_s: float = 0.0
    skipped_steps: int = 0
    facts: dict[str, Any] = {}
    targets: int = 0
    smoothed_loss: float = float("nan")
    bits_per_byte: float | None = None
    elapsed_s: float = 0.0
    eta_s: float | None = None
    mfu: float | None = None
    memory_bytes: int | None = None

    def clock(self, unit: str) -> dict[str, Any]:
        """Returns the targets seen and the time taken, as lines of the log have them."""
        return {unit: self.targets, "elapsed_s": round(self.elapsed_s, 3)}

    def record(self, unit: str) -> dict[str, Any]:
        """Returns the step's line of the log."""
        values: dict[str, Any] = {
            "step": self.step,
            "loss": self.loss,
            "learning_rate": self.learning_rate,
            "grad_norm": self.grad_norm,
            "skipped_steps": self.skipped_steps,
            **self.facts,
            f"{unit}_per_s": round(self.targets_per_s, 1),
            **self.clock(unit),
        }
        if self.mfu is not None:
            values["mfu"] = float(f"{self.mfu:.4g}")
        if self.memory_bytes is not None:
            values["memory_bytes"] = self.memory_bytes
        return values


def without_machine(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a line of the log without the values that depend on the machine, to compare two runs."""
    return {key: value for key, value in record.items() if key not in MACHINE_KEYS}


def means_of(names: Sequence[str], sums: Sequence[float]) -> dict[str, float]:
    """Returns each name's mean, from all names' sums and then all their counts; names that count nothing are left out.

    Args:
        names: Keys of the result.
        sums: As many sums as names, then as many counts.
    """
    found = zip(names, sums[: len(names)], sums[len(names) :], strict=True)
    return {name: float(total / count) for name, total, count in found if count}
