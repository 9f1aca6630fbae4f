"""ERNIE 4.5: Llama whose rotated pairs are neighbours on disk."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import LLAMA_BLOCK, LLAMA_TOP, Family, Values, read_activation, read_sizes, write_sizes
from llm.models.families.cuts import interleaved, usual
from llm.settings.model import ModelConfig

_DEFAULTS = {"head_dim": 128, "num_key_value_heads": 2, "rope_theta": 500_000.0, "tie_word_embeddings": True}


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    values = usual(values, _DEFAULTS)
    bias = bool(values.get("use_bias", False))
    biases = {"attention_bias": bias, "attention_output_bias": bias, "mlp_bias": bias}
    return read_sizes(values) | {"hidden_act": read_activation(values)} | biases


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    return write_sizes(config) | {"hidden_act": config.hidden_act or "silu", "use_bias": config.attention_bias}


FAMILY = Family("ernie4_5", "Ernie4_5ForCausalLM", read, write, LLAMA_TOP, LLAMA_BLOCK | interleaved())
