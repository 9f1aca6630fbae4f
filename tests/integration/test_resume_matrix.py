"""Runs that are killed in the middle and go on to the byte, and runs that go on in other numbers of processes."""

import itertools
import json
import os
import shutil
import signal
from collections import defaultdict
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from llm.checkpoint import Run, load_tensors, plan_files, step_of
from llm.demo import demo_corpus
from llm.settings.run import DataConfig, RunConfig
from llm.settings.sources import SourceConfig
from llm.training import Callback, JsonlLogger, StepMetrics
from llm.training.launch import launch, resume
from tests.unit.processes import ends_of, in_processes
from tests.unit.training_samples import losses_of, on_text, tensors_of

pytestmark = pytest.mark.slow

STEPS, KILLED_AT, SAVED_EVERY = 200, 113, 50
WEIGHTS = (0.5, 0.3, 0.2)
SMALL_FILE_BYTES = 8_000


@dataclass(frozen=True)
class Case:
    """A run to kill.

    Attributes:
        world_size: Number of processes.
        optimizer: Settings of the section `optimizer`.
        training: Settings of the section `training`.
        is_mixture: Whether the run packs documents of three weighted sources, rather than cutting one text.
        has_small_files: Whether one process writes its weights into several files.
    """

    world_size: int
    optimizer: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    is_mixture: bool = True
    has_small_files: bool = False


BF16, PASSES, BESIDE = {"precision": "bfloat16"}, {"gradient_accumulation_steps": 4}, {"async_save": True}
DDP, FSDP = {"sharding": "ddp"}, {"sharding": "fsdp"}
CASES = {
    "fp32, adamw, cosine, one text": Case(1, {"schedule": "cosine"}, is_mixture=False),
    "fp32, adamw, linear, 4 passes, small files": Case(1, {"schedule": "linear"}, PASSES, has_small_files=True),
    "bf16, muon, wsd, 4 passes, saved beside": Case(1, {"name": "muon", "schedule": "wsd"}, BF16 | PASSES | BESIDE),
    "bf16, adamw, constant, small files": Case(1, {"schedule": "constant"}, BF16 | BESIDE, has_small_files=True),
    "fp32, adamw8bit, cosine, 4 passes": Case(1, {"name": "adamw8bit"}, PASSES),
    "ddp, fp32, adamw, wsd, 4 passes, saved beside": Case(2, {"schedule": "wsd"}, DDP | PASSES | BESIDE),
    "ddp, bf16, muon, cosine": Case(2, {"name": "muon"}, DDP | BF16),
    "fsdp, fp32, muon, linear, 4 passes": Case(2, {"name": "muon", "schedule": "linear"}, FSDP | PASSES),
    "fsdp, bf16, adamw, constant, saved beside": Case(2, {"schedule": "constant"}, FSDP | BF16 | BESIDE),
}


def corpora(folder: Path) -> list[str]:
    """Three texts of documents of unequal lengths."""
    text, files = demo_corpus(), []
    for number in range(3):
        pieces = [text[at : at + 40 + at % 97] for at in range(number * 40_000, number * 40_000 + 30_000, 150)]
        files.append(folder / f"part{number}.txt")
        files[-1].write_text("<|endoftext|>".join(pieces), encoding="utf-8")
    return [str(file) for file in files]


def settings(folder: Path, case: Case, **training: Any) -> RunConfig:
    files = corpora(folder)
    values = {"max_steps": STEPS, "checkpoint_every": SAVED_EVERY, "validate_every": 100, "sample_tokens": 0}
    base = on_text(Path(files[0]), **values | case.training | training)
    optimizer = msgspec.structs.replace(base.optimizer, learning_rate=1e-3, **case.optimizer)
    data = msgspec.structs.replace(base.data, num_samples=None, log_samples=True)
    if case.is_mixture:
        sources = tuple(SourceConfig(paths=(file,), weight=each) for file, each in zip(files, WEIGHTS, strict=True))
        data = DataConfig(sources=sources, packing=True, log_samples=True)
    return msgspec.structs.replace(base, optimizer=optimizer, data=data)


class Killed(Callback):
    """Kills the main process in the middle of the run."""

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        if metrics.step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def train(path: Path, wanted: RunConfig, has_small_files: bool = False, *callbacks: Callback) -> None:
    """Starts the run, or goes on with it, in a process of its own."""
    if has_small_files:
        plan_files.__kwdefaults__["max_bytes"] = SMALL_FILE_BYTES
    run = Run(path)
    if run.exists:
        changes = [f"training.sharding={wanted.training.sharding}"]
        resume(path, overrides=changes, callbacks=[JsonlLogger(run), *callbacks])
    else:
        launch(wanted, path, callbacks=[JsonlLogger(run), *callbacks])


