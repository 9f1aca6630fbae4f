"""Runs whose model is sharded over processes, and runs that change their number of processes."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llm.checkpoint import Checkpoint, Run
from llm.data import BaseDataModule, SyntheticDataModule
from llm.data.base import Dataset
from llm.errors import CheckpointError
from llm.models import ForwardContext
from llm.settings.run import RunConfig
from llm.training import JsonlLogger, LanguageModelingTask, TrainingEngine
from llm.training.distributed import Distributed
from tests.unit.processes import in_processes
from tests.unit.training_samples import MODEL, config, losses_of, tensors_of

# Takes 10 to 50 seconds; `make check` leaves it out.
pytestmark = pytest.mark.long


class Noted(Dataset):
    """Samples, with a file that lists which were asked for in which step."""

    def __init__(self, samples: Dataset, file: Path) -> None:
        self.samples = samples
        self.file = file

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: NDArray[np.int64]) -> Any:
        with self.file.open("a") as file:
            file.write(json.dumps(indices.tolist()) + "\n")
        return self.samples.batch(indices)


class NotedData(BaseDataModule):
    """Synthetic samples that are noted in a file of each rank."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.samples = SyntheticDataModule(64, vocab_size=32, context_length=16)
        self.file = folder / f"rank{rank}.jsonl"

    def train_dataset(self) -> Dataset:
        return Noted(self.samples.train_dataset(), self.file)

    def validation_dataset(self) -> Dataset | None:
        return self.samples.validation_dataset()


def settings(**training: Any) -> RunConfig:
    values = {"max_steps": 20, "batch_size": 12, "checkpoint_every": 10, "keep_checkpoints": 5} | training
    wanted = config(**values)
    optimizer = msgspec.structs.replace(wanted.optimizer, learning_rate=1e-3)
    return msgspec.structs.replace(wanted, optimizer=optimizer)


def train(run: Run, wanted: RunConfig, resume: bool = False) -> None:
    """Trains as one of the processes that the environment tells of, or alone."""
    distributed = Distributed.start("cpu")
    data = NotedData(run.path, distributed.rank)
    engine = TrainingEngine(wanted, LanguageModelingTask(wanted.model), data, run, distributed=distributed)
    assert engine.parallel.is_sharded == (distributed.world_size > 1 and wanted.training.sharding == "fsdp")
    engine.callbacks = (JsonlLogger(run),) if distributed.is_main else ()
    engine.fit(resume=resume)
    distributed.stop()


def new_run(path: Path, wanted: RunConfig) -> Run:
    run = Run(path)
    run.create(wanted, {})
    return run


def batches_of(run: Run) -> list[list[int]]:
    """Samples of each step, put together in the order of the ranks."""
    files = sorted(run.path.glob("rank*.jsonl"))
    parts = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    return [list(itertools.chain(*step)) for step in zip(*parts, strict=True)]


def largest_difference(one: Checkpoint, other: Checkpoint) -> float:
    weights, others = tensors_of(one), tensors_of(other)
    assert weights.keys() == others.keys()
    return max(float((tensor - others[name]).abs().max()) for name, tensor in weights.items())


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one process."""
    run = new_run(tmp_path_factory.mktemp("straight"), settings())
    train(run, settings())
    return run


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run by two processes, each with half the model."""
    wanted = settings(sharding="fsdp")
    run = new_run(tmp_path_factory.mktemp("sharded"), wanted)
    in_processes(2, train, run, wanted)
    return run


def test_two_processes_with_half_the_model_each_train_as_one(straight: Run, sharded: Run) -> None:
    assert losses_of(sharded.path) == pytest.approx(losses_of(straight.path), rel=1e-6)
    assert largest_difference(straight.checkpoint(20), sharded.checkpoint(20)) < 1e-6
    assert batches_of(sharded) == batches_of(straight)
    validation = [[line for line in run.read_log() if "validation_loss" in line][-1] for run in (straight, sharded)]
    assert validation[0]["validation_loss"] == pytest.approx(validation[1]["validation_loss"], rel=1e-6)


