"""Runs that start from a checkpoint."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import llm
from llm.checkpoint import Run, load_model
from llm.errors import CheckpointError, ConfigError
from llm.settings.model import ModelConfig
from llm.settings.run import RunConfig
from llm.tokenization import BPETokenizer
from llm.training.launch import launch, resume
from tests.unit.training_samples import config, weights_of

SETTINGS = ["context_length=16", "batch_size=4", "max_steps=2", "precision=float32", "device=cpu"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, corpus_text: str) -> Path:
    file = tmp_path_factory.mktemp("text") / "c.txt"
    file.write_text(corpus_text[:4000])
    return file


def start(text: Path, out: Path, init_from: object, *overrides: str, **more: Any) -> Run:
    settings = [*SETTINGS, f"training.init_from={init_from}", *overrides]
    llm.train(data=text, out=out, overrides=settings, callbacks=[], **more)
    return Run(out)


def test_a_run_goes_on_from_the_weights_config_and_tokenizer_of_a_checkpoint(
    text: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    still = ["optimizer.learning_rate=1e-30", "optimizer.weight_decay=0"]
    run = start(text, tmp_path / "run", tiny_checkpoint, *still, "model.dropout=0.1")
    saved, initial = run.newest(), load_model(tiny_checkpoint)
    for name, tensor in saved.model().state_dict().items():
        assert torch.equal(tensor, initial.state_dict()[name].float()), name
    assert saved.tokenizer().token_bytes() == BPETokenizer.from_pretrained(tiny_checkpoint).token_bytes()
    assert run.read_config().training.init_from == str(tiny_checkpoint)
    again = start(text, tmp_path / "again", run.path, *still)
    assert again.read_config().training.init_from == str(saved)
    assert weights_of(again.newest()) == weights_of(saved)


def test_the_resumed_run_no_longer_needs_the_checkpoint_it_started_from(
    text: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    initial = shutil.copytree(tiny_checkpoint, tmp_path / "initial")
    whole = start(text, tmp_path / "whole", initial, "max_steps=3")
    killed = Run(tmp_path / "killed")
    shutil.copytree(whole.path, killed.path)
    shutil.rmtree(killed.path / "checkpoints")
    assert weights_of(resume(killed.path, callbacks=[])) == weights_of(whole.newest())
    shutil.rmtree(initial)
    assert resume(whole.path, overrides=["training.max_steps=4"], callbacks=[]) == whole.checkpoint(4)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.hidden_size=8"], r"`model.hidden_size` must be \d+, as in the checkpoint .*, got 8\nhint: leave out"),
        (["tokenizer.vocab_size=300"], "`tokenizer.vocab_size` can't be set: the tokenizer is the one of"),
        (["data.context_length=99999"], "`data.context_length` must be at most"),
        (["training.task=regression"], "needs `training.task=lm`"),
    ],
)
def test_what_contradicts_the_checkpoint_is_refused(
    text: Path, tiny_checkpoint: Path, tmp_path: Path, overrides: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        start(text, tmp_path / "run", tiny_checkpoint, *overrides)
    assert not Run(tmp_path / "run").exists


def test_another_tokenizer_or_model_is_refused(text: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = BPETokenizer.train_from_iterator([text.read_text()], vocab_size=270, progress=False)
    with pytest.raises(ConfigError, match="the tokenizer must be the one of"):
        start(text, tmp_path / "run", tiny_checkpoint, tokenizer=other)
    given = RunConfig(model=ModelConfig(hidden_size=48))
    with pytest.raises(ConfigError, match=r"`model\.hidden_size` must be"):
        launch(given, tmp_path / "run", overrides=[f"training.init_from={tiny_checkpoint}"])
    launch(config(task="regression", max_steps=1), tmp_path / "regression", callbacks=[])
    with pytest.raises(ConfigError, match="must name a decoder's checkpoint, got a RegressionModel"):
        start(text, tmp_path / "run", tmp_path / "regression")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        start(text, tmp_path / "run", tmp_path / "nowhere")
