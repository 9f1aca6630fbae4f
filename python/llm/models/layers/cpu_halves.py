"""The halves of a pre-norm block in training on a CPU, each one operation with a gradient of its own.

A half is `states + o_proj(attend(norm(states)))` or `states + down_proj(act(norm(states)))`. As one operation, it
records one node of PyTorch's graph instead of a dozen, and chooses each product's library. Its values are those of the
layers, to rounding.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from llm._rust import gelu
from llm.models.layers.cpu_attention import KernelAttention, TorchAttention, kernel_suits
from llm.models.layers.cpu_low_rank import LowRankPart, add_low_rank, low_rank, low_rank_gradients
from llm.models.layers.cpu_norm import NormParameters, NormRule, typed
from llm.models.layers.cpu_training import PREFERS_ONEDNN
from llm.models.layers.packed import PackedMatrix


def _kernel_activates(values: Tensor) -> bool:
    """Returns whether this package's kernel computes GELU with its slope."""
    return values.dtype == torch.float32 and kernel_suits(values.shape[1], values.dtype)


PackedPair = tuple[PackedMatrix | None, PackedMatrix | None]


_FIRST, _SECOND = 0, 1


def _unpacked(
    rules: "AttentionRules | FeedForwardRules",
    weights: Sequence[Tensor | None],
    number: int,
    *,
    is_forward: bool = False,
) -> Tensor:
    """Returns a half's first or second matrix in the type of the products of a pass.

    The backward pass rounds or unpacks weights again: copies that it finds kept would be half as large as the model.
    """
    dtype, packed = rules.dtype if is_forward else rules.gradient_dtype, rules.packed[number]
    return packed.values(dtype) if packed is not None else typed(cast(Tensor, weights[number]), dtype)


def _normed_again(rules: "AttentionRules | FeedForwardRules", states: Tensor, parameters: NormParameters) -> Tensor:
    """Returns a half's normalized rows as the forward pass computed them."""
    return typed(rules.norm.apply(states, parameters, rules.dtype)[0], rules.gradient_dtype)


def _narrowed(rules: "AttentionRules | FeedForwardRules", values: Sequence[Tensor]) -> list[Tensor]:
    """Returns values of the forward pass in the type of the gradients' products."""
    is_alike = rules.dtype == rules.gradient_dtype
    return list(values) if is_alike else [typed(each, rules.gradient_dtype) for each in values]


class AttentionRules(NamedTuple):
    """What an attention half does beside products.

    Attributes:
        norm: Normalization of its rows.
        dtype: Number type of products.
        gradient_dtype: Number type of the gradients' products.
        attention: Attention over the products.
        adapters: Adapters of `qkv_proj` and of `o_proj`.
        packed: The packed weights of both, which are unpacked for each pass; None for a weight that is an argument.
    """

    norm: NormRule
    dtype: torch.dtype
    gradient_dtype: torch.dtype
    attention: KernelAttention | TorchAttention
    adapters: tuple[tuple[LowRankPart, ...], tuple[LowRankPart, ...]] = ((), ())
    packed: PackedPair = (None, None)


class FeedForwardRules(NamedTuple):
    """What a feed-forward does beside products.

    Attributes:
        norm: Normalization of its rows.
        dtype: Number type of products.
        gradient_dtype: Number type of the gradients' products.
        activation: `silu` with a gate, `gelu` or `gelu_tanh` without.
        adapters: Adapters of the products that the activation takes, and of `down_proj`.
        packed: The packed weights of both, which are unpacked for each pass; None for a weight that is an argument.
    """

    norm: NormRule
    dtype: torch.dtype
    gradient_dtype: torch.dtype
    activation: str
    adapters: tuple[tuple[LowRankPart, ...], tuple[LowRankPart, ...]] = ((), ())
    packed: PackedPair = (None, None)

    def halves(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Returns the matrices of the products that the activation takes.

        Two products take as long as one, and activations of contiguous rows take 30 % less time.
        """
        return weight.chunk(2) if self.activation == "silu" else (weight,)

    def apply(self, products: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Returns the activation of products with `halves`, and what its gradient needs beside."""
        if self.activation != "silu":
            [given] = products
            if _kernel_activates(given):
                active = torch.empty_like(given)
                gelu(given, active, None, self.activation == "gelu_tanh", torch.get_num_threads())
                return active, [given]
            return F.gelu(given, approximate=self._approximation), [given]
        gate, up = products
        return F.silu(gate).mul_(up), [gate, up]

    def repeat(self, kept: list[Tensor], gradient: Tensor | None) -> tuple[Tensor, list[Tensor] | None]:
        """Returns the activation as `apply` computed it, and what `gradients` returns if that comes along.

        Args:
            kept: What `apply` returned.
            gradient: That of the activation, if it is known; may be overwritten.
        """
        if self.activation == "silu":
            return self.apply(kept)[0], None
        active = torch.empty_like(kept[0])
        gelu(kept[0], active, gradient, self.activation == "gelu_tanh", torch.get_num_threads())
        return active, None if gradient is None else [gradient]

    def gradients(self, gradient: Tensor, kept: list[Tensor]) -> list[Tensor]:
        """Returns the gradients of the activation's arguments, which `apply` returned; may overwrite `gradient`."""
        if self.activation != "silu":
            if self.can_repeat(kept):
                return cast(list[Tensor], self.repeat(kept, gradient)[1])
            found: Tensor = torch.ops.aten.gelu_backward(gradient, kept[0], approximate=self._approximation)
            return [found]
        gate, up = kept
        to_up = F.silu(gate).mul_(gradient)
        return [torch.ops.aten.silu_backward(gradient * up, gate), to_up]

    def can_repeat(self, kept: list[Tensor]) -> bool:
        """Returns whether the backward pass can compute the activation again from what `apply` returned to keep.

        Its last bit would differ from values that are computed in another type.
        """
        return self.dtype == self.gradient_dtype and (self.activation == "silu" or _kernel_activates(kept[0]))

    @property
    def _approximation(self) -> str:
        return "tanh" if self.activation == "gelu_tanh" else "none"


def product(values: Tensor, weight: Tensor) -> Tensor:
    """Returns `values @ weight.T`."""
    if PREFERS_ONEDNN and values.dtype == torch.float32:
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(values, weight, None, "none", [], ""))
    return torch.mm(values, weight.t())


