"""Answers that a model drew while it learns from their rewards."""

from collections.abc import Mapping
from typing import Any, Protocol

from llm.checkpoint import Checkpoint, Run
from llm.training.callbacks.base import Callback
from llm.training.metrics import FitStart, StepMetrics


class _Drawing(Protocol):
    """A task that draws answers."""

    @property
    def examples(self) -> list[Any]:
        """Answers of the last draw."""


class AnswerWriter(Callback):
    """Appends an answer of the last draw, with its reward, to `samples.jsonl` at each validation and checkpoint.

    Args:
        run: The run.
        task: The task that draws the answers.
    """

    def __init__(self, run: Run, task: _Drawing) -> None:
        self.run = run
        self.task = task
        self._step = 0

    def on_fit_start(self, start: FitStart) -> None:
        """Removes the answers of steps that will be repeated."""
        self.run.samples.rewind(start.first_step)
        self._step = start.first_step

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:  # noqa: ARG002
        """Writes an answer of the first step."""
        if metrics.step == 1:
            self._write(metrics.step)

    def on_validation_end(self, step: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        """Writes an answer of this step."""
        self._write(step)

    def on_checkpoint(self, step: int, checkpoint: Checkpoint) -> None:  # noqa: ARG002
        """Writes an answer of this step unless a validation has."""
        self._write(step)

    def _write(self, step: int) -> None:
        if step <= self._step or not self.task.examples:
            return
        self._step = step
        one = self.task.examples[step % len(self.task.examples)]
        self.run.samples.append({"step": step, "prompt": one.prompt, "text": one.text, "reward": one.reward})
