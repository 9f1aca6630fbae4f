"""Curves for TensorBoard and Weights & Biases."""

import importlib
import os
import secrets
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import msgspec

from llm.checkpoint import Checkpoint, Run, write_atomically
from llm.errors import MissingExtraError
from llm.settings.run import LogTarget
from llm.training.callbacks.base import Callback
from llm.training.callbacks.csv_log import numbers
from llm.training.metrics import FitStart, StepMetrics


class Tracker(Callback):
    """Names the values of a run for programs that draw curves: `train/loss`, `validation/loss` and so on."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.unit = "targets"
        self._last_sample = -1

    def on_fit_start(self, start: FitStart) -> None:
        """Opens the log."""
        self.unit = start.unit
        self._last_sample = start.first_step

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        """Logs the step's values if the step is selected for logging."""
        if should_log:
            record = metrics.record(self.unit) | {"smoothed_loss": metrics.smoothed_loss}
            if metrics.bits_per_byte is not None:
                record["bits_per_byte"] = metrics.bits_per_byte
            self.log(metrics.step, {f"train/{name}": value for name, value in numbers(record) if name != "step"})

    def on_validation_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the validation's values."""
        values = {f"validation/{name.removeprefix('validation_')}": value for name, value in numbers(metrics)}
        self.log(step, values)

    def on_checkpoint(self, step: int, checkpoint: Checkpoint) -> None:  # noqa: ARG002
        """Logs the samples since the last checkpoint."""
        for sample in self.run.samples.read():
            if sample["step"] > self._last_sample:
                self.log_text(sample["step"], "sample", sample["prompt"] + sample["text"])
        self._last_sample = step

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers by their names."""
        raise NotImplementedError

    def log_text(self, step: int, name: str, text: str) -> None:
        """Logs a text."""
        raise NotImplementedError


class TensorBoardLogger(Tracker):
    """Writes event files for TensorBoard into the run's `tensorboard/`.

    Raises:
        MissingExtraError: The package `tensorboard` is not installed.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        required_package("tensorboard")
        self._writer: Any = None

    def on_fit_start(self, start: FitStart) -> None:
        """Opens an event file that hides what earlier files say of steps to be repeated."""
        super().on_fit_start(start)
        tensorboard = importlib.import_module("torch.utils.tensorboard")
        folder = str(self.run.path / "tensorboard")
        self._writer = tensorboard.SummaryWriter(folder, purge_step=start.first_step + 1 if start.first_step else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_text(self, step: int, name: str, text: str) -> None:
        """Writes a text; TensorBoard reads Markdown, in which four spaces keep lines as they are."""
        self._writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()), step)

    def on_checkpoint(self, step: int, checkpoint: Checkpoint) -> None:
        """Logs samples and makes everything so far visible to readers."""
        super().on_checkpoint(step, checkpoint)
        self._writer.flush()

    def on_fit_end(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()


class WandbLogger(Tracker):
    """Logs to Weights & Biases, under the settings that its `WANDB_…` variables give.

    A resumed run goes on in the same run there, by the id in the run's `wandb_id`. With `WANDB_MODE=offline`, nothing
    leaves the machine: the files stay in the run's `wandb/` for `wandb sync`.

    Raises:
        MissingExtraError: The package `wandb` is not installed.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._wandb = required_package("wandb")
        self._tracked: Any = None

    def on_fit_start(self, start: FitStart) -> None:
        """Opens the run, or opens it again after a resumption."""
        super().on_fit_start(start)
        settings = msgspec.to_builtins(self.run.read_config())
        self._tracked = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "llm-oxide"),
            name=os.environ.get("WANDB_NAME", self.run.path.resolve().name),
            id=self._id(),
            resume="allow",
            dir=str(self.run.path),
            config=settings | {"num_parameters": start.num_parameters, "total_steps": start.total_steps},
        )
        self._tracked.define_metric("*", step_metric="step")

    def _id(self) -> str:
        file = self.run.path / "wandb_id"
        if not file.is_file():
            write_atomically(file, secrets.token_hex(4) + "\n")
        return file.read_text(encoding="utf-8").strip()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs scalars over the optimizer step, whatever number W&B counts itself."""
        self._tracked.log({"step": step, **values})

    def log_text(self, step: int, name: str, text: str) -> None:
        """Logs a text, with its spaces and lines."""
        self._tracked.log({"step": step, name: self._wandb.Html(f"<pre>{_escaped(text)}</pre>")})

    def on_fit_end(self) -> None:
        """Closes the run."""
        if self._tracked is not None:
            self._tracked.finish()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def required_package(target: LogTarget) -> ModuleType:
    """Imports the package that the log called `target` needs, which its extra is named after.

    Raises:
        MissingExtraError: The package is not installed.
    """
    try:
        return importlib.import_module(target)
    except ImportError as error:
        raise MissingExtraError(
            f"`training.log_to` names {target!r}, which is not installed: {error}\n"
            f"hint: pip install 'llm-oxide[{target}]'"
        ) from error