def product_and_sum(values: Tensor, weight: Tensor, states: Tensor) -> Tensor:
    """Returns `states + values @ weight.T`."""
    if not values.dtype == states.dtype == torch.float32:
        return states + torch.mm(values, weight.t())
    if PREFERS_ONEDNN:
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise.binary(values, states, weight, None, "add"))
    return torch.addmm(states, values, weight.t())


def _weight_gradient(gradient: Tensor, values: Tensor, dtype: torch.dtype | None) -> Tensor | None:
    return None if dtype is None else typed(torch.mm(gradient.t(), values), dtype)


def _kept_dtype(weight: Tensor | None) -> torch.dtype | None:
    """Returns the type that the gradient of a matrix is kept in; None if it has no gradient."""
    if weight is None or not weight.requires_grad:
        return None
    dtype: torch.dtype | None = weight.grad_dtype if weight.is_leaf else None
    return dtype or torch.float32


class AttentionHalf(Function):
    """`states + o_proj(attend(rotate(qkv_proj(norm(states)))))` for fp32 `[T, C]`."""

    @staticmethod
    def forward(ctx: Any, rules: AttentionRules, states: Tensor, *weights: Any) -> Tensor:
        """Returns the residual stream after attention.

        Args:
            ctx: PyTorch's context.
            rules: The rules.
            states: Residual stream.
            weights: The norm's weight and bias (or None), those of `qkv_proj` and `o_proj`, then two of each adapter.
        """
        norm, bias, *matrices = weights
        factors = [typed(factor, rules.dtype) for factor in matrices[2:]]
        own, last = _divided(factors, rules.adapters)
        normed, kept = rules.norm.apply(states, (norm, bias), rules.dtype)
        heads = product(normed, _unpacked(rules, matrices, _FIRST, is_forward=True))
        lows = low_rank(normed, own)
        add_low_rank(heads, lows, rules.adapters[0], own)
        mixed = rules.attention.apply(heads)
        output = rules.attention.output(mixed)
        total = product_and_sum(output, _unpacked(rules, matrices, _SECOND, is_forward=True), states)
        last_lows = low_rank(output, last)
        add_low_rank(total, last_lows, rules.adapters[1], last)
        ctx.rules, ctx.counts = rules, tuple(map(len, (own, last, lows, last_lows, mixed, kept)))
        *narrow, logsumexp = mixed
        narrow = _narrowed(rules, (*own, *last, *lows, *last_lows, *narrow))
        ctx.save_for_backward(states, norm, bias, *matrices[:2], *narrow, logsumexp, *kept)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of states and weights."""
        rules = ctx.rules
        saved = ctx.saved_tensors  # once: recomputed blocks may be read a single time
        states, norm, bias, *matrices = saved[:5]
        first, last, first_lows, last_lows, mixed, kept = _parted(saved[5:], ctx.counts)
        narrow, output = typed(gradient, rules.gradient_dtype), rules.attention.output(mixed)
        to_out = _weight_gradient(narrow, output, _kept_dtype(matrices[_SECOND]))
        to_output = product(narrow, _unpacked(rules, matrices, _SECOND).t())
        to_last = low_rank_gradients([narrow], to_output, output, rules.adapters[1], (last, last_lows))
        to_heads = rules.attention.gradients(to_output, mixed)
        normed = _normed_again(rules, states, (norm, bias)) if ctx.needs_input_grad[_IN] or first else to_heads
        to_qkv = _weight_gradient(to_heads, normed, _kept_dtype(matrices[_FIRST]))
        to_normed = product(to_heads, _unpacked(rules, matrices, _FIRST).t())
        to_first = low_rank_gradients([to_heads], to_normed, normed, rules.adapters[0], (first, first_lows))
        to_states, *to_norm = rules.norm.gradients((to_normed, gradient), states, (norm, bias), kept)
        return None, to_states, *to_norm, to_qkv, to_out, *to_first, *to_last


class FeedForwardHalf(Function):
    """`states + down_proj(act(up_proj(norm(states))))` for fp32 `[T, C]`."""

    @staticmethod
    def forward(ctx: Any, rules: FeedForwardRules, states: Tensor, *weights: Any) -> Tensor:
        """Returns the residual stream after the feed-forward.

        Args:
            ctx: PyTorch's context.
            rules: The rules.
            states: Residual stream.
            weights: The norm's weight and bias (or None), those of `up_proj` (or `gate_up_proj`) and `down_proj`, then
                two of each adapter.
        """
        norm, bias, *matrices = weights
        factors = [typed(factor, rules.dtype) for factor in matrices[2:]]
        own, last = _divided(factors, rules.adapters)
        normed, kept = rules.norm.apply(states, (norm, bias), rules.dtype)
        products, lows, start = [], low_rank(normed, own), 0
        for half in rules.halves(_unpacked(rules, matrices, _FIRST, is_forward=True)):
            products.append(product(normed, half))
            add_low_rank(products[-1], lows, rules.adapters[0], own, first=start)
            start += half.shape[0]
        active, given = rules.apply(products)
        total = product_and_sum(active, _unpacked(rules, matrices, _SECOND, is_forward=True), states)
        last_lows = low_rank(active, last)
        add_low_rank(total, last_lows, rules.adapters[1], last)
        results = [] if rules.can_repeat(given) else [active]
        ctx.rules, ctx.counts = rules, tuple(map(len, (own, last, lows, last_lows, given, results, kept)))
        narrow = _narrowed(rules, (*own, *last, *lows, *last_lows, *given, *results))
        ctx.save_for_backward(states, norm, bias, *matrices[:2], *narrow, *kept)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of states and weights."""
        rules = ctx.rules
        saved = ctx.saved_tensors
        states, norm, bias, *matrices = saved[:5]
        first, last, first_lows, last_lows, given, results, kept = _parted(saved[5:], ctx.counts)
        narrow = typed(gradient, rules.gradient_dtype)
        to_active = product(narrow, _unpacked(rules, matrices, _SECOND).t())
        to_down, to_last = None, []
        needs_active = ctx.needs_input_grad[_OUT] or last
        slopes = None
        if needs_active:
            active, slopes = (results[0], None) if results else rules.repeat(given, None if last else to_active)
            to_down = _weight_gradient(narrow, active, _kept_dtype(matrices[_SECOND]))
            to_last = low_rank_gradients([narrow], to_active, active, rules.adapters[1], (last, last_lows))
            del active
        slopes = slopes or rules.gradients(to_active, given)
        normed = _normed_again(rules, states, (norm, bias)) if ctx.needs_input_grad[_IN] or first else states
        up = _unpacked(rules, matrices, _FIRST)
        to_up, to_normed = _gradients_of_halves(slopes, up, normed, _kept_dtype(matrices[_FIRST]))
        to_first = low_rank_gradients(slopes, to_normed, normed, rules.adapters[0], (first, first_lows))
        to_states, *to_norm = rules.norm.gradients((to_normed, gradient), states, (norm, bias), kept)
        return None, to_states, *to_norm, to_up, to_down, *to_first, *to_last


