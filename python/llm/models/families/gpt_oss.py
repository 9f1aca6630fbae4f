"""gpt-oss: experts with biases and bounded SwiGLU, attention sinks, a sliding window in every other layer."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from llm.models.families.base import (
    LLAMA_BLOCK,
    LLAMA_TOP,
    BlockCut,
    Family,
    Piece,
    Values,
    read_sizes,
    require,
    write_sizes,
)
from llm.models.families.cuts import layer_types_of, usual, written_types
from llm.models.layers.moe import CLAMPED_GAIN
from llm.settings.model import ModelConfig

_SCALING = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}
_DEFAULTS = {
    "head_dim": 64,
    "num_key_value_heads": 8,
    "rope_theta": 150_000.0,
    "sliding_window": 128,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "swiglu_limit": 7.0,
    "router_aux_loss_coef": 0.001,
}


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    values = usual(values, _DEFAULTS)
    require(values, {"hidden_act": ("silu",), "swiglu_alpha": (CLAMPED_GAIN,)})
    if not values.get("rope_parameters") and not values.get("rope_scaling"):
        values["rope_parameters"] = _SCALING
    bias = bool(values.get("attention_bias", True))
    return read_sizes(values) | {
        "hidden_act": "silu",
        "attention_bias": bias,
        "attention_output_bias": bias,
        "attention_sinks": True,
        "sliding_window": values["sliding_window"],
        "layer_types": layer_types_of(values, 2),
        "mlp": "moe",
        "experts": {
            "num_experts": values.get("num_experts") or values["num_local_experts"],
            "num_experts_per_tok": values.get("experts_per_token") or values["num_experts_per_tok"],
            "moe_intermediate_size": values["intermediate_size"],
            "softmax_first": False,
            "bias": True,
            "swiglu_limit": values["swiglu_limit"],
            "load_balancing_weight": values["router_aux_loss_coef"],
        },
    }


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`, always with rotary settings: missing ones mean `yarn`."""
    values, settings = write_sizes(config), config.experts
    if settings is None:
        return values
    rope = values.get("rope_parameters") or {"rope_type": "default", "rope_theta": config.rope_theta}
    return values | {
        "rope_parameters": rope,
        "hidden_act": "silu",
        "attention_bias": config.attention_bias,
        "intermediate_size": settings.moe_intermediate_size,
        "num_local_experts": settings.num_experts,
        "num_experts_per_tok": settings.num_experts_per_tok,
        "swiglu_limit": settings.swiglu_limit,
        "router_aux_loss_coef": settings.load_balancing_weight,
        "sliding_window": config.sliding_window,
        "layer_types": written_types(config),
    }


def _pairs(ours: Tensor) -> Tensor:
    """Returns gate and up, which take turns on disk, as pairs: `[E, 2, I, ...]` as `[E, ..., I, 2]`."""
    split = ours.view(len(ours), 2, -1, *ours.shape[2:])
    return split.permute(0, 3, 2, 1) if ours.dim() == 3 else split.transpose(1, 2)


def _experts(leaf: str) -> BlockCut:
    if leaf.startswith("gate_up"):
        return BlockCut(lambda ours, config: [Piece(f"mlp.experts.{leaf}", _pairs(ours), is_folded=True)])
    turned = leaf == "down_proj"
    return BlockCut(lambda ours, config: [Piece(f"mlp.experts.{leaf}", ours.transpose(1, 2) if turned else ours)])


BLOCK = LLAMA_BLOCK | {
    "attention.sinks": BlockCut(lambda ours, config: [Piece("self_attn.sinks", ours)]),
    "mlp.router": "mlp.router",
    "mlp.experts.gate_up_proj": _experts("gate_up_proj"),
    "mlp.experts.gate_up_bias": _experts("gate_up_proj_bias"),
    "mlp.experts.down_proj": _experts("down_proj"),
    "mlp.experts.down_bias": _experts("down_proj_bias"),
}
FAMILY = Family("gpt_oss", "GptOssForCausalLM", read, write, LLAMA_TOP, BLOCK)
