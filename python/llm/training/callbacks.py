"""What happens beside the loop: progress, log, picture. A user's own subclasses `Callback`."""

import importlib.util
from collections.abc import Mapping

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskID

from llm.checkpoint import Checkpoint, Run
from llm.progress import progress_bar
from llm.training.metrics import FitStart, StepMetrics

_MAX_LINES = 20  # of progress, where there is no terminal to draw a bar in


class Callback:
    """Hooks of a run; all do nothing by default. Only the main process calls them."""

    def on_fit_start(self, start: FitStart) -> None:
        """Before the first step."""

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        """After each optimizer step; `should_log` at the steps the config asks to log."""

    def on_validation_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """After each validation."""

    def on_checkpoint(self, step: int, checkpoint: Checkpoint) -> None:
        """After a checkpoint is whole on disk."""

    def on_fit_end(self) -> None:
        """After the last step, and when the run is left early."""


class JsonlLogger(Callback):
    """Appends steps and validations to the run's `log.jsonl`."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.unit = "targets"

    def on_fit_start(self, start: FitStart) -> None:
        """Drops lines that will be written again."""
        self.unit = start.unit
        self.run.rewind_log(start.first_step)

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        """Writes the step's line when it is due."""
        if should_log:
            self.run.append_log(metrics.record(self.unit))

    def on_validation_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the validation's line."""
        self.run.append_log({"step": step, **metrics})


class ProgressBar(Callback):
    """A bar with loss, speed and time left; plain lines where the output is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.unit = ""
        self.total_steps = 0
        self._next_line = 0
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def on_fit_start(self, start: FitStart) -> None:
        """Says what is trained and draws the bar."""
        self.unit, self.total_steps = start.unit, start.total_steps
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
        """Moves the bar."""
        text = f"loss {metrics.loss:.4f}  {metrics.targets_per_s:,.0f} {self.unit}/s"
        if self._progress is not None:
            self._progress.update(self._task, completed=metrics.step, description=text)
        elif should_log and (metrics.step >= self._next_line or metrics.step == self.total_steps):
            self._next_line = metrics.step + max(1, self.total_steps // _MAX_LINES)
            self.console.print(f"step {metrics.step}/{self.total_steps}  {text}", highlight=False)

    def on_validation_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Prints the figures above the bar."""
        figures = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items())
        self.console.print(f"step {step}  {figures}", highlight=False)

    def on_fit_end(self) -> None:
        """Leaves the bar as it stands."""
        if self._progress is not None:
            self._progress.stop()


class LossPlot(Callback):
    """Draws the log as `loss.png` at each checkpoint, where matplotlib is installed."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.enabled = importlib.util.find_spec("matplotlib") is not None

    def on_checkpoint(self, step: int, checkpoint: Checkpoint) -> None:  # noqa: ARG002
        """Draws the curve so far."""
        if self.enabled:
            plot_losses(self.run)


def plot_losses(run: Run) -> None:
    """Writes the training and validation loss over steps as a picture."""
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
