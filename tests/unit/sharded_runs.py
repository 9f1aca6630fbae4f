"""Runs of tuning in one process, in two with a whole model each, and in two with a share of it each."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import llm
from llm.checkpoint import Checkpoint, Run, load_tensors
from llm.training.callbacks import Callback, JsonlLogger
from llm.training.distributed import is_shard, is_sharded
from llm.training.metrics import FitStart
from tests.unit.processes import in_processes

# Of 25 rows, 3 passes of a validation go to one process and 2 to the other.
NUM_ROWS, PASSES = 25, {"validation_fraction": 0.2, "validate_every": 2, "batch_size": 2}
SETTINGS = {"precision": "float32", "device": "cpu", "log_every": 1, "sample_tokens": 2, "max_steps": 4}
SETTINGS |= {"checkpoint_every": 2, "keep_checkpoints": 5}


class Shares(Callback):
    """Checks, in each process, that a sharded model's weights and those alone are spread."""

    in_all_processes = True

    def __init__(self, is_wanted: bool) -> None:
        self.is_wanted = is_wanted

    def on_fit_start(self, start: FitStart) -> None:
        assert start.model is not None
        weights = list(start.model.parameters())
        assert is_sharded(start.model) == self.is_wanted
        assert all(map(is_shard, weights)) == self.is_wanted
        # Uneven parts of the last rows are the most that a process has beyond its half.
        most = sum(one.numel() // 2 + one.numel() // len(one) for one in weights)
        own = sum(one.to_local().numel() if self.is_wanted else 0 for one in weights)
        assert own <= most


def tune(kind: str, out: Path, sharding: str | None, given: dict[str, Any]) -> None:
    """Tunes as one of the processes that the environment tells of, or alone."""
    callbacks = [JsonlLogger(Run(out)), Shares(sharding == "fsdp")]
    getattr(llm, kind)(**given, callbacks=callbacks)


def run_of(kind: str, out: Path, sharding: str | None, *overrides: str, **given: Any) -> Run:
    """A run of two processes, or of one without `sharding`."""
    words = [f"training.sharding={sharding or 'auto'}", *overrides]
    everything = SETTINGS | given | {"out": out, "overrides": words}
    if sharding is None:
        tune(kind, out, None, everything)
    else:
        in_processes(2, tune, kind, out, sharding, everything)
    return Run(out)


def weights_in(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    files = [*checkpoint.path.glob("model*.safetensors"), *checkpoint.path.glob("adapter_model.safetensors")]
    return {name: tensor for file in files for name, tensor in load_tensors(file).items()}


def check_equal(one: Run, other: Run, *names: str) -> None:
    """Logged numbers and saved weights agree to 1e-5."""
    for name in ("loss", "grad_norm", "validation_loss", *names):
        values = [[line[name] for line in run.read_log() if name in line] for run in (one, other)]
        assert len(values[0]) >= 2, name
        assert values[0] == pytest.approx(values[1], rel=1e-5, abs=1e-5), name
    weights, others = weights_in(one.checkpoint(4)), weights_in(other.checkpoint(4))
    assert weights.keys() == others.keys()
    assert len(weights) > 4
    for name, tensor in weights.items():
        assert (tensor - others[name]).abs().max() <= 1e-5, name


def check_resumes(run: Run, kind: str, tmp_path: Path) -> None:
    """The last 2 of 4 steps give the same weights and moments, to the bit, when they are done again."""
    cut = Run(shutil.copytree(run.path, tmp_path / "cut"))
    cut.drop_after(2)
    (cut.path / "latest").write_text("checkpoints/step_00000002\n")
    in_processes(2, tune, kind, cut.path, "fsdp", {"resume": cut.path})
    again, saved = cut.checkpoint(4), run.checkpoint(4)
    for file in saved.path.glob("*.safetensors"):
        assert (again.path / file.name).read_bytes() == file.read_bytes()
    # The metadata of these files come in any order.
    shards = sorted(saved.training_state.glob("*.safetensors"))
    assert len(shards) == 2
    for file in shards:
        moments, expected = load_tensors(again.training_state / file.name), load_tensors(file)
        assert moments.keys() == expected.keys()
        assert all(torch.equal(moments[name], tensor) for name, tensor in expected.items())
