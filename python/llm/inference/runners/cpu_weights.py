"""Describes a model for the CPU kernels, or gives the reason why the kernels can't run the model."""

from typing import Any

import torch
from torch import Tensor, nn

from llm.models import DecoderModel, TransformerBlock
from llm.models.layers.attention import Attention
from llm.models.layers.mlp import MLP, SwiGLU
from llm.models.layers.moe import MoE
from llm.models.layers.norm import LayerNorm, OffsetRMSNorm, RMSNorm
from llm.models.layers.packed import PackedEmbedding, PackedLinear
from llm.models.layers.rotary import (
    LearnedPositions,
    PositionEncoding,
    RotaryEmbedding,
    SinusoidalPositions,
    scaled_frequencies,
)
from llm.registry import registry
from llm.settings.model import ModelConfig

DTYPES = (torch.float32, torch.bfloat16)

_COVERED: tuple[type[nn.Module], ...] = (
    Attention,
    RMSNorm,
    OffsetRMSNorm,
    LayerNorm,
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
        "norms inside the residual sum": config.norm_placement == "inside",
        "attention beside the feed-forward": config.parallel_block,
        "a factor on residual sums": config.residual_multiplier != 1,
        "a factor on logits": config.logit_scale != 1,
        "layers without positions": bool(config.unrotated_layers),
        "rotary positions on a part of each head": config.rotary_width != config.head_width,
        "two rotary bases": config.rope_local_base_freq is not None,
        "queries that grow with the position": bool(
            config.rope_scaling and config.rope_scaling.llama_4_scaling_beta is not None
        ),
        "norms of all heads at once": config.qk_norm and config.qk_norm_type == "whole",
        "attention sinks": config.attention_sinks,
    }
    if config.experts is not None:
        found["experts in groups"] = config.experts.n_group > 1
        found["experts scored by sigmoids"] = config.experts.sigmoid_scores
        found["a correction of the experts' scores"] = config.experts.score_correction
        found["experts with biases"] = config.experts.bias
        found["bounded SwiGLU"] = config.experts.swiglu_limit is not None
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
        "rope": _rope(config) if isinstance(model.positions, RotaryEmbedding) else None,
        "layers": [_layer(layer) for layer in model.layers if isinstance(layer, TransformerBlock)],
        "norm": _norm(model.norm),
        "head": _linear(model.lm_head),
        "num_heads": config.num_attention_heads,
        "attention_scale": _attention(model.layers[0]).rule.scale,
        "attention_softcap": config.attn_logit_softcapping,
        "logit_softcap": config.final_logit_softcapping,
        "activation": config.hidden_act or ("gelu" if registry.get("mlp", config.mlp) is MLP else "silu"),
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


def _rope(config: ModelConfig) -> Weights:
    frequencies, factor = scaled_frequencies(config)
    return {"frequencies": frequencies.tolist(), "factor": factor}


def _layer(block: TransformerBlock) -> Weights:
    attention = _attention(block)
    has_post_norms = block.placement == "both"
    return {
        "norm1": _norm(block.norm1),
        "qkv": _linear(attention.qkv_proj),
        "query_norm": _norm(attention.q_norm) if attention.has_norms else None,
        "key_norm": _norm(attention.k_norm) if attention.has_norms else None,
        "out": _linear(attention.o_proj),
        "post_norm1": _norm(block.post_norm1) if has_post_norms else None,
        "norm2": _norm(block.norm2),
        "feed_forward": _feed_forward(block.mlp),
        "post_norm2": _norm(block.post_norm2) if has_post_norms else None,
        "window": attention.rule.window,
    }


def _attention(block: nn.Module) -> Attention:
    attention = block.attention
    assert isinstance(attention, Attention)  # noqa: S101 - `obstacle` has looked
    return attention


def _feed_forward(mlp: Any) -> Weights:
    if isinstance(mlp, MoE):
        return _experts(mlp)
    if isinstance(mlp, SwiGLU):
        return {"gate_up": _linear(mlp.gate_up_proj), "down": _linear(mlp.down_proj)}
    return {"up": _linear(mlp.up_proj), "down": _linear(mlp.down_proj)}


def _experts(moe: MoE) -> Weights:
    settings, shared, gate = moe.settings, moe.shared_expert, moe.shared_expert_gate
    return {
        "router": _linear(moe.router),
        "gate_up": moe.experts.gate_up_proj.detach(),
        "down": moe.experts.down_proj.detach(),
        "num_chosen": settings.num_experts_per_tok,
        "softmax_first": settings.softmax_first,
        "normalized": settings.norm_topk_prob,
        "scale": settings.routed_scaling_factor,
        "shared": None if shared is None else _feed_forward(shared) | {"gate": None if gate is None else _linear(gate)},
    }


def _norm(norm: Any) -> Weights:
    weight: Tensor = norm.weight.detach().float()
    if isinstance(norm, OffsetRMSNorm):
        weight = 1.0 + weight
    bias = norm.bias.detach().float().numpy() if isinstance(norm, LayerNorm) else None
    return {"weight": weight.numpy(), "bias": bias, "eps": norm.eps}


def _linear(linear: Any) -> Weights:
    bias: Tensor | None = linear.bias
    return {"weight": _matrix(linear), "bias": None if bias is None else bias.detach().float().numpy()}


def _matrix(layer: Any) -> Tensor | Weights:
    """Returns the layer's own tensor, or its packed matrix."""
    if isinstance(layer, PackedLinear | PackedEmbedding):
        return layer.matrix.for_kernels()
    weight: Tensor = layer.weight
    return weight.detach()
