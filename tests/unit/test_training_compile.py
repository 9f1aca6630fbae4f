"""Compiled blocks and precisions: what is refused, and that compiled training is the same training."""

from pathlib import Path

import pytest

from llm.checkpoint import load_model
from llm.errors import ConfigError
from llm.training.launch import launch
from tests.unit.training_samples import MODEL, check_same_training, config


def test_a_missing_compiler_is_named_before_the_run_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler on a CPU, found none of no-such-compiler\nhint: "):
        launch(config(compile="on", device="cpu"), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_float8_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"float8.*\nhint: set training.precision=bfloat16"):
        launch(config(precision="float8", device="cpu"), tmp_path / "run")


@pytest.mark.slow
def test_compiled_training_is_the_same_training(tmp_path: Path) -> None:
    for compiled in ("off", "on"):
        launch(config(compile=compiled, device="cpu"), tmp_path / compiled)
    check_same_training(tmp_path / "off", tmp_path / "on")
    assert load_model(tmp_path / "on").config == MODEL
