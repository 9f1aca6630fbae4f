"""DeepSeek-V2: latent attention, routed and shared experts, dense first layers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llm.errors import CheckpointError
from llm.models.families.base import (
    LLAMA_BLOCK,
    LLAMA_TOP,
    BlockCut,
    Family,
    Piece,
    Values,
    experts,
    read_activation,
    read_sizes,
    require,
    write_sizes,
)
from llm.models.families.cuts import halves
from llm.models.layers.attention import latent_of
from llm.settings.model import ModelConfig

_LATENT = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    require(
        values,
        {"topk_method": ("greedy", "group_limited_greedy"), "moe_layer_freq": (1,)},
    )
    require(values, {"norm_topk_prob": (False,), "scoring_func": ("softmax",)})
    bias = bool(values.get("attention_bias", False))
    fields = {
        "head_dim": None,
        "num_key_value_heads": values["num_attention_heads"],
        "attention": "mla",
        "attention_bias": bias,
        "attention_output_bias": bias,
        "mlp_bias": bool(values.get("mlp_bias", False)),
        "latent": {key: values[key] for key in _LATENT if values.get(key) is not None},
    }
    return read_sizes(values) | {"hidden_act": read_activation(values)} | fields | _read_experts(values)


def _read_experts(values: Mapping[str, Any]) -> Values:
    if values.get("n_routed_experts") is None:
        return {}
    width, layers = values["moe_intermediate_size"], values["num_hidden_layers"]
    dense = values.get("first_k_dense_replace", 0)
    if 0 < layers < dense:
        raise CheckpointError(
            f"`first_k_dense_replace` must be at most `num_hidden_layers`, {layers}, in config.json, got {dense}"
        )
    grouped = values.get("topk_method") == "group_limited_greedy"
    return {
        "mlp": "moe",
        "experts": {
            "num_experts": values["n_routed_experts"],
            "num_experts_per_tok": values["num_experts_per_tok"],
            "moe_intermediate_size": width,
            "shared_expert_intermediate_size": width * (values.get("n_shared_experts") or 0),
            "n_group": values.get("n_group") or 1 if grouped else 1,
            "topk_group": values.get("topk_group") or 1 if grouped else 1,
            "norm_topk_prob": False,
            "routed_scaling_factor": values.get("routed_scaling_factor", 1.0),
            "dense_layers": list(range(dense)),
            "load_balancing_weight": values.get("aux_loss_alpha", 0.001),
        },
    }


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    if config.latent is None or config.experts is None:
        return {}
    settings = config.experts
    values = {key: value for key, value in write_sizes(config).items() if key != "head_dim"}
    values |= {key: getattr(config.latent, key) for key in _LATENT}
    return values | {
        # `transformers` reads the width of the rotated part from `head_dim`.
        "head_dim": config.latent.qk_rope_head_dim,
        "hidden_act": config.hidden_act or "silu",
        "attention_bias": config.attention_bias,
        "mlp_bias": bool(config.mlp_bias),
        "n_routed_experts": settings.num_experts,
        "num_experts_per_tok": settings.num_experts_per_tok,
        "moe_intermediate_size": settings.moe_intermediate_size,
        "n_shared_experts": settings.shared_expert_intermediate_size // settings.moe_intermediate_size,
        "routed_scaling_factor": settings.routed_scaling_factor,
        "first_k_dense_replace": len(settings.dense_layers),
        "aux_loss_alpha": settings.load_balancing_weight,
        "norm_topk_prob": False,
        "topk_method": "greedy" if settings.n_group == 1 else "group_limited_greedy",
        "n_group": settings.n_group,
        "topk_group": settings.topk_group,
    }


def _query(name: str) -> BlockCut:
    """Cuts heads that have a part without position and a rotated part; pairs are neighbours on disk."""

    def cut(ours: Tensor, config: ModelConfig) -> list[Piece]:
        widths = latent_of(config)
        plain, rotated = widths.qk_nope_head_dim, widths.qk_rope_head_dim
        head = torch.cat((torch.arange(plain), plain + halves(rotated)))
        starts = torch.arange(config.num_attention_heads) * len(head)
        return [Piece(name, ours, (starts[:, None] + head).flatten())]

    return BlockCut(cut)


def _latent(leaf: str) -> BlockCut:
    """Cuts the projection to the compressed vector and the rotated key."""

    def cut(ours: Tensor, config: ModelConfig) -> list[Piece]:
        widths = latent_of(config)
        rank, rotated = widths.kv_lora_rank, widths.qk_rope_head_dim
        order = torch.cat((torch.arange(rank), rank + halves(rotated)))
        return [Piece(f"self_attn.kv_a_proj_with_mqa.{leaf}", ours, order)]

    return BlockCut(cut)


BLOCK = (
    LLAMA_BLOCK
    | experts("mlp.experts.{expert}.{part}.weight", "gate_proj", "up_proj", "down_proj")
    | {
        "attention.q_proj.weight": _query("self_attn.q_proj.weight"),
        "attention.q_b_proj.weight": _query("self_attn.q_b_proj.weight"),
        "attention.q_a_proj": "self_attn.q_a_proj",
        "attention.q_a_norm": "self_attn.q_a_layernorm",
        "attention.kv_a_proj.weight": _latent("weight"),
        "attention.kv_a_proj.bias": _latent("bias"),
        "attention.kv_a_norm": "self_attn.kv_a_layernorm",
        "attention.kv_b_proj": "self_attn.kv_b_proj",
        "mlp.router": "mlp.gate",
        "mlp.shared_expert.gate_up_proj": ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
        "mlp.shared_expert.down_proj": "mlp.shared_experts.down_proj",
    }
)
FAMILY = Family("deepseek_v2", "DeepseekV2ForCausalLM", read, write, LLAMA_TOP, BLOCK)
