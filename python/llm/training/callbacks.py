"""Callbacks of the training loop: progress bar, log and loss curve. Subclass `Callback` to write your own."""

import importlib.util
from collections.abc import Mapping

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskID

from llm.checkpoint import Checkpoint, Run
from llm.progress import progress_bar
from llm.training.metrics import FitStart, StepMetrics

_MAX_LINES = 20  # of progress, if the output is not a terminal


class Callback:
    """Hooks of a run, called in the main process only; by default, each hook does nothing."""

    def on_fit_start(self, start: FitStart) -> None:
        """Called before the first step, and when a resumed run is already finished."""

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        """Called after each optimizer step; `should_log` is set for steps that the settings select for logging."""

    def on_validation_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called after each validation."""

    def on_checkpoint(self, step: int, checkpoint: Checkpoint) -> None:
        """Called after a checkpoint is completely written to disk."""

    def on_fit_end(self) -> None:
        """Called after the last step, or when the run ends early."""


class JsonlLogger(Callback):
    """Appends steps and validations to the run's `log.jsonl`."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.unit = "targets"

    def on_fit_start(self, start: FitStart) -> None:
        """Removes the log lines of steps that will be repeated."""
        self.unit = start.unit
        self.run.rewind_log(start.first_step)

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        """Writes the step's line if the step is selected for logging."""
        if should_log:
            self.run.append_log(metrics.record(self.unit))

    def on_validation_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the validation's line."""
        self.run.append_log({"step": step, **metrics})


class ProgressBar(Callback):
    """Shows a bar with loss, speed and time left, or plain lines if the output is not a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.unit = ""
        self.total_steps = 0
        self._next_line = 0
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def on_fit_start(self, start: FitStart) -> None:
        """Prints model size, precision and device, and draws the bar; for a finished run, prints the last step."""
        self.unit, self.total_steps = start.unit, start.total_steps
        if start.first_step >= start.total_steps:
            self.console.print(f"already at step {start.first_step} of {start.total_steps}", highlight=False)
            return
        self.console.print(
            f"{start.num_parameters:,} parameters, {start.precision} on {start.device}, "
            f"steps {start.first_step} → {start.total_steps}",
            highlight=False,
        )
        if self.console.is_terminal:
            self._progress = progress_bar(MofNCompleteColumn(), wanted=True, console=self.console)
            self._progress.start()
            self._task = self._progress.add_task("", total=start.total_steps, completed=start.first_step)

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        """Advances the bar."""
        text = f"loss {metrics.loss:.4f}  {metrics.targets_per_s:,.0f} {self.unit}/s"
        if self._progress is not None:
            self._progress.update(self._task, completed=metrics.step, description=text)
        elif should_log and (metrics.step >= self._next_line or metrics.step == self.total_steps):
            self._next_line = metrics.step + max(1, self.total_steps // _MAX_LINES)
            self.console.print(f"step {metrics.step}/{self.total_steps}  {text}", highlight=False)

    def on_validation_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Prints the validation metrics above the bar."""
        figures = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items())
        self.console.print(f"step {step}  {figures}", highlight=False)

    def on_fit_end(self) -> None:
        """Stops updating the bar and leaves it on the screen."""
        if self._progress is not None:
            self._progress.stop()


class LossPlot(Callback):
    """Draws the loss curves as `loss.png` at each checkpoint if matplotlib is installed."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.enabled = importlib.util.find_spec("matplotlib") is not None

    def on_checkpoint(self, step: int, checkpoint: Checkpoint) -> None:  # noqa: ARG002
        """Draws the loss curves so far."""
        if self.enabled:
            plot_losses(self.run)


def plot_losses(run: Run) -> None:
    """Writes `loss.png` with the training and validation losses over steps."""
    from matplotlib.figure import Figure

    log = run.read_log()
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", "training", "-"), ("validation_loss", "validation", "o-")):
        points = [(line["step"], line[key]) for line in log if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    temporary = run.plot_file.with_name(".tmp-loss.png")
    figure.savefig(temporary, dpi=110)
    temporary.replace(run.plot_file)
