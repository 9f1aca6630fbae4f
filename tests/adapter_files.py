"""Adapters on disk whose values are random, for tests that serve them."""

import json
from pathlib import Path
from typing import Any

import msgspec
import torch

from llm.checkpoint import load_model, resolve
from llm.checkpoint.adapters import (
    CONFIG,
    DIGESTS,
    WEIGHTS,
    adapter_entries,
    base_digests,
    write_adapter_config,
    write_adapter_weights,
)
from llm.models import DecoderModel
from llm.models.adapters import adapt, adapters_of
from llm.settings.run import LoraConfig


def write_adapter(directory: Path, base: Path, *, seed: int = 0, size: float = 0.3, **settings: Any) -> Path:
    """Writes an adapter of `base` as a run writes it; `settings` are those of `LoraConfig`."""
    model = load_model(base)
    assert isinstance(model, DecoderModel)
    torch.manual_seed(seed)
    lora = msgspec.convert({"rank": 4, **settings}, LoraConfig)
    adapt(model, lora)
    for _, _, adapter in adapters_of(model):
        torch.nn.init.normal_(adapter.lora_b, 0, size)
    directory.mkdir(parents=True)
    write_adapter_weights(directory / WEIGHTS, model, adapter_entries(model))
    write_adapter_config(directory, model, lora, str(base))
    names = (part.name for part, _, _ in adapters_of(model))
    (directory / DIGESTS).write_text(json.dumps(base_digests(*resolve(base).opened(), names)))
    assert (directory / CONFIG).is_file()
    return directory
