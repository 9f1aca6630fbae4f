"""Runs that branch off a stable run to decay."""

from pathlib import Path

import msgspec
import pytest
import torch
from typer.testing import CliRunner

from llm.checkpoint import Run, step_of
from llm.cli.main import app
from llm.errors import ConfigError
from llm.settings.run import RunConfig
from llm.training.branching import branch_for_decay
from llm.training.launch import branch, launch, resume
from tests.unit.processes import in_processes
from tests.unit.training_samples import config, tensors_of, weights_of


def settings(schedule: str, max_steps: int, **more: object) -> RunConfig:
    base = config(max_steps=max_steps, checkpoint_every=4)
    optimizer = msgspec.structs.replace(base.optimizer, schedule=schedule, decay_shape="sqrt", **more)
    return msgspec.structs.replace(base, optimizer=optimizer)


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stable") / "run"
    launch(settings("constant", 8), path, callbacks=[])
    return path


def test_a_branch_ends_with_the_weights_of_a_run_planned_so(stable: Path, tmp_path: Path) -> None:
    planned = launch(settings("wsd", 7, decay_from=4), tmp_path / "planned", callbacks=[])
    branch = resume(branch_for_decay(stable, tmp_path / "branch", 4, ["training.max_steps=7"]), callbacks=[])
    assert weights_of(branch) == weights_of(planned)
    assert step_of(Run(stable).newest()) == 8  # type: ignore[arg-type]


def test_without_a_length_the_decay_takes_its_share_of_the_steps(stable: Path, tmp_path: Path) -> None:
    last = resume(branch_for_decay(stable, tmp_path / "b", 8, ["optimizer.decay_fraction=0.5"]))
    assert step_of(last) == 16
    rates = [line["learning_rate"] for line in Run(tmp_path / "b").read_log() if "learning_rate" in line]
    assert rates[0] == pytest.approx(0.01)
    assert rates[-1] < rates[-2] < 0.01


def test_a_branch_off_a_rate_that_decays_or_off_no_checkpoint_is_refused(stable: Path, tmp_path: Path) -> None:
    launch(settings("cosine", 4), tmp_path / "cosine", callbacks=[])
    launch(settings("wsd", 8, decay_fraction=0.75), tmp_path / "wsd", callbacks=[])
    with pytest.raises(ConfigError, match=r"wsd or constant, got cosine\nhint: start the run with"):
        branch_for_decay(tmp_path / "cosine", tmp_path / "b", 4)
    with pytest.raises(ConfigError, match="must be at most 2, where the run's own decay starts, got 4"):
        branch_for_decay(tmp_path / "wsd", tmp_path / "b", 4)
    with pytest.raises(ConfigError, match=r"`from_step` must be the step of a checkpoint"):
        branch_for_decay(stable, tmp_path / "b", 5)
    with pytest.raises(ConfigError, match=r"`training\.max_steps` must be above `decay_from`"):
        branch_for_decay(stable, tmp_path / "b", 8, ["training.max_steps=8"])


def branch_in_one_of_two(stable: Path, out: Path) -> None:
    last = branch(stable, out, 4, overrides=["training.max_steps=7", "training.sharding=ddp"], callbacks=[])
    assert step_of(last) == 7


@pytest.mark.long
def test_two_processes_make_one_branch(stable: Path, tmp_path: Path) -> None:
    planned = launch(settings("wsd", 7, decay_from=4), tmp_path / "planned", callbacks=[])
    in_processes(2, branch_in_one_of_two, stable, tmp_path / "b")
    weights = tensors_of(Run(tmp_path / "b").newest())  # type: ignore[arg-type]
    for name, tensor in tensors_of(planned).items():
        assert torch.allclose(tensor, weights[name], atol=1e-5), name
    with pytest.raises(ConfigError, match="already holds a run"):
        branch(stable, tmp_path / "b", 4)


def test_the_command_line_branches_too(stable: Path, tmp_path: Path) -> None:
    words = ["train", "--resume", str(stable), "--decay-from", "4", "--out", str(tmp_path / "b"), "--max-steps", "6"]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    assert step_of(Run(tmp_path / "b").newest()) == 6  # type: ignore[arg-type]
    result = CliRunner().invoke(app, ["train", "--decay-from", "4", "--out", str(tmp_path / "c")])
    assert "branches a new run off another" in str(result.exception)
    result = CliRunner().invoke(app, [*words, "--data", "text.txt"])
    assert "can't be combined with `--data`" in str(result.exception)
