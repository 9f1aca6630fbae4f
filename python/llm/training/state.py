"""What a run needs beside weights to go on exactly: the optimizer's moments, the step and the loss scale."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from llm.checkpoint import load_tensors, read_json, save_tensors
from llm.errors import CheckpointError
from llm.models import DecoderModel
from llm.models.hf import weights_from_hf
from llm.models.tensor_files import open_tensors
from llm.training.optim import load_optimizer_tensors, optimizer_tensors

FOLDER = "training_state"


def write_training_state(
    checkpoint: Path, model: nn.Module, optimizer: AdamW, scaler: torch.amp.GradScaler, counters: dict[str, int]
) -> None:
    """Writes `training_state/` into a checkpoint that is being made. Randomness needs none: each step seeds itself."""
    folder = checkpoint / FOLDER
    folder.mkdir()
    save_tensors(folder / "optimizer.safetensors", optimizer_tensors(model, optimizer))
    state = {**counters, "scaler": scaler.state_dict()}
    (folder / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")


def load_training_state(
    checkpoint: Path, model: nn.Module, optimizer: AdamW, scaler: torch.amp.GradScaler
) -> dict[str, Any]:
    """Puts weights, moments and loss scale of `checkpoint` back and returns its counters.

    Raises:
        CheckpointError: The checkpoint has no training state, or one that doesn't fit the model.
    """
    folder = checkpoint / FOLDER
    if not folder.is_dir():
        raise CheckpointError(f"{checkpoint} has no {FOLDER}/\nhint: it was exported for serving; resume needs the run")
    tensors = {name: tensor.load() for name, tensor in open_tensors(checkpoint).items()}
    model.load_state_dict(weights_from_hf(tensors, model.config) if isinstance(model, DecoderModel) else tensors)
    load_optimizer_tensors(model, optimizer, load_tensors(folder / "optimizer.safetensors"))
    state = read_json(folder / "state.json")
    if not {"scaler", "step", "skipped_steps"} <= state.keys():
        raise CheckpointError(f"{folder / 'state.json'} lacks the run's counters\nhint: remove {checkpoint} and resume")
    scaler.load_state_dict(state.pop("scaler"))
    return state
