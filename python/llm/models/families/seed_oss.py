"""Seed-OSS: Llama with biases of its own choice in attention."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import LLAMA_BLOCK, LLAMA_TOP, Family, Values, read_activation, read_sizes, write_sizes
from llm.models.families.cuts import usual
from llm.settings.model import ModelConfig


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`; dropout of 0.1 is the family's default in training."""
    defaults = {"head_dim": 128, "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "attention_dropout": 0.1}
    values = usual(values, defaults)
    return read_sizes(values) | {
        "hidden_act": read_activation(values),
        "attention_bias": bool(values.get("attention_bias", True)),
        "attention_output_bias": bool(values.get("attention_out_bias", False)),
        "mlp_bias": bool(values.get("mlp_bias", False)),
    }


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    return write_sizes(config) | {
        "hidden_act": config.hidden_act or "silu",
        "attention_bias": config.attention_bias,
        "attention_out_bias": config.attention_output_bias,
        "mlp_bias": bool(config.mlp_bias),
        "residual_dropout": config.dropout,
    }


FAMILY = Family("seed_oss", "SeedOssForCausalLM", read, write, LLAMA_TOP, LLAMA_BLOCK)
