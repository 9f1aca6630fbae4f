"""The base class of callbacks."""

from collections.abc import Mapping

from llm.checkpoint import Checkpoint
from llm.training.best import BestLoss
from llm.training.metrics import FitStart, StepMetrics


class Callback:
    """Hooks of a run, called in the main process only; by default, each hook does nothing.

    Attributes:
        in_all_processes: Whether the hooks are called in every process, for work that takes all of them. With
            `training.async_save`, `on_checkpoint` is then called at different steps in each process.
    """

    in_all_processes = False

    def on_fit_start(self, start: FitStart) -> None:
        """Called before the first step, and when a resumed run is already finished."""

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        """Called after each optimizer step; `should_log` is set for steps that the settings select for logging."""

    def on_validation_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called after each validation."""

    def on_checkpoint(self, step: int, checkpoint: Checkpoint) -> None:
        """Called after a checkpoint is completely written to disk."""

    def on_early_stop(self, step: int, best: BestLoss) -> None:
        """Called if training ends before its last step because the validation loss fell no more."""

    def on_fit_end(self) -> None:
        """Called after the last step, or when the run ends early."""
