"""The picture of a run's losses."""

import importlib.util

from llm.checkpoint import Checkpoint, Run
from llm.training.callbacks.base import Callback


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
    """Writes `loss.png` with the training and validation losses over steps, once the log has any."""
    from matplotlib.figure import Figure

    log = run.read_log()
    if not log:
        return
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
