"""This package's loop for `training_loops`, through its public interface."""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

import llm.training.engine
from llm import Callback
from llm.checkpoint import Run, load_model
from llm.data import BaseDataModule, Dataset, TokenBatch
from llm.settings.run import OptimizerConfig, RunConfig, TrainingConfig
from llm.training import JsonlLogger, LanguageModelingTask, StepMetrics, TrainingEngine

if TYPE_CHECKING:
    from training_loops import Gate


class Timed:
    """Stands in for the loop's `record_function` and adds up the seconds of forward, backward and optimizer."""

    seconds = 0.0

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        Timed.seconds += time.perf_counter() - self.began


@dataclasses.dataclass
class Gated(Dataset):
    """Whatever is asked for, the gate's next batch."""

    gate: "Gate"

    def __len__(self) -> int:
        return 10**6

    def batch(self, indices: NDArray[np.int64]) -> TokenBatch:  # noqa: ARG002
        """Returns the gate's next batch."""
        self.gate.parts_seconds, Timed.seconds = Timed.seconds, 0.0
        ids = self.gate.next()
        lengths = (ids.shape[1] - 1,) * ids.shape[0]
        return TokenBatch(ids[:, :-1].flatten(), ids[:, 1:].flatten(), lengths)


@dataclasses.dataclass
class Module(BaseDataModule):
    """Training batches only."""

    gate: "Gate"

    def train_dataset(self) -> Dataset:
        """Returns the gate."""
        return Gated(self.gate)

    def validation_dataset(self) -> None:
        """Returns None."""


class Prepared(LanguageModelingTask):
    """Starts from the weights that all loops start from."""

    path = Path()

    def build_model(self) -> nn.Module:
        """Returns the stored model."""
        return load_model(self.path, "float32")


@dataclasses.dataclass
class Note(Callback):
    """Tells the gate the first loss."""

    gate: "Gate"

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:  # noqa: ARG002
        """Notes the loss."""
        self.gate.note(metrics.loss)


def train(gate: "Gate") -> None:
    """Runs `TrainingEngine.fit` with the callbacks of `llm train` that write on most steps."""
    case = gate.case
    options = {"compile": "on" if case["loop"] == "ours compiled" else "off"}
    training = TrainingConfig(
        max_steps=10**6,
        batch_size=case["batch"],
        precision=case["precision"],
        device="cpu",
        validate_every=10**6,
        checkpoint_every=10**6,
        **{name: value for name, value in options.items() if name in TrainingConfig.__struct_fields__},
    )
    config = RunConfig(
        model=load_model(gate.directory, "float32").config,
        optimizer=OptimizerConfig(min_learning_rate_ratio=1.0, warmup_steps=0),
        training=training,
    )
    llm.training.engine.record_function = Timed  # type: ignore[misc,assignment]
    task = Prepared(config.model)
    task.path = gate.directory
    run = Run(tempfile.mkdtemp())
    run.create(config, {})
    TrainingEngine(config, task, Module(gate), run, callbacks=[JsonlLogger(run), Note(gate)]).fit()
