"""The log of a run, as lines of JSON."""

from collections.abc import Mapping
from typing import Any

from llm.checkpoint import Run
from llm.training.best import BestLoss
from llm.training.callbacks.base import Callback
from llm.training.metrics import FitStart, StepMetrics


class JsonlLogger(Callback):
    """Appends steps and validations to the run's `log.jsonl`."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.unit = "targets"
        self._clock: dict[str, Any] = {}

    def on_fit_start(self, start: FitStart) -> None:
        """Removes the log lines of steps that will be repeated."""
        self.unit = start.unit
        self._clock = {self.unit: start.targets, "elapsed_s": round(start.elapsed_s, 3)}
        self.run.rewind_log(start.first_step)

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        """Writes the step's line if the step is selected for logging."""
        self._clock = metrics.clock(self.unit)
        if should_log:
            self.run.append_log(metrics.record(self.unit))

    def on_early_stop(self, step: int, best: BestLoss) -> None:
        """Writes that the run is finished, and its best step."""
        self.run.append_log({"step": step, "stopped_early": True, "best_step": best.step})

    def on_validation_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the validation's line, with the targets seen and the time taken until its step."""
        self.run.append_log({"step": step, **metrics, **self._clock})