def test_muon_gathers_sharded_matrices_and_goes_on_alone(tmp_path: Path) -> None:
    def wanted(**training: Any) -> RunConfig:
        base = settings(max_steps=8, checkpoint_every=4, **training)
        return msgspec.structs.replace(base, optimizer=msgspec.structs.replace(base.optimizer, name="muon"))

    alone, sharded = new_run(tmp_path / "alone", wanted()), new_run(tmp_path / "fsdp", wanted(sharding="fsdp"))
    train(alone, wanted())
    in_processes(2, train, sharded, wanted(sharding="fsdp"))
    assert largest_difference(alone.checkpoint(8), sharded.checkpoint(8)) < 1e-5
    shutil.rmtree(sharded.path / "checkpoints" / "step_00000008")
    train(sharded, wanted(sharding="fsdp"), resume=True)
    assert largest_difference(alone.checkpoint(8), sharded.checkpoint(8)) < 1e-5


def save_at_once(run: Run, wanted: RunConfig) -> None:
    distributed = Distributed.start("cpu")
    data = NotedData(run.path, distributed.rank)
    engine = TrainingEngine(wanted, LanguageModelingTask(MODEL), data, run, distributed=distributed)
    engine.saver.save(0, {"skipped_steps": 0})


def test_a_sharded_run_starts_from_the_weights_of_one_process(straight: Run, tmp_path: Path) -> None:
    wanted = settings(sharding="fsdp")
    run = new_run(tmp_path, wanted)

    in_processes(2, save_at_once, run, wanted)
    torch.manual_seed(0)
    alone = TrainingEngine(settings(), LanguageModelingTask(MODEL), NotedData(tmp_path, 9), straight)
    saved = tensors_of(run.checkpoint(0))
    weights = run.checkpoint(0).model()
    assert all(torch.equal(tensor, weights.state_dict()[name]) for name, tensor in alone.model.state_dict().items())
    assert len(saved) > 10


def test_all_processes_write_and_others_can_open_it(sharded: Run) -> None:
    checkpoint = sharded.checkpoint(20)
    assert len(list(checkpoint.path.glob("model-0000?-of-00002.safetensors"))) == 2
    assert len(list(checkpoint.training_state.glob("*.safetensors"))) == 2
    kinds = {file.suffix for file in checkpoint.path.rglob("*") if file.is_file()}
    assert kinds == {".safetensors", ".json", ""}, "a pickle?"
    import transformers  # here, because every process of these tests imports this file

    opened = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    token_ids = torch.arange(12)[None]
    ours = checkpoint.model()
    with torch.no_grad():
        expected = opened(token_ids).logits[0]
        logits = ours(token_ids[0], torch.arange(12), ForwardContext.for_sequences((12,)))
    assert torch.allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize(("world_size", "sharding"), [(1, "auto"), (3, "fsdp"), (2, "ddp")])
def test_another_number_of_processes_goes_on(
    straight: Run, sharded: Run, tmp_path: Path, world_size: int, sharding: str
) -> None:
    check_goes_on(straight, sharded, tmp_path / "run", world_size, sharding)


def test_what_one_process_saved_two_go_on_with_in_shards(straight: Run, tmp_path: Path) -> None:
    check_goes_on(straight, straight, tmp_path / "run", 2, "fsdp")


def check_goes_on(straight: Run, saved: Run, path: Path, world_size: int, sharding: str) -> None:
    """The last 10 of 20 steps, by another number of processes than the first 10."""
    shutil.copytree(saved.path, path)
    shutil.rmtree(path / "checkpoints" / "step_00000020")
    for file in path.glob("rank*.jsonl"):
        file.unlink()
    run, wanted = Run(path), settings(sharding=sharding)
    if world_size == 1:
        train(run, wanted, resume=True)
    else:
        in_processes(world_size, train, run, wanted, True)
    assert largest_difference(straight.checkpoint(20), run.checkpoint(20)) < 1e-6
    assert batches_of(run) == batches_of(straight)[10:]


def test_a_missing_shard_is_named(sharded: Run, tmp_path: Path) -> None:
    shutil.copytree(sharded.path, tmp_path / "run")
    run = Run(tmp_path / "run")
    first, last = sorted(run.checkpoint(20).training_state.glob("*.safetensors"))
    engine = TrainingEngine(settings(), LanguageModelingTask(MODEL), NotedData(tmp_path, 0), run)
    last.rename(tmp_path / "last")
    with pytest.raises(CheckpointError, match=r"must have shape \[32, 16\], got \[16, 16\]"):
        engine.saver.restore(run.checkpoint(20))
    (tmp_path / "last").rename(last)
    first.unlink()
    with pytest.raises(CheckpointError, match=r"lacks shards of embed_tokens.weight/exp_avg\nhint: copy the whole"):
        engine.saver.restore(run.checkpoint(20))
