"""Dumps of a step whose loss or gradient is not finite: the weights and every process's share of the batch."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm.checkpoint import Run, load_tensors, read_json, save_tensors
from llm.checkpoint.space import explains_failed_writes
from llm.data import RegressionBatch, RolloutBatch, TokenBatch
from llm.errors import DataError, FileError, TrainingError
from llm.settings.paths import quoted
from llm.training.distributed import Distributed, whole

_KINDS = {kind.__name__: kind for kind in (TokenBatch, RegressionBatch, RolloutBatch)}
_WEIGHTS = "weights.safetensors"
_FACTS = "dump.json"
_SHOWN = 16  # samples in a message


@dataclass(frozen=True)
class BadStep:
    """What one process saw of a step whose loss or gradient is not finite.

    Attributes:
        step: Number of optimizer steps before it.
        rank: Number of the process.
        loss: Mean loss of the whole batch.
        grad_norm: Gradient norm.
        num_targets: Number of targets of the whole batch.
        loss_scale: Factor of the loss in fp16; otherwise 1.
        sample_ids: Numbers of this process's samples in the data.
        parts: Batches of this process's passes, in order.
    """

    step: int
    rank: int
    loss: float
    grad_norm: float
    num_targets: float
    loss_scale: float
    sample_ids: tuple[int, ...]
    parts: tuple[Any, ...]


def not_finite(bad: BadStep, steps_per_epoch: int, dump: Path | FileError, dtype: torch.dtype) -> TrainingError:
    """Returns the error for a step whose loss or gradient is not finite.

    Args:
        bad: The step.
        steps_per_epoch: Number of batches in an epoch.
        dump: The dump's directory, or why there is none.
        dtype: Number type of matrix products.
    """
    epoch, batch = divmod(bad.step, steps_per_epoch)
    samples = ", ".join(map(str, bad.sample_ids[:_SHOWN])) + (", …" if len(bad.sample_ids) > _SHOWN else "")
    where = (
        f"`llm train --replay {quoted(dump)}` shows where the first bad value appears"
        if isinstance(dump, Path)
        else None
    )
    return TrainingError(
        f"step {bad.step + 1}, rank {bad.rank}, epoch {epoch + 1}, batch {batch + 1} (samples {samples}): the loss is "
        f"{bad.loss} and the gradient norm {bad.grad_norm}; both must be finite\n"
        f"hint: {where or f'no dump: {dump}'}; {_ways(dtype)}, then start again or resume"
    )


def _ways(dtype: torch.dtype) -> str:
    """Returns what keeps a run from diverging."""
    ways = ["lower `optimizer.learning_rate`", "raise `optimizer.warmup_steps`"]
    ways += [] if dtype == torch.float32 else ["set `training.precision=float32`"]
    return f"{', '.join(ways[:-1])} or {ways[-1]}"


def check_weights(step: int, model: nn.Module, distributed: Distributed, dtype: torch.dtype) -> None:
    """Checks in all processes at once that the optimizer left finite weights, so that no others are saved.

    Args:
        step: Number of optimizer steps so far.
        model: The model, whose trained weights may be spread over processes.
        distributed: The processes.
        dtype: Number type of matrix products.

    Raises:
        TrainingError: A weight is NaN or infinite in some process.
    """
    trained = (weight.detach() for weight in model.parameters() if weight.requires_grad)
    own = (weight.to_local() if hasattr(weight, "to_local") else weight for weight in trained)
    num_bad = sum(not bool(weight.isfinite().all()) for weight in own)
    if distributed.sum(float(num_bad))[0] > 0:
        raise TrainingError(
            f"step {step}: the optimizer's step left weights that are not finite; they are not saved\n"
            f"hint: {_ways(dtype)}, then start again or resume"
        )


def dump(run: Run, bad: BadStep, model: nn.Module, distributed: Distributed) -> Path | FileError:
    """Writes what `replay` needs, in all processes at once, and returns the directory, or why there is none."""
    directory = run.path / "dumps" / f"step_{bad.step + 1:08d}"
    state = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    try:
        write_dump(directory, bad, state if distributed.is_main else None)
    except FileError as error:
        return error
    finally:
        distributed.sum(1.0)  # no process may end before all have written
    return directory


def write_dump(directory: Path, bad: BadStep, state: dict[str, Tensor] | None) -> None:
    """Writes one process's share of a dump, and the weights if `state` is given.

    Raises:
        FileError: The disk is full, or the directory can't be written.
    """
    facts = {field.name: getattr(bad, field.name) for field in dataclasses.fields(bad) if field.name != "parts"}
    facts = {name: _in_json(value) for name, value in facts.items()}
    with explains_failed_writes(directory):
        directory.mkdir(parents=True, exist_ok=True)
        if state is not None:
            save_tensors(directory / _WEIGHTS, state)
        own = directory / f"rank_{bad.rank:05d}"
        own.mkdir(exist_ok=True)
        tensors, described = _taken_apart(bad.parts)
        save_tensors(own / "batch.safetensors", tensors)
        (own / _FACTS).write_text(json.dumps(facts | {"parts": described}) + "\n", encoding="utf-8")


def read_dump(directory: Path) -> list[BadStep]:
    """Reads what each process wrote, by rank.

    Raises:
        DataError: The directory holds no dump.
        CheckpointError: Files are damaged.
    """
    ranks = sorted(directory.glob("rank_*"))
    if not ranks:
        raise DataError(f"{directory} holds no dump\nhint: pass a directory such as runs/base/dumps/step_00000007")
    return [_read_rank(folder) for folder in ranks]


def load_dumped_weights(directory: Path, model: nn.Module) -> None:
    """Copies the weights of a dump into a model.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    model.load_state_dict(load_tensors(directory / _WEIGHTS), strict=False)


def _read_rank(folder: Path) -> BadStep:
    facts = read_json(folder / _FACTS)
    tensors = load_tensors(folder / "batch.safetensors")
    parts = [_put_together(number, about, tensors) for number, about in enumerate(facts.pop("parts"))]
    facts |= {name: float(facts[name]) for name in ("loss", "grad_norm")}
    return BadStep(**facts | {"parts": tuple(parts), "sample_ids": tuple(facts["sample_ids"])})


def _taken_apart(parts: Sequence[Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Divides batches into tensors by name and the rest; a batch of a class of your own keeps its class's name only."""
    tensors: dict[str, Tensor] = {}
    described = []
    for number, part in enumerate(parts):
        about: dict[str, Any] = {"kind": type(part).__name__}
        for field in dataclasses.fields(part) if type(part).__name__ in _KINDS else ():
            value = getattr(part, field.name)
            if isinstance(value, Tensor):
                tensors[f"{number}.{field.name}"] = value
            elif isinstance(value, Mapping) and all(isinstance(one, Tensor) for one in value.values()):
                tensors |= {f"{number}.{field.name}.{name}": tensor for name, tensor in value.items()}
            else:
                about[field.name] = value
        described.append(about)
    return tensors, described


def _put_together(number: int, about: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    kind = _KINDS.get(about.pop("kind"))
    if kind is None:
        raise DataError("the dump's batch is of a class of your own: take its `sample_ids` from your data")
    start = f"{number}."
    values: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if name.startswith(start):
            field, _, inner = name.removeprefix(start).partition(".")
            values |= {field: values.get(field, {}) | {inner: tensor}} if inner else {field: tensor}
    values |= {name: tuple(value) if isinstance(value, list) else value for name, value in about.items()}
    return kind(**values)


def _in_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
