"""Steps whose loss is not finite: the error, the dump, and the replay that finds the first bad value."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llm import train
from llm.checkpoint import Run, atomic_directory, resolve, write_model
from llm.cli.main import app
from llm.data import SyntheticDataModule
from llm.errors import DataError, LLMWarning, TrainingError
from llm.training import RegressionTask, TrainingEngine, replay
from llm.training.launch import launch
from tests.unit.training_samples import MODEL, config

SMALL = [
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.max_position_embeddings=32",
    "tokenizer.vocab_size=300",
]


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of `MODEL` with one huge weight, whose feed-forward overflows."""
    folder = tmp_path_factory.mktemp("spoiled")
    model = resolve(launch(config(max_steps=1), folder / "run", callbacks=[])).model()
    with torch.no_grad():
        model.get_parameter("layers.1.mlp.gate_up_proj.weight").fill_(3e38)
    with atomic_directory(folder / "spoiled") as directory:
        write_model(directory, model, None)
    return folder / "spoiled"


def fail(out: Path, spoiled: Path, **training: Any) -> tuple[Run, str]:
    overrides = [f"training.init_from={spoiled}"]
    settings = config(init_from=str(spoiled), **training)
    with pytest.raises(TrainingError) as error:
        launch(settings, out, overrides=overrides, callbacks=[])
    return Run(out), str(error.value)


def test_the_error_names_step_rank_batch_and_samples_and_how_to_replay(tmp_path: Path, spoiled: Path) -> None:
    run, said = fail(tmp_path / "run", spoiled, gradient_accumulation_steps=2)
    dump = run.path / "dumps" / "step_00000001"
    problem, hint = said.splitlines()
    assert problem.startswith("step 1, rank 0, epoch 1, batch 1 (samples ")
    assert problem.endswith("the loss is nan and the gradient norm nan; both must be finite")
    assert hint.startswith(f"hint: `llm train --replay {dump}` shows where")
    assert "float32" not in hint
    assert len(problem.partition("(samples ")[2].partition(")")[0].split(", ")) == 8


def test_the_replay_finds_the_first_bad_value(
    tmp_path: Path, spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = fail(tmp_path / "run", spoiled)
    app(["train", "--replay", str(run.path / "dumps" / "step_00000001")], standalone_mode=False)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "step 1 with a loss of nan and a gradient norm of nan"
    assert said[1].startswith("rank 0: samples ")
    assert said[2].startswith("first bad value in rank 0, output of layers.1.mlp.gate_up_proj (Linear): ")
    assert "of 6,144 values are not finite; its inputs are at most " in said[2]


def test_a_sample_that_cannot_be_drawn_does_not_hide_why_the_run_stops(tmp_path: Path, corpus_file: Path) -> None:
    settings = ["training.validate_every=1", "optimizer.learning_rate=1e9"]
    with (
        pytest.warns(LLMWarning, match=r"^no sample at step \d: request 0: the model's logits must hold no NaN"),
        pytest.raises(TrainingError, match="both must be finite"),
    ):
        train(data=str(corpus_file), out=tmp_path / "run", max_steps=4, overrides=[*SMALL, *settings])
    assert len(list((tmp_path / "run" / "dumps").iterdir())) == 1


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, corpus_file: Path) -> None:
    settings = [
        "training.checkpoint_every=1",
        "optimizer.warmup_steps=0",
        "optimizer.name=adamw",
        "optimizer.learning_rate=1e39",
    ]
    with pytest.raises(
        TrainingError, match=r"^step 1: the optimizer's step left weights that are not finite; they are"
    ):
        train(data=str(corpus_file), out=tmp_path / "run", max_steps=4, overrides=[*SMALL, *settings])
    assert Run(tmp_path / "run").checkpoints() == []


class BadTarget(RegressionTask):
    """A task of one's own whose loss is not finite."""

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))

    def loss_sum(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return torch.log(model(batch.features) * 0).sum()


def test_a_task_of_ones_own_is_replayed_too(tmp_path: Path) -> None:
    settings = config(task="regression")
    run = Run(tmp_path / "run")
    run.create(settings, {})
    data = SyntheticDataModule(64, "regression", num_features=16)
    with pytest.raises(TrainingError, match="the loss is -inf"):
        TrainingEngine(settings, BadTarget(MODEL), data, run).fit()
    said = list(replay(run.path / "dumps" / "step_00000001", task=BadTarget(MODEL)))
    assert said[2] == "first bad value in rank 0, gradient of 3 (Flatten): 8 of 8 values are not finite"


def test_a_directory_without_a_dump_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no dump\nhint: pass a directory such as"):
        list(replay(tmp_path))
