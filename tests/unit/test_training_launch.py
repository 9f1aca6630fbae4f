"""The start of a run: its files, its refusals."""

import json
from pathlib import Path

import msgspec
import pytest
import torch

from llm.checkpoint import Run
from llm.errors import ConfigError, DataError, RegistryError
from llm.training.launch import launch
from tests.unit.training_samples import MODEL, config, weights_of


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    newest = launch(config(max_steps=2), tmp_path / "run")
    before = weights_of(newest)
    with pytest.raises(ConfigError, match="already holds a run\nhint: continue that run with `--resume`"):
        launch(config(max_steps=3), tmp_path / "run")
    assert weights_of(newest) == before


def test_what_cannot_start_leaves_no_run_behind(tmp_path: Path) -> None:
    for settings, error in (
        (config(batch_size=1000), DataError),
        (msgspec.structs.replace(config(), model=msgspec.structs.replace(MODEL, mlp="swigluu")), RegistryError),
    ):
        with pytest.raises(error):
            launch(settings, tmp_path / "run")
    assert launch(config(max_steps=1), tmp_path / "run").path.name == "step_00000001"


@pytest.mark.long
def test_only_the_newest_checkpoints_are_kept_and_latest_names_the_last(tmp_path: Path) -> None:
    newest = launch(config(max_steps=9, checkpoint_every=2, keep_checkpoints=2), tmp_path / "run")
    kept = sorted(entry.name for entry in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step_00000008", "step_00000009"]
    assert (tmp_path / "run" / "latest").read_text() == f"checkpoints/{newest.path.name}\n"


@pytest.mark.long
def test_run_files_are_whole_and_readable(tmp_path: Path) -> None:
    launch(config(), tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["config"]["training"]["max_steps"] == 6
    assert facts["torch"] == torch.__version__
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    log = Run(tmp_path / "run").read_log()
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert all(line["tokens_per_s"] > 0 and line["grad_norm"] > 0 for line in log if "loss" in line)
    assert log[-1]["step"] == 6
    assert log[-1]["validation_loss"] > 0


def test_a_missing_gpu_is_said(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="PyTorch sees 0 CUDA devices"):
        launch(config(device="cuda"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"must be auto, cpu or cuda\[:N\], got 'tpuu'"):
        launch(config(device="tpuu"), tmp_path / "run")
