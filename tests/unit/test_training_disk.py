"""Full disks: words, exit status and what is left of a run."""

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm.checkpoint import Run, write_atomically
from llm.checkpoint.space import in_words
from llm.cli.main import app
from llm.errors import FileError
from llm.training import Callback, FitStart, StepMetrics
from llm.training.launch import launch, resume
from tests.unit.training_samples import config, weights_of


class Limit(Callback):
    """Lets no file grow beyond some bytes, as a quota would, while a step's checkpoint is written."""

    def __init__(self, step: int, num_bytes: int) -> None:
        self.step, self.num_bytes = step, num_bytes
        self.notices: tuple[str, ...] = ()

    def on_fit_start(self, start: FitStart) -> None:
        self.notices = start.notices

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        if metrics.step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, resource.RLIM_INFINITY))


@pytest.fixture
def file_limit() -> Iterator[None]:
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.usefixtures("file_limit")
@pytest.mark.parametrize("num_bytes", [1000, 20_000], ids=["weights", "moments"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one_whole(tmp_path: Path, num_bytes: int) -> None:
    settings = config(checkpoint_every=2)
    whole = launch(settings, tmp_path / "whole", callbacks=[])
    run = Run(tmp_path / "run")
    with pytest.raises(FileError, match=r"step_00000004 can't be written: .*\(.* free on its disk\)\nhint: make room"):
        launch(settings, run.path, callbacks=[Limit(4, num_bytes)])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert [entry.name for entry in (run.path / "checkpoints").iterdir()] == ["step_00000002"]
    assert run.newest().damage() is None
    assert (run.path / "latest").read_text() == "checkpoints/step_00000002\n"
    assert weights_of(resume(run.path, callbacks=[])) == weights_of(whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("a disk can be mounted by root only")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk can be mounted by root only")
def test_a_full_disk_is_foretold_and_said(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = small_disk / "run"
    settings = ["data.kind=synthetic", "num_samples=64", "hidden_size=16", "intermediate_size=24"]
    settings += ["model.vocab_size=32", "num_hidden_layers=2", "context_length=16", "batch_size=8"]
    words = ["train", "--out", str(out), *settings, "checkpoint_every=1", "keep_checkpoints=3", "max_steps=9"]
    assert app(words, standalone_mode=False) == 2
    said = capsys.readouterr().err
    assert "note: 4 checkpoints of 53.2 kB need 213 kB, and the disk of" in said
    assert "No space left on device" in said
    assert said.splitlines()[-1] == f"stopped, saved at step 2; resume with:  llm train --resume {out}"
    assert Run(out).newest().damage() is None


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(FileError, match=r"log\.jsonl can't be written: Is a directory"):
        Run(tmp_path).append_log({"step": 1})
    with pytest.raises(FileError, match="missing/file can't be written: No such file or directory"):
        write_atomically(tmp_path / "missing" / "file", "")


@pytest.mark.parametrize(
    ("num_bytes", "words"), [(999, "999 bytes"), (53_184, "53.2 kB"), (1_500_000_000, "1.5 GB"), (2e15, "2e+03 TB")]
)
def test_sizes_in_words(num_bytes: float, words: str) -> None:
    assert in_words(num_bytes) == words
