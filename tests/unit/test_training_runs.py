"""Runs that are started over, replaced, taken back to an older checkpoint, or found damaged."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from llm.checkpoint import COMPLETE, Run, resolve
from llm.checkpoint.atomic import exclusive_lock
from llm.cli import main
from llm.errors import CheckpointError, ConfigError, LLMError, LLMWarning, TrainingError
from llm.training import ProgressBar
from llm.training.launch import launch, resume
from llm.training.metrics import without_machine
from tests.unit.training_samples import Notices, config, losses_of, on_text, weights_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of six steps with a checkpoint for every second one; copy it before changing it."""
    run = Run(tmp_path_factory.mktemp("runs") / "run")
    launch(config(checkpoint_every=2), run.path)
    return run


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(finished.path, tmp_path / "run"))


def test_a_run_that_failed_before_its_first_checkpoint_starts_anew_with_other_settings(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(TrainingError, match="must be finite"):
        launch(config(max_steps=20), run.path, overrides=["optimizer.learning_rate=1e30"])
    assert run.exists
    assert run.newest() is None
    with pytest.raises(ConfigError, match="no checkpoint yet: leave out `--resume` to start it anew"):
        resume(run.path, overrides=["optimizer.learning_rate=1e-3"])
    notices = Notices()
    corrected = launch(config(max_steps=2), run.path, overrides=["optimizer.learning_rate=1e-3"], callbacks=[notices])
    assert notices.said[0] == "the earlier start stopped before its first checkpoint"
    assert run.read_config().optimizer.learning_rate == 1e-3
    fresh = launch(config(max_steps=2), tmp_path / "other", overrides=["optimizer.learning_rate=1e-3"])
    assert weights_of(corrected) == weights_of(fresh)


def test_overwriting_replaces_what_the_run_wrote_and_nothing_else(run: Run) -> None:
    mine = [run.path / "notes.txt", run.path / "data" / "corpus.txt", run.path / "checkpoints" / "best" / "model.bin"]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    notices = Notices()
    launch(config(max_steps=1), run.path, overwrite=True, callbacks=[notices])
    assert notices.said[0] == "replaced the old run"
    assert [file.read_text() for file in mine] == ["mine"] * 3
    assert [entry.path.name for entry in run.checkpoints()] == ["step_00000001"]
    assert run.read_log() == []


@pytest.mark.parametrize("overrides", [["data.paths=['none.txt']"], ["training.batch_size=4096"]])
def test_a_mistake_in_the_new_run_costs_the_old_one_nothing(run: Run, tmp_path: Path, overrides: list[str]) -> None:
    text = tmp_path / "c.txt"
    text.write_text("to be or not to be " * 50)
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    with pytest.raises(LLMError):
        launch(on_text(text), run.path, overrides=overrides, overwrite=True)
    assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before


def test_overwriting_leaves_none_of_the_old_text_behind(tmp_path: Path) -> None:
    run, kept = Run(tmp_path / "run"), []
    for words in ("to be or not to be ", "that is the question "):
        (tmp_path / "c.txt").write_text(words * 60)
        launch(on_text(tmp_path / "c.txt", max_steps=1), run.path, overrides=["data.packing=true"], overwrite=True)
        kept.append(sorted(file.name for file in run.data.iterdir()))
    assert len(kept[0]) == len(kept[1])
    assert not (run.path / ".starting").exists()


def test_only_runs_are_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"replaces runs only, and .* holds none: thesis.txt"):
        launch(config(max_steps=1), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert launch(config(max_steps=1), tmp_path / "new", overwrite=True).is_complete


def test_checkpoints_without_a_run_file_are_not_taken_for_those_of_a_new_run(run: Run) -> None:
    (run.path / "run.json").unlink()
    with pytest.raises(ConfigError, match=r"holds checkpoints of a run without its run.json\nhint: .*--overwrite"):
        launch(config(max_steps=1), run.path)
    launch(config(max_steps=1), run.path, overwrite=True)
    assert [entry.path.name for entry in run.checkpoints()] == ["step_00000001"]


def test_a_run_goes_on_from_an_older_checkpoint_to_the_same_bytes(run: Run, finished: Run) -> None:
    there = [entry.path.name for entry in run.checkpoints()]
    with pytest.raises(ConfigError, match=r"must be the step of a checkpoint of .* \(2, 4, 6\), got 3"):
        resume(run.path, from_step=3)
    assert [entry.path.name for entry in run.checkpoints()] == there
    resume(run.path, from_step=4, overrides=["training.max_steps=4"])
    assert [entry.path.name for entry in run.checkpoints()] == there[:2]
    assert (run.path / "latest").read_text() == "checkpoints/step_00000004\n"
    assert max(line["step"] for line in run.read_log()) == 4
    assert weights_of(resume(run.path, from_step=2, overrides=["training.max_steps=6"])) == weights_of(
        finished.newest()
    )
    assert losses_of(run.path) == losses_of(finished.path)
    assert [without_machine(line) for line in run.read_log()] == [without_machine(line) for line in finished.read_log()]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("model.safetensors", truncate, "bytes instead of"),
        ("model.safetensors", flip_a_bit, "model.safetensors has other bytes than were written"),
        ("training_state/optimizer.safetensors", flip_a_bit, "optimizer.safetensors has other bytes"),
        ("training_state/state.json", Path.unlink, "training_state/state.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_said(
    run: Run, finished: Run, name: str, damage: Callable[[Path], object], said: str
) -> None:
    damage(run.checkpoint(6).path / name)
    output = io.StringIO()
    resumed = resume(run.path, callbacks=[ProgressBar(Console(file=output, width=300))])
    assert weights_of(resumed) == weights_of(finished.newest())
    assert resumed.damage() is None
    notes = [line for line in output.getvalue().splitlines() if line.startswith("note: ")]
    assert notes[0].startswith("note: step_00000006 is damaged: ")
    assert said in notes[0]
    assert notes[1] == f"note: resuming from {run.checkpoint(4)}"


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(run: Run) -> None:
    for checkpoint in run.checkpoints():
        flip_a_bit(checkpoint.path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole: step_00000006 is damaged: model"):
        resume(run.path)
    assert len(run.checkpoints()) == 3


def test_whatever_takes_a_run_passes_over_a_damaged_checkpoint(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flip_a_bit(run.checkpoint(6).path / "training_state" / "optimizer.safetensors")
    assert resolve(run.path) == run.checkpoint(6)
    flip_a_bit(run.checkpoint(6).path / "model.safetensors")
    with pytest.warns(
        LLMWarning, match=r"^step_00000006 is damaged: model.safetensors has other bytes .*; using .*_00"
    ):
        assert resolve(run.path) == run.checkpoint(4)
    truncate(run.checkpoint(6).path / "model.safetensors")
    monkeypatch.setattr(sys, "argv", ["llm", "info", str(run.path)])
    with pytest.raises(SystemExit, match="0"):
        main.run(main.app)
    printed = capsys.readouterr()
    assert str(run.checkpoint(4)) in printed.out
    assert printed.err.startswith("note: step_00000006 is damaged: model.safetensors has ")
    for checkpoint in run.checkpoints():
        flip_a_bit(checkpoint.path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole: step_00000006 is damaged: model"):
        resolve(run.path)


def test_checkpoints_of_earlier_versions_list_no_files_and_resume(run: Run) -> None:
    for checkpoint in run.checkpoints():
        (checkpoint.path / COMPLETE).write_text("")
    content = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({"config": content["config"]}))
    assert resume(run.path, overrides=["training.max_steps=7"]) == run.checkpoint(7)


def test_settings_of_sampling_may_be_edited_in_a_checkpoint(run: Run) -> None:
    (run.checkpoint(6).path / "generation_config.json").write_text("{}")
    assert run.checkpoint(6).damage() is None


def test_a_change_of_threads_is_said_and_kept_in_the_history(run: Run) -> None:
    started = json.loads((run.path / "run.json").read_text())
    notices = Notices()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        resume(run.path, overrides=["training.max_steps=7"], callbacks=[notices])
    finally:
        torch.set_num_threads(threads)
    assert notices.said == (f"threads {threads} → {threads + 1}: results agree to rounding, no longer to the byte",)
    content = json.loads((run.path / "run.json").read_text())
    assert content["num_threads"] == started["num_threads"] == threads
    assert [(entry["step"], entry["num_threads"]) for entry in content["history"]] == [(6, threads + 1)]
    resume(run.path, overrides=["training.max_steps=8"], callbacks=[notices])
    assert notices.said == (f"threads {threads + 1} → {threads}: results agree to rounding, no longer to the byte",)
    resume(run.path, overrides=["training.max_steps=9"], callbacks=[notices])
    assert notices.said == ()


def test_a_run_that_another_process_trains_is_neither_resumed_nor_replaced(run: Run) -> None:
    with exclusive_lock(run.path / ".lock"):
        for act in (resume, lambda path: launch(config(), path, overwrite=True)):
            with pytest.raises(ConfigError, match=r"process \d+ is training in .*\nhint: wait"):
                act(run.path)
    assert run.newest() == run.checkpoint(6)
