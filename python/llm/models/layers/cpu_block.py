"""Runs a block in training on a CPU as two operations, where its layers are those that `cpu_halves` knows."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.models.context import ForwardContext
from llm.models.layers import cpu_training
from llm.models.layers.attention import Attention
from llm.models.layers.cpu_attention import AttentionShape, KernelAttention, TorchAttention, kernel_suits
from llm.models.layers.cpu_halves import AttentionHalf, AttentionRules, FeedForwardHalf, FeedForwardRules
from llm.models.layers.cpu_low_rank import LowRankPart
from llm.models.layers.cpu_norm import NormRule
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
    layers, dtype = _Layers.of(block), _dtype()
    if layers is None or not _attends_plainly(layers.attention, context, dtype):
        return None
    if (rotation is not None and not layers.attention.rotates_whole) or context.query_scale is not None:
        return None
    products = layers.products
    if not all(_is_bare(layer, dtype) for layer in products) or any(map(_is_watched, (*block.children(), *products))):
        return None
    return _run(layers, dtype, states, rotation, context)


class _Layers(NamedTuple):
    """Layers of a block. A module's own dictionary finds them in a tenth of the time that its attributes take."""

    attention: Attention
    mlp: Any
    norm1: Any
    norm2: Any

    @classmethod
    def of(cls, block: Any) -> "_Layers | None":
        """Returns a block's layers if the halves know them."""
        found = block._modules
        layers = cls(found["attention"], found["mlp"], found["norm1"], found["norm2"])
        is_known = type(layers.attention) is Attention and type(layers.norm1) in _NORMS and type(layers.norm2) in _NORMS
        is_known = is_known and (type(layers.mlp), getattr(layers.mlp, "activation", None)) in _ACTIVATIONS
        return layers if is_known else None

    @property
    def products(self) -> tuple[Any, Any, Any, Any]:
        """The layers that multiply: `qkv_proj`, `o_proj`, `up_proj` or `gate_up_proj`, and `down_proj`."""
        own, others = self.attention._modules, self.mlp._modules
        up = others["gate_up_proj" if type(self.mlp) is SwiGLU else "up_proj"]
        return own["qkv_proj"], own["o_proj"], up, others["down_proj"]


def _attends_plainly(attention: Attention, context: ForwardContext, dtype: torch.dtype) -> bool:
    """Returns whether each token attends to all earlier tokens of its sequence.

    Sequences must be equally long for PyTorch's kernel; this package's kernel takes any lengths.
    """
    rule, lengths = attention.rule, context.query_lens
    is_plain = rule.window is None and rule.softcap is None and not rule.dropout and not attention.has_norms
    is_plain = is_plain and not attention.has_sinks
    is_usual = context.cache is None and context.attention_backend in ("auto", "sdpa")
    is_equal = lengths[0] > 1 and lengths.count(lengths[0]) == len(lengths)
    return is_plain and is_usual and (is_equal or kernel_suits(attention.head_dim, dtype))


def _dtype() -> torch.dtype:
    """Returns the number type of products."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


def _is_bare(layer: Any, dtype: torch.dtype) -> bool:
    """Returns whether a layer is a product with a matrix and at most a sum with adapters.

    The matrix is packed, in fp32, or in `dtype`, that of products.
    """
    if type(layer) is Linear:
        return not layer.has_bias and layer.weight.dtype in (torch.float32, dtype)
    if isinstance(layer, AdaptedLinear):
        is_linear = layer.norms is None and not layer.dropout.p and not layer.has_bias
    else:
        is_linear = type(layer) is PackedLinear and layer.bias is None
    packed = _packed(layer)
    # The kernels of training read weights in the order of inputs.
    suits = layer.weight.dtype in (torch.float32, dtype) if packed is None else packed.order is None
    return bool(is_linear and suits)


def _packed(layer: Any) -> PackedMatrix | None:
    """Returns a layer's packed matrix, if it is packed."""
    return layer.matrix if isinstance(layer, AdaptedLinear | PackedLinear) else None


class _Product(NamedTuple):
    """What a product takes: weights, unless they are packed, and adapters with their factors."""

    weight: Tensor | None
    packed: PackedMatrix | None = None
    adapters: tuple[LowRankPart, ...] = ()
    factors: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, layer: Any) -> "_Product":
        """Returns what a layer's product takes."""
        if type(layer) is Linear:
            return cls(layer.weight)
        is_on = isinstance(layer, AdaptedLinear) and not layer.is_off
        parts = [part for _, part in layer.parts()] if is_on else []
        factors = tuple(factor for part in parts for factor in (part.lora_a, part.lora_b))
        packed = _packed(layer)
        adapters = tuple(LowRankPart(part.rows, part.scale) for part in parts)
        return cls(layer.weight if packed is None else None, packed, adapters, factors)


def _is_watched(layer: nn.Module) -> bool:
    """Returns whether somebody wants to see what goes through a layer."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _run(
    layers: _Layers, dtype: torch.dtype, states: Tensor, rotation: Rotation | None, context: ForwardContext
) -> Tensor:
    attention, mlp, norm1, norm2 = layers
    narrow = (context.targets and context.targets.gradient_dtype) or dtype
    shape = AttentionShape(
        context.query_lens, (attention.num_heads, attention.num_kv_heads), attention.rule.scale, rotation
    )
    suits = kernel_suits(attention.head_dim, dtype)
    kind = KernelAttention(shape, attention.head_dim) if suits else TorchAttention(shape)
    qkv, out, up, down = map(_Product.of, layers.products)
    rule, weight, bias = _norm(norm1, dtype, narrow)
    rules = AttentionRules(rule, dtype, narrow, kind, (qkv.adapters, out.adapters), (qkv.packed, out.packed))
    weights = (weight, bias, qkv.weight, out.weight, *qkv.factors, *out.factors)
    states = AttentionHalf.apply(rules, states, *weights)  # type: ignore[no-untyped-call]
    rule, weight, bias = _norm(norm2, dtype, narrow)
    activation, adapters = _ACTIVATIONS[type(mlp), mlp.activation], (up.adapters, down.adapters)
    feed = FeedForwardRules(rule, dtype, narrow, activation, adapters, (up.packed, down.packed))
    weights = (weight, bias, up.weight, down.weight, *up.factors, *down.factors)
    found: Tensor = FeedForwardHalf.apply(feed, states, *weights)  # type: ignore[no-untyped-call]
    return found


def _norm(norm: Any, *dtypes: torch.dtype) -> tuple[NormRule, Tensor, Tensor | None]:
    """Returns a norm's rule, weight and bias."""
    weight, bias = norm.weight, getattr(norm, "bias", None)
    return NormRule.of(norm.eps, type(norm) is RMSNorm, (weight, bias), dtypes), weight, bias
