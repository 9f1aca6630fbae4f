"""The loss is a sum over valid tokens, divided by their number over the whole step."""

import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from llm.checkpoint import Run
from llm.data import IGNORED_LABEL, BaseDataModule, Dataset, TokenBatch
from llm.settings.run import OptimizerConfig
from llm.training import JsonlLogger, LanguageModelingTask, TrainingEngine
from tests.unit.processes import in_processes
from tests.unit.training_samples import MODEL, config


class Uneven(Dataset):
    """Sample `i` of 32 has `i % 16` masked labels of 16."""

    def __len__(self) -> int:
        return 32

    def batch(self, indices: NDArray[np.int64]) -> TokenBatch:
        rows = [torch.randint(0, 32, (17,), generator=torch.Generator().manual_seed(int(idx))) for idx in indices]
        ids, labels = torch.cat([row[:-1] for row in rows]), torch.cat([row[1:] for row in rows])
        for at, idx in enumerate(indices):
            labels[at * 16 : at * 16 + int(idx) % 16] = IGNORED_LABEL
        return TokenBatch(ids, labels, (16,) * len(rows))


class UnevenModule(BaseDataModule):
    """Trains on `Uneven`, without validation."""

    def train_dataset(self) -> Dataset:
        return Uneven()

    def validation_dataset(self) -> None:
        return None


class Fp64Task(LanguageModelingTask):
    """A model in fp64, in which rounding does not hide a wrong weight."""

    def build_model(self) -> nn.Module:
        return super().build_model().double()


def train_in_fp64(path: str, accumulation: int) -> None:
    """Four steps of eight samples; leaves losses in the log and weights in `weights.pt`."""
    settings = config(max_steps=4, batch_size=8, gradient_accumulation_steps=accumulation)
    settings = msgspec.structs.replace(
        settings, optimizer=OptimizerConfig(warmup_steps=2, learning_rate=1e-2, max_grad_norm=None)
    )
    run = Run(Path(path))
    if os.environ.get("RANK", "0") == "0":
        run.create(settings, {})
    engine = TrainingEngine(settings, Fp64Task(MODEL), UnevenModule(), run, callbacks=[JsonlLogger(run)])
    engine.fit()
    engine.distributed.stop()
    if engine.distributed.is_main:
        torch.save(engine.model.state_dict(), run.path / "weights.pt")


def losses_and_weights(path: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], torch.load(path / "weights.pt", weights_only=True)


@pytest.mark.long
def test_uneven_samples_give_the_same_loss_however_a_step_is_divided(tmp_path: Path) -> None:
    train_in_fp64(str(tmp_path / "1x8"), 1)
    train_in_fp64(str(tmp_path / "8x1"), 8)
    in_processes(2, train_in_fp64, str(tmp_path / "2x4"), 1)
    losses, weights = losses_and_weights(tmp_path / "1x8")
    assert len(losses) == 4
    for name in ("8x1", "2x4"):
        other_losses, other_weights = losses_and_weights(tmp_path / name)
        assert other_losses == pytest.approx(losses, rel=1e-6)
        for key, tensor in weights.items():
            torch.testing.assert_close(other_weights[key], tensor, rtol=1e-6, atol=1e-9)


def test_the_losses_of_the_last_pass_are_kept_for_each_token() -> None:
    torch.manual_seed(0)
    task = LanguageModelingTask(MODEL)
    batch = Uneven().batch(np.array([0, 5]))
    loss = task.loss_sum(task.build_model(), batch)
    assert task.token_losses is not None
    assert not task.token_losses.requires_grad
    assert task.token_losses.sum() == loss
    assert torch.equal(task.token_losses == 0, batch.labels == IGNORED_LABEL)
