"""The loop of training: its loss, its exactness, its memory."""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm.checkpoint import Run, load_model, load_tensors
from llm.data import SyntheticDataModule, TokenBatch
from llm.errors import TrainingError
from llm.settings.run import RunConfig
from llm.training import Callback, JsonlLogger, LanguageModelingTask, StepMetrics, TrainingEngine
from llm.training.launch import launch
from tests.unit.training_samples import MODEL, check_same_training, config, losses_of, unclipped


@pytest.mark.long
def test_training_learns_the_rule(tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch(config(max_steps=200, log_every=10), run)
    losses = losses_of(run)
    assert losses[0] > 2.0
    assert losses[-1] < 1.0


def test_accumulation_keeps_loss_and_weights(tmp_path: Path) -> None:
    for passes in (1, 4):
        launch(unclipped(gradient_accumulation_steps=passes), tmp_path / str(passes))
    check_same_training(tmp_path / "1", tmp_path / "4")


class Exploding(LanguageModelingTask):
    """A loss that is NaN in the third step."""

    calls = 0

    def loss_sum(self, model: torch.nn.Module, batch: TokenBatch) -> Tensor:
        self.calls += 1
        return super().loss_sum(model, batch) * (math.nan if self.calls == 3 else 1.0)


class Overflowing(LanguageModelingTask):
    """Finite losses whose gradients overflow in the first `num_overflows` steps."""

    num_overflows = 0
    calls = 0

    def loss_sum(self, model: torch.nn.Module, batch: TokenBatch) -> Tensor:
        loss = super().loss_sum(model, batch)
        self.calls += model.training
        if model.training and self.calls <= self.num_overflows:
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss


class Masked(LanguageModelingTask):
    """No label counts."""

    def count_targets(self, batch: TokenBatch) -> int:
        return 0


class Counted(LanguageModelingTask):
    """A task with a metric of its own, and something to know of a batch before its passes."""

    metric_names = ("first_label", "never")
    prepared: float = 0.0

    def prepare(self, model: torch.nn.Module, parts: Iterable[TokenBatch]) -> None:
        del model
        self.prepared = float(sum(int(part.labels.sum()) for part in parts))

    def metric_sums(self, batch: TokenBatch) -> list[float]:
        return [float(batch.labels[0]), 0.0, 1.0, 0.0]

    def step_facts(self, model: torch.nn.Module) -> dict[str, Any]:
        del model
        return {"label_sum": self.prepared}


def engine_for(task: LanguageModelingTask, run: Run, settings: RunConfig, **more: Any) -> TrainingEngine:
    run.create(settings, {})
    data = SyntheticDataModule(64, vocab_size=32, context_length=16)
    return TrainingEngine(settings, task, data, run, **more)


def test_metrics_of_a_task_are_means_over_all_passes_and_a_batch_is_known_before_its_first(tmp_path: Path) -> None:
    logs = []
    for passes in (1, 4):
        settings, run = config(gradient_accumulation_steps=passes, max_steps=2), Run(tmp_path / str(passes))
        engine = engine_for(Counted(MODEL), run, settings, callbacks=[JsonlLogger(run)])
        engine.fit()
        logs.append([line for line in run.read_log() if "loss" in line])
    assert [line["label_sum"] for line in logs[0]] == [line["label_sum"] for line in logs[1]]
    assert all("never" not in line for line in logs[1])
    labels = [float(engine.loader.part(0, idx).labels[0]) for idx in range(4)]
    assert logs[1][0]["first_label"] == sum(labels) / 4
    assert {line["validation_first_label"] for line in engine.run.read_log() if "validation_loss" in line}


def test_a_nan_loss_stops_the_run_with_step_rank_and_batch(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    engine = engine_for(Exploding(MODEL), run, config(checkpoint_every=1))
    with pytest.raises(TrainingError, match=r"step 3, rank 0, epoch 1, batch 3 \(samples .*\): the loss is nan"):
        engine.fit()
    assert run.newest() == run.checkpoint(2)
    assert all(
        torch.isfinite(tensor).all() for tensor in load_tensors(run.newest().path / "model.safetensors").values()
    )


def test_fp16_warm_up_skips_are_counted_and_shown(tmp_path: Path) -> None:
    task = Overflowing(MODEL)
    task.num_overflows = 3
    run = Run(tmp_path / "run")
    engine_for(task, run, config(precision="float16", max_steps=8), callbacks=[JsonlLogger(run)]).fit()
    log = [line for line in run.read_log() if "loss" in line]
    assert [line["skipped_steps"] for line in log] == [1, 2, 3, 3, 3, 3, 3, 3]
    assert [line["grad_norm"] is None for line in log] == [True, True, True, False, False, False, False, False]


@pytest.mark.long
def test_fp16_gradients_that_stay_non_finite_stop_the_run(tmp_path: Path) -> None:
    task = Overflowing(MODEL)
    task.num_overflows = 10**6
    engine = engine_for(task, Run(tmp_path / "run"), config(precision="float16", max_steps=60))
    with pytest.raises(TrainingError, match="step 21, rank 0"):
        engine.fit()


def test_a_batch_without_labels_stops_the_run(tmp_path: Path) -> None:
    engine = engine_for(Masked(MODEL), Run(tmp_path / "run"), config())
    with pytest.raises(TrainingError, match="every label of the batch is masked"):
        engine.fit()


@pytest.mark.long
def test_recomputed_blocks_train_to_the_same_weights(tmp_path: Path) -> None:
    paths = [
        launch(config(max_steps=5, gradient_checkpointing=recompute), tmp_path / str(recompute))
        for recompute in (False, True)
    ]
    one, other = (load_model(path).state_dict() for path in paths)
    assert all(torch.equal(one[name], other[name]) for name in one)


class MemoryWatch(Callback):
    """Resident bytes after each step."""

    def __init__(self) -> None:
        self.resident: list[int] = []

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        self.resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_does_not_grow_with_steps(tmp_path: Path) -> None:
    watch = MemoryWatch()
    launch(config(max_steps=400, validate_every=1000, checkpoint_every=1000), tmp_path / "run", callbacks=[watch])
    assert watch.resident[-1] - watch.resident[100] < 8 * 2**20
