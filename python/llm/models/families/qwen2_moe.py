"""Qwen 2 MoE and Qwen 1.5 MoE: Qwen 2 with experts and a shared expert that each token weighs."""

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
    read_windows,
    write_sizes,
    write_windows,
)
from llm.settings.model import ModelConfig


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    windows = read_windows(values)
    chosen = read_experts(values, num_experts=60, per_token=4, width=1408) | {
        "shared_expert_intermediate_size": values.get("shared_expert_intermediate_size", 5632),
        "shared_expert_gate": True,
    }
    bias = {"attention_bias": bool(values.get("qkv_bias", True))}
    return (
        read_sizes(values)
        | {"hidden_act": read_activation(values)}
        | bias
        | windows
        | {"mlp": "moe", "experts": chosen}
    )


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    shared = config.experts.shared_expert_intermediate_size if config.experts else 0
    values = {
        "hidden_act": config.hidden_act or "silu",
        "qkv_bias": config.attention_bias,
        "shared_expert_intermediate_size": shared,
    }
    return write_sizes(config) | values | write_windows(config) | write_experts(config)


def read_experts(values: Mapping[str, Any], *, num_experts: int, per_token: int, width: int) -> Values:
    """Reads the settings that all Qwen models with experts share; the arguments are the defaults."""
    sparse_step, dense = values.get("decoder_sparse_step", 1), set(values.get("mlp_only_layers") or ())
    layers = range(values["num_hidden_layers"])
    return {
        "num_experts": values.get("num_experts") or values.get("num_local_experts") or num_experts,
        "num_experts_per_tok": values.get("num_experts_per_tok", per_token),
        "moe_intermediate_size": values.get("moe_intermediate_size", width),
        "norm_topk_prob": bool(values.get("norm_topk_prob", False)),
        "load_balancing_weight": values.get("router_aux_loss_coef", 0.001),
        "dense_layers": [layer for layer in layers if layer in dense or (layer + 1) % sparse_step],
    }


def write_experts(config: ModelConfig) -> Values:
    """Converts back the settings of `read_experts`."""
    settings = config.experts
    if settings is None:
        return {}
    return {
        "num_experts": settings.num_experts,
        "num_experts_per_tok": settings.num_experts_per_tok,
        "moe_intermediate_size": settings.moe_intermediate_size,
        "norm_topk_prob": settings.norm_topk_prob,
        "router_aux_loss_coef": settings.load_balancing_weight,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(settings.dense_layers),
    }


EXPERT_BLOCK = experts("mlp.experts.{expert}.{part}.weight", "gate_proj", "up_proj", "down_proj")
BLOCK = (
    LLAMA_BLOCK
    | EXPERT_BLOCK
    | {
        "mlp.router": "mlp.gate",
        "mlp.shared_expert.gate_up_proj": ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
        "mlp.shared_expert.down_proj": "mlp.shared_expert.down_proj",
        "mlp.shared_expert_gate": "mlp.shared_expert_gate",
    }
)
FAMILY = Family("qwen2_moe", "Qwen2MoeForCausalLM", read, write, LLAMA_TOP, BLOCK)
