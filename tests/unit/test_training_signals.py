"""SIGTERM and Ctrl-C at every stage of a run: what is saved, what is said, and that the resumed run is the same."""

import json
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.checkpoint import Run
from llm.cli.main import app
from llm.data import SyntheticDataModule
from llm.settings.run import DataConfig, RunConfig, TokenizerConfig
from llm.tokenization import SimpleCharacterTokenizer
from llm.training import Callback, JsonlLogger, LanguageModelingTask, StepMetrics, TrainingEngine
from llm.training.distributed import Distributed
from llm.training.launch import launch, resume
from llm.training.metrics import without_machine
from llm.training.signals import Interrupted
from tests.unit.processes import in_processes
from tests.unit.training_samples import MODEL, config, weights_of


class KilledTask(LanguageModelingTask):
    """Sends a signal to its own process in the middle of a validation."""

    batches_left = -1

    def loss_sum(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        if not model.training:
            self.batches_left -= 1
            if self.batches_left == 0:
                os.kill(os.getpid(), signal.SIGTERM)
        return super().loss_sum(model, batch)


class Count(Callback):
    def __init__(self) -> None:
        self.validated: list[int] = []

    def on_validation_end(self, step: int, metrics: Mapping[str, float]) -> None:
        self.validated.append(step)


def engine(run: Run, settings: RunConfig, batches_left: int, *callbacks: Callback) -> TrainingEngine:
    """With a validation set of 15 batches."""
    if not run.exists:
        run.create(settings, {})
    task = KilledTask(MODEL)
    task.batches_left = batches_left
    data = SyntheticDataModule(960, "lm", vocab_size=32, context_length=16)
    return TrainingEngine(settings, task, data, run, callbacks=[JsonlLogger(run), *callbacks])


@pytest.mark.parametrize("checkpoint_every", [2, 100])
@pytest.mark.parametrize("killed_in", [1, 2], ids=["first validation", "last validation"])
def test_a_signal_ends_a_validation_which_the_resumed_run_makes_up_for(
    tmp_path: Path, killed_in: int, checkpoint_every: int
) -> None:
    settings = config(max_steps=4, validate_every=2, checkpoint_every=checkpoint_every)
    whole, cut = Run(tmp_path / "whole"), Run(tmp_path / "cut")
    straight = Count()
    engine(whole, settings, -1, straight).fit()
    first, second = Count(), Count()
    batches = 15 * (killed_in - 1) + 3
    stopped = engine(cut, settings, batches, first)
    with pytest.raises(Interrupted) as stop:
        stopped.fit()
    assert stop.value.number == signal.SIGTERM
    assert cut.newest() == cut.checkpoint(2 * killed_in)
    assert stopped.task.batches_left == 0, "the validation went on"
    assert weights_of(engine(cut, settings, -1, second).fit(resume=True)) == weights_of(whole.newest())
    assert first.validated + second.validated == straight.validated == [2, 4]
    logs = [[without_machine(line) for line in run.read_log()] for run in (whole, cut)]
    assert logs[0] == logs[1]
    again = Count()
    engine(cut, settings, -1, again).fit(resume=True)
    assert again.validated == []


class SignalAfter(Callback):
    """Sends signals to its own process after a step."""

    def __init__(self, step: int, *signals: int) -> None:
        self.step, self.signals = step, signals

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        if metrics.step == self.step:
            for number in self.signals:
                os.kill(os.getpid(), number)


def test_one_signal_saves_and_a_second_one_leaves_at_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)  # a handler of its own where coverage is measured
    for name, signals, saved in (("one", [signal.SIGTERM], True), ("two", [signal.SIGTERM, signal.SIGINT], False)):
        run = Run(tmp_path / name)
        with pytest.raises(Interrupted) as stop:
            launch(config(), run.path, callbacks=[SignalAfter(3, *signals)])
        assert stop.value.number == signals[-1]
        assert [entry.path.name for entry in run.checkpoints()] == (["step_00000003"] if saved else [])
    assert signal.getsignal(signal.SIGTERM) is before


class KilledTokenizer(SimpleCharacterTokenizer):
    def encode_batch_flat(self, texts: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().encode_batch_flat(texts, **options)


def test_a_signal_during_tokenization_leaves_nothing_half_written(tmp_path: Path) -> None:
    text = tmp_path / "c.txt"
    text.write_text("to be or not to be " * 50)
    settings = RunConfig(
        model=MODEL, data=DataConfig(paths=(str(text),)), tokenizer=TokenizerConfig(), training=config().training
    )
    tokenizer = KilledTokenizer.train(text.read_text())
    with pytest.raises(Interrupted):
        launch(settings, tmp_path / "run", tokenizer=tokenizer)
    assert not (tmp_path / "run").exists()


def test_the_command_says_what_is_saved_and_sigterm_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    settings = ["data.kind=synthetic", "data.num_samples=64", "model.hidden_size=16", "model.num_hidden_layers=1"]
    settings += ["context_length=16", "training.log_every=1", "batch_size=2", "device=cpu"]

    def kill_after_a_step() -> None:
        while not Run(out).read_log():
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=kill_after_a_step)
    sender.start()
    status = app(["train", "--out", str(out), *settings, "--max-steps", "100000"], standalone_mode=False)
    sender.join()
    assert status == 0
    said = capsys.readouterr().err.splitlines()[-1]
    step = int(Run(out).newest().path.name.removeprefix("step_"))
    assert said == f"stopped, saved at step {step}; resume with:  llm train --resume {out}"
    assert resume(out, overrides=[f"training.max_steps={step + 1}"]) == Run(out).checkpoint(step + 1)


def validate_until_killed(out: Path) -> None:
    """Rank 1 alone gets the signal."""
    settings = config(max_steps=4, validate_every=2)
    run = Run(out)
    distributed = Distributed.start("cpu")
    task = KilledTask(MODEL)
    task.batches_left = 2 if distributed.rank == 1 else -1
    data = SyntheticDataModule(960, "lm", vocab_size=32, context_length=16)
    engine = TrainingEngine(settings, task, data, run, distributed=distributed)
    with pytest.raises(Interrupted) as stop:
        engine.fit()
    assert stop.value.number == signal.SIGTERM
    distributed.stop()


def test_a_signal_to_one_process_ends_the_validation_of_all(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create(config(max_steps=4, validate_every=2), {})
    in_processes(2, validate_until_killed, run.path)
    assert [entry.path.name for entry in run.checkpoints()] == ["step_00000002"]
    state = json.loads((run.checkpoint(2).training_state / "state.json").read_text())
    assert state["validation_due"] is True
