"""Runs that were cut off, finished or lengthened, and resumed."""

import io
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from rich.console import Console
from torch import nn

from llm.checkpoint import Run, load_model, load_tensors, write_model
from llm.checkpoint.atomic import write_manifest
from llm.data import SyntheticDataModule
from llm.errors import CheckpointError, ConfigError
from llm.settings.run import GenerationConfig
from llm.training import Callback, JsonlLogger, ProgressBar, RegressionTask, StepMetrics, TrainingEngine
from llm.training.launch import launch, resume
from tests.unit.training_samples import MODEL, config, losses_of, weights_of


class StopAfter(Callback):
    """Interrupts a run as the terminal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        if metrics.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.long
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path: Path, precision: str) -> None:
    settings = config(max_steps=11, checkpoint_every=4, precision=precision)
    whole = launch(settings, tmp_path / "whole")
    for stop_at in (3, 8):
        run = Run(tmp_path / f"cut{stop_at}")
        with pytest.raises(KeyboardInterrupt):
            launch(settings, run.path, callbacks=[JsonlLogger(run), StopAfter(stop_at)])
        assert run.newest() == run.checkpoint(stop_at)
        assert weights_of(resume(run.path)) == weights_of(whole)
        assert losses_of(run.path) == losses_of(tmp_path / "whole")
        for name in ("optimizer.safetensors", "state.json"):
            resumed = run.newest().training_state / name
            assert resumed.read_bytes() == (whole.training_state / name).read_bytes()


@pytest.mark.long
def test_a_run_whose_weights_are_in_several_files_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    settings = config(max_steps=5)
    whole = launch(settings, tmp_path / "whole")
    run = Run(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        launch(settings, run.path, callbacks=[StopAfter(3)])
    checkpoint = run.newest().path
    model = load_model(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    write_model(checkpoint, model, None, max_shard_bytes=4_000)
    write_manifest(checkpoint)
    assert len(list(checkpoint.glob("model-0*.safetensors"))) > 2
    assert weights_of(resume(run.path)) == weights_of(whole)


@pytest.mark.long
def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path: Path) -> None:
    whole = launch(config(), tmp_path / "whole")
    run = Run(tmp_path / "run")
    run.create(config(), {})
    run.append_log({"step": 1, "loss": 3.0})
    (run.path / "log.jsonl").open("a").write('{"step": 2, "lo')
    assert weights_of(resume(run.path)) == weights_of(whole)
    assert losses_of(run.path) == losses_of(tmp_path / "whole")


def test_a_longer_run_may_be_asked_for_but_no_other(tmp_path: Path) -> None:
    launch(config(max_steps=3), tmp_path / "run")
    longer = resume(tmp_path / "run", overrides=["training.max_steps=5"])
    assert longer.path.name == "step_00000005"
    with pytest.raises(ConfigError, match=r"`training.batch_size` can't change on resume: the run has 8, got 4"):
        resume(tmp_path / "run", overrides=["training.max_steps=5", "training.batch_size=4"])


def test_resuming_keeps_the_sampling_values(tmp_path: Path) -> None:
    values = GenerationConfig(temperature=0.5, top_k=7)
    run = Run(tmp_path / "run")
    settings = msgspec.structs.replace(config(max_steps=2), generation=values)
    launch(settings, run.path)
    resume(run.path, overrides=["training.max_steps=3"])
    assert run.read_config().generation == values


def test_a_finished_run_resumes_to_nothing_more(tmp_path: Path) -> None:
    newest = launch(config(max_steps=2), tmp_path / "run")
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    assert resume(tmp_path / "run") == newest
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log


def test_resuming_a_finished_run_says_so(tmp_path: Path) -> None:
    launch(config(max_steps=2), tmp_path / "run", callbacks=[])
    output = io.StringIO()
    resume(tmp_path / "run", callbacks=[ProgressBar(Console(file=output))])
    assert output.getvalue().splitlines()[-1] == "already at step 2 of 2"


def test_what_a_crash_left_half_made_is_cleared_away(tmp_path: Path) -> None:
    launch(config(max_steps=2), tmp_path / "run")
    half = tmp_path / "run" / "checkpoints" / ".tmp-step_00000003"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    resume(tmp_path / "run", overrides=["training.max_steps=4"])
    assert {entry.name for entry in half.parent.iterdir()} == {"step_00000002", "step_00000004"}


class PlainTask(RegressionTask):
    """A task whose model is a module of PyTorch alone."""

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))


def plain_engine(run: Run, **more: Any) -> TrainingEngine:
    settings = config(task="regression")
    return TrainingEngine(
        settings, PlainTask(MODEL), SyntheticDataModule(64, "regression", num_features=16), run, **more
    )


def test_a_plain_module_is_saved_as_custom_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    runs = [Run(tmp_path / name) for name in ("whole", "cut")]
    for run in runs:
        run.create(config(task="regression"), {})
    whole = plain_engine(runs[0]).fit()
    with pytest.raises(KeyboardInterrupt):
        plain_engine(runs[1], callbacks=[StopAfter(3)]).fit()
    resumed = plain_engine(runs[1]).fit(resume=True)
    assert resumed == runs[1].checkpoint(6)
    assert weights_of(resumed) == weights_of(whole)
    assert (resumed.values["model_type"], resumed.architecture) == ("custom", "Sequential")
    with pytest.raises(CheckpointError, match="holds a Sequential, which only the task that trained it can build"):
        resumed.model()
    module = PlainTask(MODEL).build_model()
    resumed.load_weights(module)
    weights = load_tensors(resumed.path / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())
