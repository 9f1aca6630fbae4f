"""The training state needed to resume besides the weights: the optimizer's moments, the step and the loss scale."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from llm.checkpoint import Checkpoint, load_tensors, read_json, save_tensors
from llm.errors import CheckpointError
from llm.training.optim import load_optimizer_tensors, optimizer_tensors


def write_training_state(
    directory: Path, model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler, counters: dict[str, Any]
) -> None:
    """Writes the training state to a checkpoint's directory, without random states, because each step seeds itself."""
    folder = Checkpoint(directory).training_state
    folder.mkdir()
    save_tensors(folder / "optimizer.safetensors", optimizer_tensors(model, optimizer))
    state = {**counters, "scaler": scaler.state_dict()}
    (folder / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")


def load_training_state(
    checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler
) -> dict[str, Any]:
    """Restores weights, moments and loss scale from `checkpoint` and returns its counters.

    Raises:
        CheckpointError: The checkpoint has no training state, or its state doesn't fit the model.
    """
    folder = checkpoint.training_state
    if not folder.is_dir():
        raise CheckpointError(
            f"{checkpoint} has no {folder.name}/\nhint: resume from a run's own checkpoint, not an exported one"
        )
    checkpoint.load_weights(model)
    load_optimizer_tensors(model, optimizer, load_tensors(folder / "optimizer.safetensors"))
    state = read_json(folder / "state.json")
    if not {"scaler", "step", "skipped_steps"} <= state.keys():
        raise CheckpointError(f"{folder / 'state.json'} must contain the run's counters, got none")
    scaler.load_state_dict(state.pop("scaler"))
    return state
