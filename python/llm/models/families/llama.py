"""Llama 1 to 3 and models of the same architecture (SmolLM, TinyLlama)."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import LLAMA_BLOCK, LLAMA_TOP, Family, Values, read_activation, read_sizes, write_sizes
from llm.settings.model import ModelConfig


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    bias = bool(values.get("attention_bias", False))
    biases = {"attention_bias": bias, "attention_output_bias": bias, "mlp_bias": bool(values.get("mlp_bias", False))}
    return read_sizes(values) | {"hidden_act": read_activation(values)} | biases


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    biases = {"attention_bias": config.attention_bias, "mlp_bias": bool(config.mlp_bias)}
    return write_sizes(config) | {"hidden_act": config.hidden_act or "silu"} | biases


FAMILY = Family("llama", "LlamaForCausalLM", read, write, LLAMA_TOP, LLAMA_BLOCK)