def _gradients_of_halves(
    slopes: list[Tensor], weight: Tensor, normed: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor | None, Tensor]:
    """Returns the gradients of `weight` and `normed` for those of `normed @ part.T` for each part of the weight.

    That of the weight is kept in `dtype`, and left out if there is none.
    """
    if len(slopes) == 1:
        return _weight_gradient(slopes[0], normed, dtype), product(slopes[0], weight.t())
    to_weight = None if dtype is None else torch.empty(weight.shape, dtype=normed.dtype)
    to_normed: Tensor | None = None
    for idx, (slope, part) in enumerate(zip(slopes, weight.chunk(len(slopes)), strict=True)):
        if to_weight is not None:
            torch.mm(slope.t(), normed, out=to_weight.chunk(len(slopes))[idx])
        to_normed = product(slope, part.t()) if to_normed is None else product_and_sum(slope, part.t(), to_normed)
    return None if to_weight is None or dtype is None else typed(to_weight, dtype), cast(Tensor, to_normed)


# Places of a half's two matrices among its arguments.
_IN, _OUT = 4, 5
_Adapters = tuple[tuple[LowRankPart, ...], tuple[LowRankPart, ...]]


def _divided(factors: list[Tensor], adapters: _Adapters) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the factors of the adapters of a half's first matrix, and of its second."""
    border = 2 * len(adapters[0])
    return factors[:border], factors[border:]


def _parted(tensors: Sequence[Tensor], counts: tuple[int, ...]) -> list[list[Tensor]]:
    """Returns consecutive groups of tensors."""
    ends = itertools.accumulate(counts)
    return [list(tensors[end - count : end]) for end, count in zip(ends, counts, strict=True)]
