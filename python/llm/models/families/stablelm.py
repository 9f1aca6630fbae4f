"""StableLM: Llama with layer norms, and rotary positions on a part of each head."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import (
    LLAMA_BLOCK,
    LLAMA_TOP,
    Family,
    Values,
    read_activation,
    read_sizes,
    require,
    write_sizes,
)
from llm.models.families.cuts import usual
from llm.settings.model import ModelConfig


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    values = usual(values, {"layer_norm_eps": 1e-5})
    require(values, {"qk_layernorm": (False,)})
    return read_sizes(values, partial=0.25) | {
        "hidden_act": read_activation(values),
        "attention_bias": bool(values.get("use_qkv_bias", False)),
        "norm": "layer_norm",
        "rms_norm_eps": values["layer_norm_eps"],
        "parallel_block": bool(values.get("use_parallel_residual", False)),
    }


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`, always with the rotated share: a missing one means a quarter."""
    values = {key: value for key, value in write_sizes(config).items() if key != "rms_norm_eps"}
    return values | {
        "hidden_act": config.hidden_act or "silu",
        "layer_norm_eps": config.rms_norm_eps,
        "use_qkv_bias": config.attention_bias,
        "qk_layernorm": False,
        "use_parallel_residual": config.parallel_block,
        "hidden_dropout": config.dropout,
        "partial_rotary_factor": config.partial_rotary_factor,
    }


FAMILY = Family("stablelm", "StableLmForCausalLM", read, write, LLAMA_TOP, LLAMA_BLOCK)
