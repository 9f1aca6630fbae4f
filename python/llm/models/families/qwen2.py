"""Qwen 2 and 2.5: Llama with biases on queries, keys and values."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import (
    LLAMA_BLOCK,
    LLAMA_TOP,
    Family,
    Values,
    read_activation,
    read_sizes,
    read_windows,
    write_sizes,
    write_windows,
)
from llm.settings.model import ModelConfig


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    windows = read_windows(values)
    return read_sizes(values) | {"hidden_act": read_activation(values)} | {"attention_bias": True} | windows


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    return write_sizes(config) | {"hidden_act": config.hidden_act or "silu"} | write_windows(config)


FAMILY = Family("qwen2", "Qwen2ForCausalLM", read, write, LLAMA_TOP, LLAMA_BLOCK)
