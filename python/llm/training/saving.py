"""Saving and restoring of a run's checkpoints."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llm.checkpoint import (
    Checkpoint,
    Run,
    WeightFile,
    atomic_directory,
    plan_files,
    saved_state,
    sync,
    unfinished,
    write_description,
    write_weights,
)
from llm.settings.run import RunConfig
from llm.tokenization import BaseTokenizer
from llm.training.distributed import Distributed, whole
from llm.training.optim import load_optimizer_tensors, optimizer_tensors
from llm.training.state import read_counters, read_moments, write_counters, write_moments


@dataclass(frozen=True)
class TrainedParts:
    """The parts of a run that training changes, and the tokenizer that the model was built for.

    Attributes:
        model: The model itself, not its wrapper for several processes.
        optimizer: The optimizer of the model's parameters.
        scaler: The loss scale of fp16; disabled otherwise.
        tokenizer: Tokenizer to save beside the weights, so that checkpoints can be served; None without text.
    """

    model: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    tokenizer: BaseTokenizer | None


@dataclass(frozen=True)
class _Snapshot:
    """What this process writes of one checkpoint.

    Attributes:
        weights: Whole entries of the model's state.
        moments: The optimizer's tensors, sharded as the parameters are.
        counters: Step, loss scale and further numbers.
    """

    weights: Mapping[str, Tensor]
    moments: dict[str, Tensor]
    counters: Mapping[str, Any]


class CheckpointSaver:
    """Writes a run's checkpoints and restores the run's state from one.

    All processes write: each has its files of weights and of the optimizer's state. The main process adds the rest, and
    the marker of a complete checkpoint last.

    Args:
        config: Settings; the saver reads `training.keep_checkpoints` and `generation`.
        run: The run that the checkpoints belong to.
        distributed: This process; all processes must call `save` at the same steps.
        parts: The parts to save and restore.
    """

    def __init__(self, config: RunConfig, run: Run, distributed: Distributed, parts: TrainedParts) -> None:
        self.config = config
        self.run = run
        self.distributed = distributed
        self.parts = parts
        self._files = plan_files(parts.model, num_writers=distributed.world_size)
        self._last_saved = -1

    def save(self, step: int, counters: Mapping[str, Any], *, again: bool = False) -> Checkpoint | None:
        """Saves the checkpoint of `step` and removes old ones; returns None if that step is already saved.

        Args:
            step: Number of optimizer steps so far.
            counters: Further numbers for `restore` to return.
            again: Whether to replace the checkpoint of a step that is already saved.

        Raises:
            OSError: The disk is full.
            TrainingError: Another process failed.
        """
        if self._last_saved == step and not again:  # equal in all processes, unlike the state of the disk
            return None
        self._last_saved = step
        checkpoint = self.run.checkpoint(step)
        self._write(checkpoint, self._snapshot({"step": step, **counters}))
        return checkpoint

    def restore(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Restores weights, optimizer and loss scale from `checkpoint` and returns its counters, `step` among them.

        Any number of processes can restore what any other number saved.

        Raises:
            CheckpointError: The checkpoint has no training state, or its state doesn't fit the model.
        """
        counters = read_counters(checkpoint)
        checkpoint.load_weights(self.parts.model)
        moments = read_moments(checkpoint.training_state, self.parts.model, self.distributed)
        load_optimizer_tensors(self.parts.model, self.parts.optimizer, moments)
        self.parts.scaler.load_state_dict(counters.pop("scaler"))
        self._last_saved = counters["step"]
        return counters

    def _snapshot(self, counters: Mapping[str, Any]) -> _Snapshot:
        parts, own = self.parts, {name for file in self._own_files() for name in file.entries}
        weights = {}
        for name, tensor in saved_state(parts.model).items():
            gathered = whole(tensor.detach())  # in every process, though only one keeps it
            if name in own:
                weights[name] = gathered
        state = {**counters, "scaler": parts.scaler.state_dict()}
        return _Snapshot(weights, optimizer_tensors(parts.model, parts.optimizer), state)

    def _own_files(self) -> list[WeightFile]:
        return self._files[self.distributed.rank :: self.distributed.world_size]

    def _write(self, checkpoint: Checkpoint, snapshot: _Snapshot) -> None:
        """Writes a checkpoint in a temporary directory that the main process makes, completes and renames."""
        together, is_main = self.distributed.together, self.distributed.is_main
        with contextlib.ExitStack() as stack:
            target = atomic_directory(checkpoint.path) if is_main else None
            directory = together(lambda: stack.enter_context(target) if target else unfinished(checkpoint.path))
            folder = Checkpoint(directory).training_state
            together(lambda: folder.mkdir(exist_ok=True))
            together(lambda: self._write_weights(directory, snapshot))
            write_moments(folder, snapshot.moments, self.distributed)
            together(lambda: self._complete(directory, snapshot, stack) if is_main else None)
        together(lambda: self._publish(checkpoint) if is_main else None)

    def _write_weights(self, directory: Path, snapshot: _Snapshot) -> None:
        for file in self._own_files():
            write_weights(directory, self.parts.model, file, snapshot.weights)
            sync(directory / file.name)

    def _complete(self, directory: Path, snapshot: _Snapshot, unfinished_directory: contextlib.ExitStack) -> None:
        write_description(directory, self.parts.model, self._files, self.parts.tokenizer, self.config.generation)
        write_counters(Checkpoint(directory).training_state, snapshot.counters)
        unfinished_directory.close()

    def _publish(self, checkpoint: Checkpoint) -> None:
        self.run.publish(checkpoint)
        self.run.prune(self.config.training.keep_checkpoints)
