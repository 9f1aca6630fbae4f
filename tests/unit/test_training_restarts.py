"""One process of a run ends early: the others end with a message, and `torchrun` starts all again where it may."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.checkpoint import Run
from llm.errors import ConfigError
from llm.settings.run import RunConfig
from llm.training import LanguageModelingTask
from llm.training.launch import launch
from llm.training.restarts import launcher_facts, was_begun_before
from tests.unit.processes import ends_of, in_processes
from tests.unit.training_samples import config, tensors_of

LIMIT_S = 120
SETTINGS = ("data.kind=synthetic", "data.num_samples=64", "model.vocab_size=32", "model.hidden_size=16")
SETTINGS += ("model.intermediate_size=24", "model.num_hidden_layers=1", "model.max_position_embeddings=16")
SETTINGS += ("training.batch_size=8", "training.checkpoint_every=20", "training.sharding=ddp", "--device=cpu")


class FailingTask(LanguageModelingTask):
    """Fails in the third step of the last process."""

    calls = 0

    def loss_sum(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls == 3 and os.environ["RANK"] == "1":
            raise ValueError("a bad batch")
        return super().loss_sum(model, batch)


def fail(path: Path) -> None:
    importlib.import_module("llm.training.assembly").LanguageModelingTask = FailingTask  # in a process of its own
    launch(config(max_steps=5000, checkpoint_every=5000, validate_every=5000), path, callbacks=[])


@pytest.mark.long
def test_one_process_that_fails_ends_the_others_with_a_message(tmp_path: Path) -> None:
    exit_codes, messages = ends_of(2, fail, tmp_path / "run")
    assert exit_codes == [1, 1]
    [own] = [text for text in messages if text.startswith("rank 1")]
    [other] = [text for text in messages if text.startswith("rank 0")]
    assert own.endswith("ValueError: a bad batch\n")
    assert "TrainingError: rank 0 can't reach the other processes, one of which ended or hangs" in other


@pytest.mark.long
def test_a_new_run_goes_on_by_itself_after_a_process_was_killed(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    words = ["train", "--out", str(run.path), "--nproc", "2", "--max-restarts", "1", "--max-steps", "400", *SETTINGS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "llm", *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _wait_for(process, run.path / "latest")
        os.kill(int((run.path / ".lock").read_text()), signal.SIGKILL)
        said = process.communicate(timeout=LIMIT_S)[1]
    finally:
        process.kill()
    assert process.returncode == 0, said[-2000:]
    [again] = run.read_history()
    assert again["step"] >= 20
    assert f"steps {again['step']} → 400" in said
    straight = Run(tmp_path / "straight")
    in_processes(2, train, straight.path, run.read_config())
    weights = tensors_of(straight.newest())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tensors_of(run.newest()).items())


def train(path: Path, settings: RunConfig) -> None:
    launch(settings, path, callbacks=[])


def _wait_for(process: subprocess.Popen[str], file: Path) -> None:
    end = time.monotonic() + LIMIT_S
    while not file.exists() and process.poll() is None and time.monotonic() < end:
        threading.Event().wait(0.05)
    assert file.exists(), process.communicate(timeout=LIMIT_S)[1][-2000:]


def test_only_another_process_of_the_same_torchrun_resumes_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    launch(config(max_steps=2), run.path, callbacks=[])
    assert not was_begun_before(run)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "night")
    assert not was_begun_before(run)
    run.write_resumed(config(max_steps=2), launcher_facts(), 2)
    assert not was_begun_before(run)
    with pytest.raises(ConfigError, match="already holds a run"):
        launch(config(max_steps=2), run.path, callbacks=[])
    run.write_resumed(config(max_steps=2), launcher_facts() | {"process": 1}, 2)
    assert was_begun_before(run)
    assert launch(config(max_steps=4), run.path, callbacks=[]) == run.checkpoint(2)
    run.write_resumed(config(max_steps=2), launcher_facts() | {"process": 1, "launcher": "day"}, 2)
    assert not was_begun_before(run)