def state_of(run: Run) -> dict[str, bytes]:
    """Weights and moments of the newest checkpoint."""
    newest = run.newest()
    assert newest is not None
    assert step_of(newest) == run.read_config().training.max_steps
    files = sorted(newest.path.rglob("*.safetensors"))
    tensors = [(file, name, tensor) for file in files for name, tensor in load_tensors(file).items()]
    return {
        f"{file.relative_to(newest.path)}/{name}": tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for file, name, tensor in tensors
    }


@pytest.mark.parametrize("name", CASES)
def test_a_run_killed_in_the_middle_goes_on_to_the_byte(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    if case.optimizer.get("name") == "adamw8bit" and find_spec("torchao") is None:
        pytest.skip("needs torchao")
    wanted, straight, cut = settings(tmp_path, case), Run(tmp_path / "straight"), Run(tmp_path / "cut")
    in_processes(case.world_size, train, straight.path, wanted, case.has_small_files)
    exit_codes, _ = ends_of(case.world_size, train, cut.path, wanted, case.has_small_files, Killed())
    assert exit_codes == [-signal.SIGKILL] + [1] * (case.world_size - 1)
    newest = cut.newest()
    assert newest is not None
    assert SAVED_EVERY <= step_of(newest) < KILLED_AT
    if not wanted.training.async_save:
        assert step_of(newest) == 100
    assert (len(list(newest.path.glob("model-*.safetensors"))) > 1) == (case.has_small_files or case.world_size > 1)
    in_processes(case.world_size, train, cut.path, wanted, case.has_small_files)
    assert state_of(cut) == state_of(straight)
    assert losses_of(cut.path) == losses_of(straight.path)
    assert order_of(cut) == order_of(straight)


def order_of(run: Run) -> dict[int, list[int]]:
    """Numbers of the samples of each batch, by the position of the batch in the global order."""
    parts: dict[int, dict[int, list[int]]] = defaultdict(dict)
    for file in run.data.glob("samples.rank*.jsonl"):
        for line in map(json.loads, file.read_text().splitlines()):
            known = parts[line["position"]].setdefault(line["part"], line["ids"])
            assert known == line["ids"], "a step that was repeated saw other samples"
    return {
        position: list(itertools.chain.from_iterable(found[idx] for idx in sorted(found)))
        for position, found in parts.items()
    }


def largest_difference(one: Run, other: Run) -> float:
    weights, others = (tensors_of(run.newest()) for run in (one, other))  # type: ignore[arg-type]
    assert weights.keys() == others.keys()
    return max(float((tensor - others[name]).abs().max()) for name, tensor in weights.items())


def test_sharded_runs_of_two_and_four_processes_train_as_one(tmp_path: Path) -> None:
    runs = {number: Run(tmp_path / str(number)) for number in (1, 2, 4)}
    for number, run in runs.items():
        wanted = settings(tmp_path, Case(number, {}, FSDP), max_steps=50, batch_size=8)
        in_processes(number, train, run.path, wanted)
    differences = {number: largest_difference(runs[1], runs[number]) for number in (2, 4)}
    print("after 50 steps, weights differ from one process's by", differences)
    assert max(differences.values()) < 1e-5
    assert order_of(runs[1]) == order_of(runs[2]) == order_of(runs[4])


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_other_numbers_of_processes_go_on_with_the_same_samples(tmp_path: Path, sharding: str) -> None:
    case = Case(2, {}, {"sharding": sharding})
    wanted = settings(tmp_path, case, max_steps=20, batch_size=12, checkpoint_every=10)
    straight = Run(tmp_path / "straight")
    in_processes(2, train, straight.path, wanted)
    order = order_of(straight)
    assert sorted(order) == list(range(0, 20 * 12, 12))
    assert all(len(ids) == 12 for ids in order.values())
    differences = {}
    for world_size in (1, 3, 4):
        run = Run(tmp_path / str(world_size))
        shutil.copytree(straight.path, run.path)
        shutil.rmtree(run.checkpoint(20).path)
        for file in run.data.glob("samples.rank*.jsonl"):
            file.unlink()
        in_processes(world_size, train, run.path, wanted)
        differences[world_size] = largest_difference(straight, run)
        assert order_of(run) == {position: ids for position, ids in order.items() if position >= 10 * 12}
    print(f"{sharding}: saved by 2 processes, gone on with by others, weights differ by", differences)
    assert max(differences.values()) < 1e-6
