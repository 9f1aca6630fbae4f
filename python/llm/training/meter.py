"""Measures a run while it trains: time, speed, smoothed loss, use of the device."""

import math
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import nn

from llm.checkpoint import Run
from llm.models import DecoderModel
from llm.models.costs import flops_per_token
from llm.training.distributed import Distributed
from llm.training.metrics import StepMetrics
from llm.training.utilization import memory_bytes, peak_flops

_MEMORY_AGE_S = 0.1  # steps of small models take less time than memory does to change
_SMOOTHING = 0.05  # weight of the newest loss once there are 20


class Meter:
    """Adds to a step's metrics what only a clock and a memory of earlier steps can say.

    The targets seen and the smoothed loss are part of a checkpoint's state, so they continue exactly. The time taken is
    not, because equal runs must write equal checkpoints: it continues from the run's log.

    Args:
        total_steps: Number of steps of the whole run.
        device: The device whose memory is read.
        flops_per_target: Operations of a forward and backward pass per target; None if unknown.
        peak: Operations per second of all devices together; None if unknown.
    """

    def __init__(
        self, total_steps: int, device: torch.device, flops_per_target: float | None, peak: float | None
    ) -> None:
        self.total_steps = total_steps
        self.device = device
        self.targets = 0
        self.smoothed_loss: float | None = None
        self._flops_per_target = flops_per_target
        self._peak = peak
        self._earlier_s = 0.0
        self._first_step = 0
        self._started = time.perf_counter()
        self._window = (self._started, 0.0)
        self._memory_bytes: int | None = None
        self._memory_read = -math.inf

    @classmethod
    def of(
        cls, model: nn.Module, context_length: int, total_steps: int, distributed: Distributed, dtype: torch.dtype
    ) -> "Meter":
        """Returns the meter of a run; the use of the device is known for a `DecoderModel` only."""
        # Processes on one CPU share it, so what one of them measures is not its own.
        shares_cpu = distributed.device.type == "cpu" and distributed.world_size > 1
        if not distributed.is_main or shares_cpu or not isinstance(model, DecoderModel):
            return cls(total_steps, distributed.device, None, None)
        peak = peak_flops(distributed.device, dtype)
        flops = flops_per_token(model.config, context_length)
        return cls(total_steps, distributed.device, flops, peak and peak * distributed.world_size)

    @property
    def elapsed_s(self) -> float:
        """Seconds of training before the last start."""
        return self._earlier_s

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps."""
        return {"targets": self.targets, "smoothed_loss": self.smoothed_loss}

    def restore(self, state: Mapping[str, Any], elapsed_s: float) -> None:
        """Continues from a checkpoint's state; a checkpoint of an earlier version keeps none, and counting restarts."""
        self.targets = state.get("targets", 0)
        self.smoothed_loss = state.get("smoothed_loss")
        self._earlier_s = elapsed_s

    def start(self, step: int) -> None:
        """Starts the clock before the step after `step`."""
        self._first_step = step
        self._started = time.perf_counter()
        self.restart_window()

    def restart_window(self) -> None:
        """Starts the speed's window anew, so that the speed excludes what was done meanwhile."""
        self._window = (time.perf_counter(), 0.0)

    def measured(
        self, metrics: StepMetrics, num_targets: float, num_bytes: float, num_positions: float | None = None
    ) -> StepMetrics:
        """Returns `metrics` with the fields that this class measures.

        Args:
            metrics: The step's loss, rates and counters.
            num_targets: Number of the step's targets over all devices.
            num_bytes: Bytes of text that they represent; 0 if the data is not text.
            num_positions: Number of positions computed, which are counted and timed; None for as many as targets.
        """
        now = time.perf_counter()
        num_positions = num_targets if num_positions is None else num_positions
        self.targets += int(num_positions)
        smoothed_loss = self._smoothed(metrics)
        started, before = self._window
        self._window = (started, before + num_positions)
        speed = self._window[1] / (now - started)
        bits = smoothed_loss * num_targets / math.log(2) / num_bytes if num_bytes else None
        return msgspec.structs.replace(
            metrics,
            targets_per_s=speed,
            targets=self.targets,
            smoothed_loss=smoothed_loss,
            bits_per_byte=bits,
            elapsed_s=self._earlier_s + now - self._started,
            eta_s=self._eta_s(metrics.step, now),
            mfu=self._utilization(speed),
            memory_bytes=self._memory(now),
        )

    def _utilization(self, speed: float) -> float | None:
        """Returns the share of the peak that `speed` takes, in targets a second; None if either is unknown.

        A CPU's peak was measured at the start, perhaps on a busy machine: a speed above it is the peak from then on.
        """
        if not self._flops_per_target or not self._peak:
            return None
        reached = speed * self._flops_per_target
        if self.device.type == "cpu":
            self._peak = max(self._peak, reached)
        return reached / self._peak

    def _memory(self, now: float) -> int | None:
        if now - self._memory_read > _MEMORY_AGE_S:
            self._memory_bytes, self._memory_read = memory_bytes(self.device), now
        return self._memory_bytes

    def _smoothed(self, metrics: StepMetrics) -> float:
        """A plain mean of the first steps turns into a moving average."""
        before = metrics.loss if self.smoothed_loss is None else self.smoothed_loss
        self.smoothed_loss = before + max(_SMOOTHING, 1 / metrics.step) * (metrics.loss - before)
        return self.smoothed_loss

    def _eta_s(self, step: int, now: float) -> float | None:
        done = step - self._first_step
        return None if done < 2 else (now - self._started) / done * (self.total_steps - step)


def elapsed_at(run: Run, step: int) -> float:
    """Returns the seconds of training until `step` by the run's log; 0 if the log has no clock."""
    times = [line["elapsed_s"] for line in run.read_log() if line["step"] <= step and line.get("elapsed_s")]
    return float(max(times, default=0.0))
