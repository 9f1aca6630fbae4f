"""A model as the CPU kernels take it, or the reason why they can't."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llm.models import DecoderModel, TransformerBlock
from llm.models.layers.attention import Attention
from llm.models.layers.mlp import MLP, SwiGLU
from llm.models.layers.moe import MoE
from llm.models.layers.norm import LayerNorm, OffsetRMSNorm, RMSNorm
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


@dataclass(frozen=True)
class NormWeights:
    """A norm: fp32 scale `[C]`, fp32 shift of a layer norm, and what is added under the root."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    eps: float


@dataclass(frozen=True)
class LinearWeights:
    """A linear layer: the module's own weight `[outputs, inputs]`, and its bias as fp32."""

    weight: Tensor
    bias: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class ExpertWeights:
    """A mixture of experts; see `llm.models.layers.moe.MoE`."""

    router: LinearWeights
    gate_up: Tensor
    down: Tensor
    num_chosen: int
    softmax_first: bool
    normalized: bool
    scale: float
    shared_up: LinearWeights | None
    shared_down: LinearWeights | None
    shared_gate: LinearWeights | None


@dataclass(frozen=True)
class LayerWeights:
    """A block; without `experts` the feed-forward is `up` and `down`."""

    norm1: NormWeights
    norm2: NormWeights
    post_norm1: NormWeights | None
    post_norm2: NormWeights | None
    query_norm: NormWeights | None
    key_norm: NormWeights | None
    qkv: LinearWeights
    out: LinearWeights
    window: int | None
    up: LinearWeights | None
    down: LinearWeights | None
    is_gated: bool
    experts: ExpertWeights | None


@dataclass(frozen=True)
class ModelWeights:
    """A whole model: weights stay the module's own tensors, the rest is copied."""

    embedding: Tensor
    embedding_scale: float
    positions: Tensor | None
    rope_frequencies: list[float] | None
    rope_factor: float
    layers: list[LayerWeights]
    norm: NormWeights
    head: LinearWeights
    num_heads: int
    attention_scale: float
    attention_softcap: float | None
    logit_softcap: float | None
    activation: str


def obstacle(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the kernels can't run a model, in a few words; `None`: they can."""
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
    return "norms after the residual sum" if config.norm_placement == "post" else None


def kernel_weights(model: DecoderModel) -> ModelWeights:
    """The model's weights for `llm._rust.Decoder`; `obstacle` must have found none."""
    config = model.config
    dtype = model.embed_tokens.weight.dtype
    rope: tuple[list[float] | None, float] = (None, 1.0)
    if isinstance(model.positions, RotaryEmbedding):
        frequencies, factor = scaled_frequencies(config)
        rope = frequencies.tolist(), factor
    scale = torch.tensor(config.hidden_size**0.5 if config.scale_embeddings else 1.0, dtype=dtype).item()
    layers = [_layer(layer) for layer in model.layers if isinstance(layer, TransformerBlock)]
    return ModelWeights(
        embedding=model.embed_tokens.weight.detach(),
        embedding_scale=scale,
        positions=_positions(model, dtype),
        rope_frequencies=rope[0],
        rope_factor=rope[1],
        layers=layers,
        norm=_norm(model.norm),
        head=_linear(model.lm_head),
        num_heads=config.num_attention_heads,
        attention_scale=_attention(model.layers[0]).rule.scale,
        attention_softcap=config.attn_logit_softcapping,
        logit_softcap=config.final_logit_softcapping,
        activation=config.hidden_act or ("gelu" if registry.get("mlp", config.mlp) is MLP else "silu"),
    )


def _positions(model: DecoderModel, dtype: torch.dtype) -> Tensor | None:
    """The vectors of all positions, rounded as the model itself rounds them."""
    positions = model.positions
    if isinstance(positions, LearnedPositions):
        return positions.weight.detach()
    if isinstance(positions, SinusoidalPositions):
        vectors = positions.embed(torch.arange(model.config.max_position_embeddings))
        return vectors.to(dtype).contiguous()
    return None


def _layer(block: TransformerBlock) -> LayerWeights:
    attention, mlp = _attention(block), block.mlp
    both = block.placement == "both"
    up: Any = mlp.gate_up_proj if isinstance(mlp, SwiGLU) else getattr(mlp, "up_proj", None)
    return LayerWeights(
        norm1=_norm(block.norm1),
        norm2=_norm(block.norm2),
        post_norm1=_norm(block.post_norm1) if both else None,
        post_norm2=_norm(block.post_norm2) if both else None,
        query_norm=_norm(attention.q_norm) if attention.has_norms else None,
        key_norm=_norm(attention.k_norm) if attention.has_norms else None,
        qkv=_linear(attention.qkv_proj),
        out=_linear(attention.o_proj),
        window=attention.rule.window,
        up=None if up is None else _linear(up),
        down=None if up is None else _linear(mlp.down_proj),
        is_gated=isinstance(mlp, SwiGLU),
        experts=_experts(mlp) if isinstance(mlp, MoE) else None,
    )


def _attention(block: nn.Module) -> Attention:
    attention = block.attention
    assert isinstance(attention, Attention)  # noqa: S101 - `obstacle` has looked
    return attention


def _experts(moe: MoE) -> ExpertWeights:
    settings, shared = moe.settings, moe.shared_expert
    return ExpertWeights(
        router=_linear(moe.router),
        gate_up=moe.experts.gate_up_proj.detach(),
        down=moe.experts.down_proj.detach(),
        num_chosen=settings.num_experts_per_tok,
        softmax_first=settings.softmax_first,
        normalized=settings.norm_topk_prob,
        scale=settings.routed_scaling_factor,
        shared_up=None if shared is None else _linear(shared.gate_up_proj),
        shared_down=None if shared is None else _linear(shared.down_proj),
        shared_gate=None if moe.shared_expert_gate is None else _linear(moe.shared_expert_gate),
    )


def _norm(norm: Any) -> NormWeights:
    weight: Tensor = norm.weight.detach().float()
    if isinstance(norm, OffsetRMSNorm):
        weight = 1.0 + weight
    bias = norm.bias.detach().float().numpy() if isinstance(norm, LayerNorm) else None
    return NormWeights(weight.numpy(), bias, norm.eps)


def _linear(linear: nn.Linear) -> LinearWeights:
    bias: Tensor | None = linear.bias
    return LinearWeights(linear.weight.detach(), None if bias is None else bias.detach().float().numpy())
