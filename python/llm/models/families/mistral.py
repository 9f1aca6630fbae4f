"""Mistral: Llama with a sliding window."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import LLAMA_BLOCK, LLAMA_TOP, Family, Values, read_activation, read_sizes, write_sizes
from llm.settings.model import ModelConfig


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    return (
        read_sizes(values) | {"hidden_act": read_activation(values)} | {"sliding_window": values.get("sliding_window")}
    )


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`, always with a window: a missing one means 4,096."""
    values = write_sizes(config) | {"hidden_act": config.hidden_act or "silu"}
    return values | {"sliding_window": config.sliding_window}


FAMILY = Family("mistral", "MistralForCausalLM", read, write, LLAMA_TOP, LLAMA_BLOCK)
