"""The training state needed to resume besides the weights: the optimizer's moments, the step and the loss scale.

The moments are stored by `torch.distributed.checkpoint`, in safetensors instead of its own format, which is a pickle.
Each process writes its shards, and any number of processes can read them.
"""

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from llm.checkpoint import Checkpoint, load_tensors, read_json, save_tensors
from llm.errors import CheckpointError, TrainingError
from llm.training.distributed import Distributed

_WHOLE = "optimizer.safetensors"  # of one process
_COUNTERS = {"scaler", "step", "skipped_steps"}


def write_moments(folder: Path, tensors: dict[str, Tensor], distributed: Distributed) -> None:
    """Writes the optimizer's tensors; all processes call it at once, each with its shards.

    Raises:
        OSError: The disk is full.
        TrainingError: Another process failed.
    """
    if distributed.world_size == 1:
        save_tensors(folder / _WHOLE, tensors)
        return
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(tensors, storage_writer=writer, process_group=distributed.background)
    except CheckpointException as error:
        own = error.failures.get(distributed.rank)
        if own is not None:
            raise own[0] from None
        rank, (failure, _) = next(iter(error.failures.items()))
        raise TrainingError(f"process {rank} could not save its share of the checkpoint: {failure}") from None


def write_counters(folder: Path, counters: Mapping[str, Any]) -> None:
    """Writes step, loss scale and further numbers, without random states, because each step seeds itself."""
    (folder / "state.json").write_text(json.dumps(counters) + "\n", encoding="utf-8")


def read_counters(checkpoint: Checkpoint) -> dict[str, Any]:
    """Reads what `write_counters` wrote.

    Raises:
        CheckpointError: The checkpoint has no training state.
    """
    folder = checkpoint.training_state
    if not folder.is_dir():
        raise CheckpointError(
            f"{checkpoint} has no {folder.name}/\nhint: resume from a run's own checkpoint, not an exported one"
        )
    state = read_json(folder / "state.json")
    if not state.keys() >= _COUNTERS:
        raise CheckpointError(f"{folder / 'state.json'} must contain the run's counters, got {sorted(state)}")
    return state


def read_moments(folder: Path, model: nn.Module, distributed: Distributed) -> dict[str, Tensor]:
    """Reads the optimizer's tensors, those of a sharded parameter as shards alike; all processes call it at once.

    Raises:
        CheckpointError: Files are missing or broken.
    """
    if distributed.world_size == 1 and (folder / _WHOLE).is_file():
        return load_tensors(folder / _WHOLE)
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    try:
        entries = reader.read_metadata().state_dict_metadata
        _check_covered(folder, entries)
        tensors = {name: _empty(name, entry, dict(model.named_parameters())) for name, entry in entries.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            is_alone = distributed.world_size == 1
            load(tensors, storage_reader=reader, process_group=distributed.background, no_dist=is_alone)
    except (SafetensorError, OSError, CheckpointException) as error:
        raise CheckpointError(
            f"{folder} holds files that are truncated or not safetensors: {error}\n"
            "hint: copy the checkpoint again, or use an older one of the run"
        ) from error
    return tensors


def _check_covered(folder: Path, entries: Mapping[str, Any]) -> None:
    """Checks that the shards make up whole tensors, because PyTorch leaves gaps as they are."""
    for name, entry in entries.items():
        if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != math.prod(entry.size):
            raise CheckpointError(
                f"{folder} lacks shards of {name}\n"
                "hint: copy the whole checkpoint directory, with every shard-*.safetensors"
            )


def _empty(name: str, entry: Any, parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """Returns memory for a tensor on disk, sharded as the parameter whose state it is."""
    parameter = parameters.get(name.rpartition("/")[0])
    dtype = entry.properties.dtype
    if parameter is not None and parameter.shape == entry.size:
        return torch.zeros_like(parameter.detach(), dtype=dtype)
    return torch.empty(entry.size, dtype=dtype)
