"""Combinations of components that no other family has; only this package opens them."""

from collections.abc import Mapping
from typing import Any

import msgspec

from llm.models.families.base import LLAMA_BLOCK, LLAMA_TOP, QK_NORMS, Family, Values, defaults
from llm.models.families.deepseek_v2 import BLOCK as LATENT_BLOCK
from llm.models.families.qwen2_moe import BLOCK as EXPERT_BLOCK
from llm.settings.model import ModelConfig


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig` under their own names."""
    return {key: values[key] for key in defaults() if key in values}


def write(config: ModelConfig) -> Values:
    """Returns all fields under their own names."""
    values: Values = msgspec.to_builtins(config)
    return {key: value for key, value in values.items() if key != "family"}


_LATENT = {key: cut for key, cut in LATENT_BLOCK.items() if key.startswith("attention.")}
BLOCK = (
    _LATENT
    | EXPERT_BLOCK
    | LLAMA_BLOCK
    | QK_NORMS
    | {
        "post_norm1": "post_attention_norm",
        "post_norm2": "post_feedforward_norm",
        "mlp.up_proj": "mlp.up_proj",
    }
)
FAMILY = Family("llm_oxide", "DecoderModel", read, write, LLAMA_TOP, BLOCK, required=(), takes_any=True)
