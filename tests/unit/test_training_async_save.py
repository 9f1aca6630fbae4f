"""Checkpoints that are written beside the loop."""

import os
import random
import signal
import threading
from pathlib import Path

import pytest

from llm.checkpoint import Checkpoint, Run, load_model, load_tensors, plan_files, step_of, write_atomically
from llm.errors import FileError
from llm.settings.run import RunConfig
from llm.training import Callback, FitStart, StepMetrics
from llm.training.launch import launch, resume
from tests.unit.processes import ends_of, in_processes
from tests.unit.training_samples import config, weights_of

pytestmark = pytest.mark.long


def settings(**training: object) -> RunConfig:
    values = {"max_steps": 8, "checkpoint_every": 1, "keep_checkpoints": 99} | training
    return config(**values)


def tensors_of_all(run: Run) -> dict[str, bytes]:
    """Weights and moments of all checkpoints, without the order of the files' headers."""
    files = sorted((run.path / "checkpoints").rglob("*.safetensors"))
    found = {f"{file.relative_to(run.path)}": load_tensors(file) for file in files}
    return {
        f"{file}/{name}": tensor.numpy().tobytes()
        for file, tensors in found.items()
        for name, tensor in tensors.items()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that saved each step, in the loop."""
    run = Run(tmp_path_factory.mktemp("whole") / "run")
    launch(settings(), run.path, callbacks=[])
    return run


def test_each_step_saved_beside_the_loop_is_the_same_bytes(whole: Run, tmp_path: Path) -> None:
    launch(settings(async_save=True), tmp_path / "run", callbacks=[])
    assert tensors_of_all(Run(tmp_path / "run")) == tensors_of_all(whole)
    assert (tmp_path / "run" / "latest").read_text() == "checkpoints/step_00000008\n"


def test_shards_saved_beside_the_loop_are_the_same_bytes(tmp_path: Path) -> None:
    runs = [Run(tmp_path / name) for name in ("sync", "async")]
    for run in runs:
        wanted = settings(sharding="fsdp", max_steps=4, async_save=run is runs[1])
        in_processes(2, train, run.path, wanted)
    assert tensors_of_all(runs[0]) == tensors_of_all(runs[1])
    assert len(list(runs[1].path.rglob("*.safetensors"))) == 4 * 4


class Announced(Callback):
    """Notes which checkpoints are told of, and that each is complete by then."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_checkpoint(self, step: int, checkpoint: object) -> None:
        assert load_model(str(checkpoint)) is not None
        self.steps.append(step)


def test_callbacks_hear_of_complete_checkpoints_only(tmp_path: Path) -> None:
    announced = Announced()
    launch(settings(async_save=True, checkpoint_every=3), tmp_path / "run", callbacks=[announced])
    assert announced.steps == [3, 6, 8]


class Asked(Callback):
    """Notes the threads that ask the model for its state, for which a sharded model drops what a pass needs."""

    def __init__(self) -> None:
        self.threads: set[threading.Thread] = set()

    def on_fit_start(self, start: FitStart) -> None:
        start.model.register_state_dict_pre_hook(lambda *_: self.threads.add(threading.current_thread()))


def test_only_the_loop_asks_the_model_for_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plan_files.__kwdefaults__, "max_bytes", 4_000)
    asked = Asked()
    last = launch(settings(async_save=True, max_steps=2), tmp_path / "run", callbacks=[asked])
    assert asked.threads == {threading.main_thread()}
    assert len(list(last.path.glob("model-*.safetensors"))) > 2
    assert load_model(last) is not None


class InTheWay(Callback):
    """Lets the save of a step fail."""

    def __init__(self, run: Run, step: int) -> None:
        self.file = run.path / "checkpoints" / f".tmp-step_{step:08d}"
        self.last = 0

    def on_fit_start(self, start: FitStart) -> None:
        self.file.write_text("no directory")

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        self.last = metrics.step


def test_a_save_that_fails_ends_the_run_and_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    launch(settings(max_steps=2), run.path, callbacks=[])
    changes = ["training.async_save=true", "training.max_steps=20", "training.checkpoint_every=4"]
    in_the_way = InTheWay(run, 4)
    with pytest.raises(FileError, match="step_00000004 can't be written"):
        resume(run.path, overrides=changes, callbacks=[in_the_way])
    assert 4 <= in_the_way.last <= 8
    assert run.newest() == run.checkpoint(2)
    assert (run.path / "latest").read_text() == "checkpoints/step_00000002\n"


class Dies(Callback):
    """Notes the last step known to be saved, and kills its process at a random moment after a first save."""

    def __init__(self, heard: Path, seed: int) -> None:
        self.heard = heard
        self.delay_s = 0.2 * random.Random(seed).random()
        self.dying = False

    def on_checkpoint(self, step: int, checkpoint: object) -> None:
        write_atomically(self.heard, str(step))

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        if not self.dying and self.heard.exists():
            self.dying = True
            threading.Timer(self.delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()


def train(folder: Path, wanted: RunConfig, *callbacks: Callback) -> None:
    if Run(folder).exists:
        saved = str(wanted.training.async_save).lower()
        resume(folder, overrides=[f"training.async_save={saved}"], callbacks=callbacks)
    else:
        launch(wanted, folder, callbacks=callbacks)


def killed(folder: Path, max_steps: int, seed: int) -> int:
    """Trains, saves each step and dies at a random moment; returns the last step known to be saved.

    Of three lives, two save beside the loop.
    """
    heard = folder.with_suffix(".heard")
    wanted = settings(async_save=seed % 3 > 0, max_steps=max_steps, keep_checkpoints=2)
    assert ends_of(1, train, folder, wanted, Dies(heard, seed)) == ([-signal.SIGKILL], [])
    return int(heard.read_text())


def check_kills(folder: Path, times: int, max_steps: int) -> None:
    """A run that is killed again and again loses at most the step in progress, and ends with the same bytes."""
    wanted = settings(max_steps=max_steps, checkpoint_every=max_steps)
    in_processes(1, train, folder / "whole", wanted)
    run = Run(folder / "run")
    for number in range(times):
        heard = killed(run.path, max_steps, seed=number)
        newest = run.newest()
        assert newest is not None
        assert step_of(newest) >= heard > 0
        assert newest.damage() is None
        assert load_model(newest) is not None
        latest = Checkpoint(run.path / (run.path / "latest").read_text().strip())  # moves when one is complete
        assert latest.is_complete
        assert heard <= step_of(latest) <= step_of(newest)
    in_processes(1, train, run.path, settings(max_steps=max_steps))
    assert weights_of(run.checkpoint(max_steps)) == weights_of(Run(folder / "whole").checkpoint(max_steps))


def test_a_run_killed_while_it_saves_loses_no_complete_checkpoint(tmp_path: Path) -> None:
    check_kills(tmp_path, 3, 120)


@pytest.mark.slow
def test_fifty_kills_at_random_moments_lose_no_complete_checkpoint(tmp_path: Path) -> None:
    check_kills(tmp_path, 50, 2000)
