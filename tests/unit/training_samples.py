"""A tiny run, and readers of the files of a run."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from llm.checkpoint import Checkpoint, Run, load_tensors
from llm.settings.model import ModelConfig
from llm.settings.run import DataConfig, OptimizerConfig, RunConfig, TrainingConfig
from llm.training import Callback, FitStart

MODEL = ModelConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, max_position_embeddings=16
)


class Notices(Callback):
    """Keeps what the start of a run said."""

    def __init__(self) -> None:
        self.said: tuple[str, ...] = ()

    def on_fit_start(self, start: FitStart) -> None:
        self.said = start.notices


def config(**training: Any) -> RunConfig:
    values: dict[str, Any] = {"max_steps": 6, "batch_size": 8, "precision": "float32", "log_every": 1} | training
    return RunConfig(
        model=MODEL,
        data=DataConfig(kind="synthetic", num_samples=64),
        optimizer=OptimizerConfig(warmup_steps=2, learning_rate=1e-2),
        training=TrainingConfig(**values),
    )


def on_text(corpus: Path, **training: Any) -> RunConfig:
    """The same tiny run on text."""
    settings = config(**{"validate_every": 4, "checkpoint_every": 4} | training)
    data = msgspec.structs.replace(
        settings.data, kind="text", paths=(str(corpus),), num_samples=64, validation_fraction=0.01
    )
    tokenizer = msgspec.structs.replace(settings.tokenizer, vocab_size=300)
    model = msgspec.structs.replace(settings.model, vocab_size=0)
    return msgspec.structs.replace(settings, data=data, tokenizer=tokenizer, model=model)


def weights_of(checkpoint: Checkpoint) -> bytes:
    return (checkpoint.path / "model.safetensors").read_bytes()


def tensors_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """All weights, from however many files."""
    files = checkpoint.path.glob("model*.safetensors")
    return {name: tensor for file in files for name, tensor in load_tensors(file).items()}


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in Run(run).read_log() if "loss" in line]


def unclipped(**training: Any) -> RunConfig:
    """Without clipping, which hides a wrong scale of the gradients; so does Adam, but not the logged norm."""
    settings = config(**training)
    optimizer = msgspec.structs.replace(settings.optimizer, max_grad_norm=None)
    return msgspec.structs.replace(settings, optimizer=optimizer)


def check_same_training(one: Path, other: Path) -> None:
    """Losses, gradient norms and weights of two runs agree to rounding."""
    logs = [[line for line in Run(run).read_log() if "loss" in line] for run in (one, other)]
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in logs[0]] == pytest.approx([line[key] for line in logs[1]], rel=1e-4), key
    weights = [tensors_of(Run(run).newest()) for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=2e-5), name
