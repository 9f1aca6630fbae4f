"""Qwen 3 MoE: Qwen 3 with experts."""

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
from llm.models.families.qwen2_moe import EXPERT_BLOCK, read_experts, write_experts
from llm.settings.model import ModelConfig


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`; with `use_sliding_window`, every layer has a window."""
    bias = bool(values.get("attention_bias", False))
    fields = {"qk_norm": True, "attention_bias": bias, "attention_output_bias": bias, "mlp": "moe"}
    window = values.get("sliding_window", 4096) if values.get("use_sliding_window") else None
    chosen = read_experts(values, num_experts=128, per_token=8, width=768)
    return (
        read_sizes(values)
        | {"hidden_act": read_activation(values)}
        | fields
        | {"sliding_window": window, "experts": chosen}
    )


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    slides = config.sliding_window is not None
    values = {
        "hidden_act": config.hidden_act or "silu",
        "attention_bias": config.attention_bias,
        "use_sliding_window": slides,
    }
    return write_sizes(config) | values | {"sliding_window": config.sliding_window} | write_experts(config)


BLOCK = LLAMA_BLOCK | QK_NORMS | EXPERT_BLOCK | {"mlp.router": "mlp.gate"}
FAMILY = Family("qwen3_moe", "Qwen3MoeForCausalLM", read, write, LLAMA_TOP, BLOCK)
