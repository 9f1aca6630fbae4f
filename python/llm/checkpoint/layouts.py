"""The files of a checkpoint in training: those of a whole model, or those of an adapter and no copy of its base."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from llm.checkpoint.adapters import (
    DIGESTS,
    WEIGHTS,
    adapter_digest,
    adapter_entries,
    base_digests,
    write_adapter_config,
    write_adapter_weights,
)
from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.model_files import (
    WeightFile,
    plan_files,
    saved_state,
    write_description,
    write_tokenizer,
    write_weights,
)
from llm.models import DecoderModel
from llm.models.adapters import adapters_of
from llm.settings.run import GenerationConfig, LoraConfig
from llm.tokenization import BaseTokenizer


class ModelLayout:
    """The files of a whole model.

    Args:
        model: The model; sharded parameters count whole.
        num_writers: Number of processes that write.
    """

    def __init__(self, model: nn.Module, num_writers: int) -> None:
        self.model = model
        self.files = plan_files(model, num_writers=num_writers)

    def state(self) -> dict[str, Tensor]:
        """Returns what the files of weights hold, by names in the model."""
        return saved_state(self.model)

    def write_weights(self, directory: Path, file: WeightFile, state: Mapping[str, Tensor]) -> None:
        """Writes one file of weights."""
        write_weights(directory, self.model, file, state)

    def write_description(self, directory: Path, tokenizer: BaseTokenizer | None, generation: GenerationConfig) -> None:
        """Writes everything but the weights."""
        write_description(directory, self.model, self.files, tokenizer, generation)


class AdapterLayout:
    """The files of an adapter, in PEFT's layout.

    Args:
        model: The adapted model; sharded parameters count whole.
        settings: Settings of the adapters.
        base: Checkpoint that the model's frozen weights come from.
    """

    def __init__(self, model: DecoderModel, settings: LoraConfig, base: Checkpoint) -> None:
        self.model = model
        self.settings = settings
        self.base = base
        empty = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in self.state().items()
        }
        self.files = [WeightFile(WEIGHTS, empty)]
        names = (part.name for part, _, _ in adapters_of(model))
        self._digests = adapter_digest(base.path) if base.is_adapter else base_digests(*base.opened(), names)

    def state(self) -> dict[str, Tensor]:
        """Returns what the file of weights holds, by names in the model."""
        return adapter_entries(self.model)

    def write_weights(self, directory: Path, file: WeightFile, state: Mapping[str, Tensor]) -> None:
        """Writes the file of weights."""
        write_adapter_weights(directory / file.name, self.model, state)

    def write_description(self, directory: Path, tokenizer: BaseTokenizer | None, generation: GenerationConfig) -> None:
        """Writes everything but the weights."""
        write_adapter_config(directory, self.model, self.settings, os.path.abspath(self.base))
        (directory / DIGESTS).write_text(json.dumps(self._digests, indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None:
            write_tokenizer(directory, tokenizer, generation)
