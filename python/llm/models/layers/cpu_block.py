"""Runs a block in training on a CPU as two operations, where its layers are those that `cpu_halves` knows."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.models.context import ForwardContext
from llm.models.layers import cpu_training
from llm.models.layers.attention import Attention
from llm.models.layers.cpu_attention import AttentionShape, KernelAttention, TorchAttention, kernel_suits
from llm.models.layers.cpu_halves import AttentionHalf, AttentionRules, FeedForwardHalf, FeedForwardRules, NormRule
from llm.models.layers.cpu_low_rank import LowRankPart
from llm.models.layers.cpu_training import Linear
from llm.models.layers.lora import AdaptedLinear
from llm.models.layers.mlp import ACTIVATIONS, MLP, SwiGLU
from llm.models.layers.norm import LayerNorm, LayerNormNoBias, RMSNorm
from llm.models.layers.packed import PackedLinear, PackedMatrix
from llm.models.layers.rotary import Rotation

_NORMS = (RMSNorm, LayerNorm, LayerNormNoBias)
_ACTIVATIONS = {
    (SwiGLU, F.silu): "silu",
    (MLP, ACTIVATIONS["gelu"]): "gelu",
    (MLP, ACTIVATIONS["gelu_pytorch_tanh"]): "gelu_tanh",
}


def train_block(block: Any, states: Tensor, rotation: Rotation | None, context: ForwardContext) -> Tensor | None:
    """Returns the residual stream after a pre-norm block without dropout, or None if its layers must run themselves.

    Args:
        block: A `TransformerBlock`; its own file imports this one.
        states: Residual stream `[T, C]`.
        rotation: See `PositionEncoding.rotation`.
        context: Boundaries of the sequences.
    """
    if torch._C._len_torch_dispatch_stack():  # somebody counts operations
        return None
    if not block.training or states.dtype != torch.float32 or not cpu_training.is_training_on_cpu(states):
        return None
    attention, mlp = block.attention, block.mlp
    if not _is_known(attention, mlp, block.norm1, block.norm2) or not _attends_plainly(attention, context):
        return None
    if (rotation is not None and not attention.rotates_whole) or context.query_scale is not None:
        return None
    inputs = (attention.qkv_proj, attention.o_proj, *_projections(mlp))
    if any(not _is_bare(layer) for layer in inputs) or any(map(_is_watched, (*inputs, *block.children()))):
        return None
    return _run(block, states, rotation, context)


def _is_known(attention: Any, mlp: Any, *norms: Any) -> bool:
    is_known: bool = type(attention) is Attention and (type(mlp), getattr(mlp, "activation", None)) in _ACTIVATIONS
    return is_known and all(type(norm) in _NORMS for norm in norms)


def _attends_plainly(attention: Attention, context: ForwardContext) -> bool:
    """Returns whether each token attends to all earlier tokens of its sequence.

    Sequences must be equally long for PyTorch's kernel; this package's kernel takes any lengths.
    """
    rule, lengths = attention.rule, context.query_lens
    is_plain = rule.window is None and rule.softcap is None and not rule.dropout and not attention.has_norms
    is_plain = is_plain and not attention.has_sinks
    is_usual = context.cache is None and context.attention_backend in ("auto", "sdpa")
    is_equal = lengths[0] > 1 and lengths.count(lengths[0]) == len(lengths)
    return is_plain and is_usual and (is_equal or kernel_suits(attention.head_dim, _dtype()))


def _dtype() -> torch.dtype:
    """Returns the number type of products."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


def _projections(mlp: Any) -> tuple[Any, Any]:
    return (mlp.gate_up_proj if type(mlp) is SwiGLU else mlp.up_proj), mlp.down_proj


def _is_bare(layer: Any) -> bool:
    """Returns whether a layer is a product with a matrix and at most a sum with adapters.

    The matrix is packed, in fp32, or in the type of products.
    """
    if isinstance(layer, AdaptedLinear):
        is_linear = layer.norms is None and not layer.dropout.p and not layer.has_bias
    else:
        is_linear = type(layer) in (Linear, PackedLinear) and layer.bias is None
    packed = _packed(layer)
    # The kernels of training read weights in the order of inputs.
    suits = layer.weight.dtype in (torch.float32, _dtype()) if packed is None else packed.order is None
    return bool(is_linear and suits)


def _packed(layer: Any) -> PackedMatrix | None:
    """Returns a layer's packed matrix, if it is packed."""
    return layer.matrix if isinstance(layer, AdaptedLinear | PackedLinear) else None


def _weight(layer: Any) -> Tensor | None:
    """Returns a layer's weights unless they are packed."""
    return None if _packed(layer) is not None else layer.weight


def _adapters(layer: Any) -> tuple[tuple[LowRankPart, ...], list[Tensor]]:
    """Returns a layer's adapters and their factors."""
    is_on = isinstance(layer, AdaptedLinear) and not layer.is_off
    parts = [part for _, part in layer.parts()] if is_on else []
    factors: list[Tensor] = [factor for part in parts for factor in (part.lora_a, part.lora_b)]
    return tuple(LowRankPart(part.rows, part.scale) for part in parts), factors


def _is_watched(layer: nn.Module) -> bool:
    """Returns whether somebody wants to see what goes through a layer."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _run(block: Any, states: Tensor, rotation: Rotation | None, context: ForwardContext) -> Tensor:
    attention, mlp = block.attention, block.mlp
    dtype = _dtype()
    narrow = (context.targets and context.targets.gradient_dtype) or dtype
    norm1, norm2 = (NormRule(norm.eps, type(norm) is RMSNorm) for norm in (block.norm1, block.norm2))
    counts = (attention.num_heads, attention.num_kv_heads)
    shape = AttentionShape(context.query_lens, counts, attention.rule.scale, rotation)
    suits = kernel_suits(attention.head_dim, dtype)
    kind = KernelAttention(shape, attention.head_dim) if suits else TorchAttention(shape)
    (first, own), (last, others) = _adapters(attention.qkv_proj), _adapters(attention.o_proj)
    packed = (_packed(attention.qkv_proj), _packed(attention.o_proj))
    rules = AttentionRules(norm1, dtype, narrow, kind, (first, last), packed)
    weights = (_weight(attention.qkv_proj), _weight(attention.o_proj), *own, *others)
    bias = getattr(block.norm1, "bias", None)
    states = AttentionHalf.apply(rules, states, block.norm1.weight, bias, *weights)  # type: ignore[no-untyped-call]
    (first, own), (last, others) = map(_adapters, _projections(mlp))
    inputs, outputs = _projections(mlp)
    packed = (_packed(inputs), _packed(outputs))
    feed = FeedForwardRules(norm2, dtype, narrow, _ACTIVATIONS[type(mlp), mlp.activation], (first, last), packed)
    bias = getattr(block.norm2, "bias", None)
    weights = (_weight(inputs), _weight(outputs), *own, *others)
    found: Tensor = FeedForwardHalf.apply(feed, states, block.norm2.weight, bias, *weights)  # type: ignore[no-untyped-call]
    return found
