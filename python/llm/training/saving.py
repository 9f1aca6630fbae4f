"""Saving and restoring of a run's checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from llm.checkpoint import Checkpoint, Run, atomic_directory, write_model
from llm.settings.run import RunConfig
from llm.tokenization import BaseTokenizer
from llm.training.distributed import Distributed
from llm.training.state import load_training_state, write_training_state


@dataclass(frozen=True)
class TrainedParts:
    """What a checkpoint holds: the parts of a run that training changes, and the tokenizer that the model was made for.

    Attributes:
        model: The model itself, not its wrapper for several processes.
        optimizer: The optimizer of the model's parameters.
        scaler: The loss scale of fp16; disabled otherwise.
        tokenizer: Saved beside the weights, so that checkpoints can be served; None without text.
    """

    model: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    tokenizer: BaseTokenizer | None


class CheckpointSaver:
    """Writes a run's checkpoints and restores the run's state from one.

    Args:
        config: The saver reads `training.keep_checkpoints` and `generation`.
        run: The run that the checkpoints belong to.
        distributed: This process; all processes must call `save` at the same steps.
        parts: What is saved and restored.
    """

    def __init__(self, config: RunConfig, run: Run, distributed: Distributed, parts: TrainedParts) -> None:
        self.config = config
        self.run = run
        self.distributed = distributed
        self.parts = parts
        self._last_saved = -1

    def save(self, step: int, counters: Mapping[str, Any], *, again: bool = False) -> Checkpoint | None:
        """Saves the checkpoint of `step` and removes old ones; returns None if that step is already saved.

        Args:
            step: Number of optimizer steps so far.
            counters: Further numbers that `restore` shall return.
            again: Whether to replace the checkpoint of a step that is already saved.
        """
        if self._last_saved == step and not again:  # equal in all processes, unlike the state of the disk
            return None
        self._last_saved = step
        checkpoint = self.run.checkpoint(step)
        if self.distributed.is_main:
            self._write(checkpoint, {"step": step, **counters})
        self.distributed.barrier()
        return checkpoint

    def restore(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Restores weights, optimizer and loss scale from `checkpoint` and returns its counters, `step` among them.

        Raises:
            CheckpointError: The checkpoint has no training state, or its state doesn't fit the model.
        """
        counters = load_training_state(checkpoint, self.parts.model, self.parts.optimizer, self.parts.scaler)
        self._last_saved = counters["step"]
        return counters

    def _write(self, checkpoint: Checkpoint, counters: dict[str, Any]) -> None:
        parts = self.parts
        with atomic_directory(checkpoint.path) as directory:
            write_model(directory, parts.model, parts.tokenizer, self.config.generation)
            write_training_state(directory, parts.model, parts.optimizer, parts.scaler, counters)
        self.run.publish(checkpoint)
        self.run.prune(self.config.training.keep_checkpoints)
