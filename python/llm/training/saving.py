"""Saving and restoring of a run's checkpoints."""

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from llm.checkpoint import (
    AdapterLayout,
    Checkpoint,
    ModelLayout,
    Run,
    WeightFile,
    atomic_directory,
    resolve,
    sync,
    unfinished,
)
from llm.models import DecoderModel
from llm.settings.run import RunConfig
from llm.tokenization import BaseTokenizer
from llm.training.background import PendingSave, Snapshot, SnapshotCopy
from llm.training.distributed import Distributed, is_sharded, whole
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


class CheckpointSaver:
    """Writes a run's checkpoints and restores the run's state from one.

    All processes write: each has its files of weights and of the optimizer's state. The main process adds the rest, and
    the marker of a complete checkpoint last.

    Args:
        config: Settings; the saver reads `training.keep_checkpoints`, `training.async_save` and `generation`.
        run: The run that the checkpoints belong to.
        distributed: This process; all processes must call `save` at the same steps.
        parts: The parts to save and restore.
    """

    def __init__(self, config: RunConfig, run: Run, distributed: Distributed, parts: TrainedParts) -> None:
        self.config = config
        self.run = run
        self.distributed = distributed
        self.parts = parts
        self._layout = _layout(config, parts.model, distributed.world_size)
        self._last_saved = -1
        self._copy: SnapshotCopy | None = None
        if config.training.async_save:
            self._copy = SnapshotCopy(distributed, is_sharded=is_sharded(parts.model))
        self._pending: PendingSave | None = None
        self._unannounced: list[Checkpoint] = []

    def __enter__(self) -> "CheckpointSaver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Waits for a save in progress, unless a second signal asks to leave at once."""
        if self._pending is None or isinstance(error, KeyboardInterrupt):
            return
        self._pending.join()
        if error is not None and self._pending.error is not None:
            error.add_note(f"the last checkpoint could not be saved either: {self._pending.error}")

    def save(self, step: int, counters: Mapping[str, Any], *, again: bool = False) -> None:
        """Saves the checkpoint of `step`, unless it is saved already, and removes old ones.

        With `training.async_save`, this only starts the save, after the previous one is complete.

        Args:
            step: Number of optimizer steps so far.
            counters: Further numbers for `restore` to return.
            again: Whether to replace the checkpoint of a step that is already saved.

        Raises:
            FileError: The disk is full, or the directory can't be written.
            TrainingError: Another process failed.
        """
        if self._last_saved == step and not again:  # equal in all processes, unlike the state of the disk
            return
        self._last_saved = step
        self._collect(wait=True)
        checkpoint, state = self.run.checkpoint(step), self._state({"step": step, **counters})
        if self._copy is None:
            self._write(checkpoint, state)
            self._unannounced.append(checkpoint)
            return
        copy = functools.partial(self._copy.of, state, self.distributed.work_so_far())
        self._pending = PendingSave(checkpoint, copy, self._write)
        self._pending.start()

    def completed(self, *, wait: bool = False) -> list[Checkpoint]:
        """Returns the checkpoints that became complete since the last call.

        Args:
            wait: Whether to wait for a save in progress.

        Raises:
            FileError: A save failed because the disk is full, or the directory can't be written.
            TrainingError: Another process failed to save.
        """
        self._collect(wait=wait)
        complete, self._unannounced = self._unannounced, []
        return complete

    def wait_for_copy(self) -> None:
        """Waits until weights and moments may change."""
        if self._pending is not None:
            self._pending.wait_for_copy()

    def _collect(self, *, wait: bool) -> None:
        pending = self._pending
        if pending is not None and (wait or not pending.is_alive()):
            self._pending = None
            self._unannounced.append(pending.result())

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

    def _state(self, counters: Mapping[str, Any]) -> Snapshot:
        parts, own = self.parts, {name for file in self._own_files() for name in file.entries}
        buffers = {name for name, _ in parts.model.named_buffers()}  # change in the forward pass, unlike parameters
        weights = {}
        for name, tensor in self._layout.state().items():
            gathered = whole(tensor.detach())  # in every process, though only one keeps it
            if name in own:
                weights[name] = gathered.clone() if name in buffers else gathered
        state = {**counters, "scaler": parts.scaler.state_dict()}
        return Snapshot(weights, optimizer_tensors(parts.model, parts.optimizer), state)

    def _own_files(self) -> list[WeightFile]:
        return self._layout.files[self.distributed.rank :: self.distributed.world_size]

    def _write(self, checkpoint: Checkpoint, snapshot: Snapshot) -> None:
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

    def _write_weights(self, directory: Path, snapshot: Snapshot) -> None:
        for file in self._own_files():
            self._layout.write_weights(directory, file, snapshot.weights)
            sync(directory / file.name)

    def _complete(self, directory: Path, snapshot: Snapshot, unfinished_directory: contextlib.ExitStack) -> None:
        self._layout.write_description(directory, self.parts.tokenizer, self.config.generation)
        write_counters(Checkpoint(directory).training_state, snapshot.counters)
        unfinished_directory.close()

    def _publish(self, checkpoint: Checkpoint) -> None:
        self.run.publish(checkpoint)
        self.run.prune(self.config.training.keep_checkpoints)


def _layout(config: RunConfig, model: nn.Module, num_writers: int) -> ModelLayout | AdapterLayout:
    base = config.training.init_from
    if config.lora.rank is None or base is None or not isinstance(model, DecoderModel):
        return ModelLayout(model, num_writers)
    return AdapterLayout(model, config.lora, resolve(base))
