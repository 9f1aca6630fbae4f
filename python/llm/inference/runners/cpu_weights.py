"""Describes a model for the CPU kernels, or gives the reason why the kernels can't run the model."""

from typing import Any

import torch
from torch import Tensor, nn

from llm.models import DecoderModel, TransformerBlock
from llm.models.layers.attention import Attention
from llm.models.layers.mlp import MLP, SwiGLU
from llm.models.layers.moe import Experts, MoE
from llm.models.layers.norm import LayerNorm, LayerNormNoBias, OffsetRMSNorm, RMSNorm
from llm.models.layers.packed import PackedEmbedding, PackedExperts, PackedLinear
from llm.models.layers.rotary import (
    LearnedPositions,
    PositionEncoding,
    RotaryEmbedding,
    SinusoidalPositions,
)
from llm.registry import registry
from llm.settings.model import ExpertsConfig, ModelConfig

DTYPES = (torch.float32, torch.bfloat16)

_COVERED: tuple[type[nn.Module], ...] = (
    Attention,
    RMSNorm,
    OffsetRMSNorm,
    LayerNorm,
    LayerNormNoBias,
    SwiGLU,
    MLP,
    MoE,
    RotaryEmbedding,
    LearnedPositions,
    SinusoidalPositions,
    PositionEncoding,
)


# The fields of a type in the crate's `kernels::spec` by name; Rust reads and checks them.
Weights = dict[str, Any]


