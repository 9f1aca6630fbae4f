"""OLMo 2: norms of each part's output inside the residual sum, and of all queries and all keys at once."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import (
    LLAMA_BLOCK,
    LLAMA_TOP,
    QK_NORMS,
    Family,
    Values,
    read_activation,
    read_sizes,
    write_sizes,
)
from llm.settings.model import ModelConfig


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    return read_sizes(values) | read_parts(values)


def read_parts(values: Mapping[str, Any]) -> Values:
    """Reads what OLMo 2 and 3 share beside sizes and rotary settings."""
    bias = bool(values.get("attention_bias", False))
    return {
        "hidden_act": read_activation(values),
        "attention_bias": bias,
        "attention_output_bias": bias,
        "norm_placement": "inside",
        "qk_norm": True,
        "qk_norm_type": "whole",
    }


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    return write_sizes(config) | {"hidden_act": config.hidden_act or "silu", "attention_bias": config.attention_bias}


BLOCK = LLAMA_BLOCK | QK_NORMS | {"norm1": "post_attention_layernorm", "norm2": "post_feedforward_layernorm"}
FAMILY = Family("olmo2", "Olmo2ForCausalLM", read, write, LLAMA_TOP, BLOCK)
