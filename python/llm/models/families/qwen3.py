"""Qwen 3: Llama with norms of queries and keys."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import (
    LLAMA_BLOCK,
    LLAMA_TOP,
    QK_NORMS,
    Family,
    Values,
    read_sizes,
    read_windows,
    write_sizes,
    write_windows,
)
from llm.settings.model import ModelConfig


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    bias = bool(values.get("attention_bias", False))
    windows = read_windows(values)
    fields = {"qk_norm": True, "attention_bias": bias, "attention_output_bias": bias}
    return read_sizes({"head_dim": 128, **values}) | fields | windows


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    values = {"hidden_act": config.hidden_act or "silu", "attention_bias": config.attention_bias}
    return write_sizes(config) | values | write_windows(config)


FAMILY = Family("qwen3", "Qwen3ForCausalLM", read, write, LLAMA_TOP, LLAMA_BLOCK | QK_NORMS)