def obstacle(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> str | None:
    """Returns a short reason why the kernels can't run a model, or None if they can."""
    components = {
        "attention": config.attention,
        "norm": config.norm,
        "mlp": config.mlp,
        "position_encoding": config.position_encoding,
    }
    if device.type != "cpu":
        return f"weights on {device.type}"
    if dtype not in DTYPES:
        return f"weights of {str(dtype).removeprefix('torch.')}"
    for kind, name in components.items():
        if registry.get(kind, name) not in _COVERED:
            return f"{kind} {name!r}"
    if config.hidden_act == "relu":
        return "activation 'relu'"
    return _unbuilt(config)


def _unbuilt(config: ModelConfig) -> str | None:
    found = {
        "norms after the residual sum": config.norm_placement == "post",
        "experts beside attention": config.parallel_block and config.mlp == "moe",
    }
    return next((reason for reason, applies in found.items() if applies), None)


def kernel_weights(model: DecoderModel) -> Weights:
    """Describes a model for `llm._rust.CpuModel`: large weights stay the module's own tensors, the rest is copied.

    `obstacle` must have returned None for the model.
    """
    config = model.config
    dtype = model.dtype
    scale = torch.tensor(config.hidden_size**0.5 if config.scale_embeddings else 1.0, dtype=dtype).item()
    scale *= config.embedding_multiplier
    return {
        "embedding": _matrix(model.embed_tokens),
        "embedding_scale": scale,
        "positions": _positions(model, dtype),
        "ropes": _ropes(model),
        "layers": [_layer(layer, model) for layer in model.layers if isinstance(layer, TransformerBlock)],
        "norm": _norm(model.norm, config.logit_scale),
        "head": _linear(model.lm_head),
        "num_heads": config.num_attention_heads,
        "attention_scale": _attention(model.layers[0]).rule.scale,
        "query_growth": _query_growth(config),
        "residual_scale": config.residual_multiplier,
        "attention_softcap": config.attn_logit_softcapping,
        "logit_softcap": config.final_logit_softcapping,
        "activation": _activation(config),
    }


def _positions(model: DecoderModel, dtype: torch.dtype) -> Tensor | None:
    """Returns the vectors of all positions, rounded as the model itself rounds them."""
    positions = model.positions
    if isinstance(positions, LearnedPositions):
        return positions.weight.detach()
    if isinstance(positions, SinusoidalPositions):
        vectors = positions.embed(torch.arange(model.config.max_position_embeddings))
        return vectors.to(dtype).contiguous()
    return None


def _activation(config: ModelConfig) -> str:
    return config.hidden_act or ("gelu" if registry.get("mlp", config.mlp) is MLP else "silu")


def _ropes(model: DecoderModel) -> list[Weights]:
    """Returns the rotary encoding of most layers, then that of layers with a window if it is another."""
    found = [positions for positions in (model.positions, model.local_positions) if positions is not None]
    return [
        {"frequencies": rope.frequencies.tolist(), "factor": rope.factor}
        for rope in found
        if isinstance(rope, RotaryEmbedding)
    ]


def _rope_of(layer: int, model: DecoderModel) -> int | None:
    """Returns the place in `_ropes` of a layer's rotary encoding."""
    config = model.config
    if not isinstance(model.positions, RotaryEmbedding) or layer in config.unrotated_layers:
        return None
    return int(model.local_positions is not None and config.window_of(layer) is not None)


def _query_growth(config: ModelConfig) -> Weights | None:
    scaling = config.rope_scaling
    if scaling is None or scaling.llama_4_scaling_beta is None:
        return None
    return {"rate": scaling.llama_4_scaling_beta, "context": scaling.original_max_position_embeddings or 1}


def _layer(block: TransformerBlock, model: DecoderModel) -> Weights:
    attention = _attention(block)
    before, after = _norms_of(block)
    return {
        "norm1": before[0],
        "qkv": _linear(attention.qkv_proj),
        "query_norm": _norm(attention.q_norm) if attention.has_norms else None,
        "key_norm": _norm(attention.k_norm) if attention.has_norms else None,
        "rope": _rope_of(attention.layer_idx, model),
        "sinks": attention.sinks.detach().float().numpy() if attention.has_sinks else None,
        "out": _linear(attention.o_proj),
        "post_norm1": after[0],
        "norm2": before[1],
        "is_parallel": block.is_parallel,
        "feed_forward": _feed_forward(block.mlp, model.config),
        "post_norm2": after[1],
        "window": attention.rule.window,
    }


def _norms_of(block: TransformerBlock) -> tuple[list[Weights | None], list[Weights | None]]:
    """Returns the norms before attention and feed-forward, then those of their outputs."""
    if block.is_parallel:  # both read the same norm
        return [_norm(block.norm1), _norm(block.norm1)], [None, None]
    first: list[Weights | None] = [_norm(block.norm1), _norm(block.norm2)]
    if block.placement == "inside":
        return [None, None], first
    return first, [_norm(block.post_norm1), _norm(block.post_norm2)] if block.placement == "both" else [None, None]


def _attention(block: nn.Module) -> Attention:
    attention = block.attention
    assert isinstance(attention, Attention)  # noqa: S101 - `obstacle` has looked
    return attention


def _feed_forward(mlp: Any, config: ModelConfig) -> Weights:
    if isinstance(mlp, MoE):
        return _experts(mlp, config)
    if isinstance(mlp, SwiGLU):
        return {"gate_up": _linear(mlp.gate_up_proj), "down": _linear(mlp.down_proj)}
    return {"up": _linear(mlp.up_proj), "down": _linear(mlp.down_proj)}


def _experts(moe: MoE, config: ModelConfig) -> Weights:
    settings, experts = moe.settings, moe.experts
    has_biases, is_corrected = experts.has_biases, settings.score_correction
    return {
        "router": _linear(moe.router),
        "gate_up": _stack(experts, "gate_up_proj"),
        "down": _stack(experts, "down_proj"),
        "gate_up_biases": list(experts.gate_up_bias.detach().float().numpy()) if has_biases else None,
        "down_biases": list(experts.down_bias.detach().float().numpy()) if has_biases else None,
        "activation": _activation(config) if experts.limit is None else experts.limit,
        "num_chosen": settings.num_experts_per_tok,
        "scoring": _scoring(settings),
        "correction": moe.score_correction.detach().float().numpy() if is_corrected else None,
        "num_groups": settings.n_group,
        "num_chosen_groups": settings.topk_group,
        "normalized": settings.norm_topk_prob,
        "scale": settings.routed_scaling_factor,
        "shared": _shared_expert(moe, config),
    }


def _stack(experts: Experts, name: str) -> Tensor | list[Weights]:
    """Returns the stacked matrices of experts, or each expert's packed matrix."""
    if isinstance(experts, PackedExperts):
        return [matrix.for_kernels() for matrix in experts.stacks[name]]
    stacked: Tensor = getattr(experts, name)
    return stacked.detach()


def _scoring(settings: ExpertsConfig) -> str:
    if settings.sigmoid_scores:
        return "sigmoid"
    return "softmax_of_all" if settings.softmax_first else "softmax_of_chosen"


def _shared_expert(moe: MoE, config: ModelConfig) -> Weights | None:
    if moe.shared_expert is None:
        return None
    gate = None if moe.shared_expert_gate is None else _linear(moe.shared_expert_gate)
    return _feed_forward(moe.shared_expert, config) | {"gate": gate}


def _norm(norm: Any, scale: float = 1.0) -> Weights:
    """Describes a norm whose output is multiplied by `scale`; a layer norm without bias gets one of zeros."""
    weight: Tensor = norm.weight.detach().float()
    if isinstance(norm, OffsetRMSNorm):
        weight = 1.0 + weight
    bias = None
    if isinstance(norm, LayerNormNoBias):
        bias = torch.zeros_like(weight)
    elif isinstance(norm, LayerNorm):
        bias = norm.bias.detach().float() * scale
    return {"weight": (weight * scale).numpy(), "bias": None if bias is None else bias.numpy(), "eps": norm.eps}


def _linear(linear: Any) -> Weights:
    bias: Tensor | None = linear.bias
    return {"weight": _matrix(linear), "bias": None if bias is None else bias.detach().float().numpy()}


def _matrix(layer: Any) -> Tensor | Weights:
    """Returns the layer's own tensor, or its packed matrix."""
    if isinstance(layer, PackedLinear | PackedEmbedding):
        return layer.matrix.for_kernels()
    weight: Tensor = layer.weight
    return weight.detach()
