"""Mixtral: Mistral with experts."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import (
    LLAMA_BLOCK,
    LLAMA_TOP,
    Family,
    Values,
    experts,
    read_activation,
    read_sizes,
    require,
    write_sizes,
)
from llm.settings.model import ModelConfig


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    require(values, {"router_jitter_noise": (0, 0.0)})
    chosen = {
        "num_experts": values.get("num_local_experts", 8),
        "num_experts_per_tok": values.get("num_experts_per_tok", 2),
        "moe_intermediate_size": values["intermediate_size"],
        "load_balancing_weight": values.get("router_aux_loss_coef", 0.001),
    }
    return (
        read_sizes(values)
        | {"hidden_act": read_activation(values)}
        | {"sliding_window": values.get("sliding_window"), "mlp": "moe", "experts": chosen}
    )


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`, with the width of an expert as `intermediate_size`."""
    settings = config.experts
    values = write_sizes(config) | {"hidden_act": config.hidden_act or "silu", "sliding_window": config.sliding_window}
    if settings is None:
        return values
    return values | {
        "intermediate_size": settings.moe_intermediate_size,
        "num_local_experts": settings.num_experts,
        "num_experts_per_tok": settings.num_experts_per_tok,
        "router_aux_loss_coef": settings.load_balancing_weight,
    }


BLOCK = (
    LLAMA_BLOCK
    | experts("block_sparse_moe.experts.{expert}.{part}.weight", "w1", "w3", "w2")
    | {"mlp.router": "block_sparse_moe.gate"}
)
FAMILY = Family("mixtral", "MixtralForCausalLM", read, write, LLAMA_TOP, BLOCK)
