"""The line on the screen that says how a run is doing."""

from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress import MofNCompleteColumn, Progress, TaskID
from rich.text import Text

from llm.progress import progress_bar
from llm.training.best import BestLoss
from llm.training.callbacks.base import Callback
from llm.training.metrics import FitStart, StepMetrics

_MAX_LINES = 20  # of progress, if the output is not a terminal


class ProgressBar(Callback):
    """Shows a bar with loss, speed, memory and time left, or plain lines if the output is not a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.unit = ""
        self.total_steps = 0
        self._next_line = 0
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._figures = Text(no_wrap=True, overflow="ellipsis")
        self._task = TaskID(0)

    def on_fit_start(self, start: FitStart) -> None:
        """Prints model size, precision and device, and draws the bar; for a finished run, prints the last step."""
        self.unit, self.total_steps = start.unit, start.total_steps
        for notice in start.notices:
            self.console.print(f"note: {notice}", highlight=False, soft_wrap=True)
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
            self._task = self._progress.add_task("", total=start.total_steps, completed=start.first_step)
            self._live = Live(Group(self._progress, self._figures), console=self.console, refresh_per_second=10)
            self._live.start()

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        """Advances the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=metrics.step)
            self._figures.plain = figures(metrics, self.unit)
        elif should_log and (metrics.step >= self._next_line or metrics.step == self.total_steps):
            self._next_line = metrics.step + max(1, self.total_steps // _MAX_LINES)
            left = "" if metrics.eta_s is None else f"  {_clock(metrics.eta_s)} left"
            line = f"step {metrics.step}/{self.total_steps}  {figures(metrics, self.unit)}{left}"
            self.console.print(line, highlight=False, soft_wrap=True)

    def on_validation_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Prints the validation metrics above the bar."""
        text = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items())
        self.console.print(f"step {step}  {text}", highlight=False)

    def on_early_stop(self, step: int, best: BestLoss) -> None:
        """Prints why training ends, above the bar."""
        self.console.print(
            f"step {step}  the validation loss fell no more; it was lowest at step {best.step}: {best.loss:.4f}",
            highlight=False,
        )

    def on_fit_end(self) -> None:
        """Stops updating the bar and leaves it on the screen."""
        if self._live is not None:
            self._live.stop()


def figures(metrics: StepMetrics, unit: str) -> str:
    """Returns a step's figures in one line, the most wanted first."""
    parts = [f"loss {metrics.smoothed_loss:.4f}"]
    if "reward" in metrics.facts:
        parts.insert(0, f"reward {metrics.facts['reward']:.3f}")
    if metrics.bits_per_byte is not None:
        parts.append(f"{metrics.bits_per_byte:.3f} bits/byte")
    for name in ("accuracy", "rewards/margin"):
        if name in metrics.facts:
            parts.append(f"{name.rpartition('/')[2]} {metrics.facts[name]:.3g}")
    parts.append(f"{metrics.targets_per_s:,.0f} {unit}/s")
    if metrics.mfu is not None:
        parts.append(f"MFU {metrics.mfu:.1%}")
    parts.append(f"grad {metrics.grad_norm:.3g}")
    if metrics.memory_bytes is not None:
        parts.append(f"{metrics.memory_bytes / 2**30:.2f} GiB")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
