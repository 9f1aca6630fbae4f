"""The best checkpoint of a run, and the end of a run whose validation loss falls no more."""

import os
import signal
from pathlib import Path

import msgspec
import pytest

from llm.checkpoint import Run, resolve
from llm.settings.run import RunConfig
from llm.training import Callback, JsonlLogger, StepMetrics
from llm.training.best import BestLoss
from llm.training.launch import launch, resume
from llm.training.record import RunRecord
from tests.unit.training_samples import config, weights_of


def diverging(**training: object) -> RunConfig:
    """A rate so high that the validation loss rises after a few steps."""
    wanted = {"validate_every": 1, "max_steps": 20, "checkpoint_every": 100, "keep_checkpoints": 1, "keep_best": True}
    settings = config(**(wanted | training))
    optimizer = msgspec.structs.replace(settings.optimizer, learning_rate=0.5, warmup_steps=4)
    return msgspec.structs.replace(settings, optimizer=optimizer)


class StopAt(Callback):
    """Interrupts a run after the validation of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        if metrics.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "run"
    launch(diverging(stop_after_validations=3), path)
    return Run(path)


def losses_by_step(run: Run) -> dict[int, float]:
    return {line["step"]: line["validation_loss"] for line in run.read_log() if "validation_loss" in line}


def test_training_ends_when_the_loss_falls_no_more(run: Run) -> None:
    losses = losses_by_step(run)
    best = min(losses, key=losses.__getitem__)
    assert max(losses) == best + 3 < 20
    assert run.newest() == run.checkpoint(best + 3)
    assert run.read_log()[-1] == {"step": best + 3, "stopped_early": True, "best_step": best}
    assert RunRecord.read(run).state == "finished"


def test_the_best_checkpoint_is_kept_and_has_a_name(run: Run) -> None:
    losses = losses_by_step(run)
    best = run.checkpoint(min(losses, key=losses.__getitem__))
    assert run.best() == best
    assert run.checkpoints() == [best, run.newest()]
    assert resolve(run.path / "best").path == best.path
    assert resolve(run.path / "latest").path == run.newest().path


@pytest.mark.long
def test_a_resumed_run_keeps_and_stops_alike(run: Run, tmp_path: Path) -> None:
    cut = Run(tmp_path / "cut")
    best = BestLoss()
    for step, loss in losses_by_step(run).items():
        best.update(step, loss)
    for stop_at in {best.step, best.step + 1}:
        cut = Run(tmp_path / str(stop_at))
        with pytest.raises(KeyboardInterrupt):
            launch(diverging(stop_after_validations=3), cut.path, callbacks=[JsonlLogger(cut), StopAt(stop_at)])
        assert weights_of(resume(cut.path)) == weights_of(run.newest())
        assert cut.best() == cut.checkpoint(best.step)
        state = "state.json"
        assert (cut.newest().training_state / state).read_text() == (run.newest().training_state / state).read_text()
    finished = resume(cut.path)
    assert finished == cut.newest()
    assert resume(cut.path, overrides=["training.stop_after_validations=4"]) == cut.checkpoint(best.step + 4)


def test_without_the_setting_nothing_is_kept(tmp_path: Path) -> None:
    launch(diverging(keep_best=False, max_steps=3), tmp_path / "run")
    assert not (tmp_path / "run" / "best").exists()
    assert len(Run(tmp_path / "run").checkpoints()) == 1


def test_the_lowest_loss_counts_the_validations_since() -> None:
    best = BestLoss()
    assert not best.is_over(1)
    for step, loss in enumerate((3.0, 2.0, 2.0, 2.5)):
        best.update(step, loss)
    assert (best.loss, best.step, best.num_worse) == (2.0, 1, 2)
    assert best.is_over(2)
    assert not best.is_over(3)
    assert not best.is_over(None)
    other = BestLoss()
    other.restore(best.state())
    assert vars(other) == vars(best)
