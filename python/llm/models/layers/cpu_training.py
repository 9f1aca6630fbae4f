"""Operations of training on a CPU with gradients of their own: fewer passes over memory than PyTorch's compositions.

Each computes what the plain operation in its caller computes, to rounding; callers use it where `is_training_on_cpu`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# PyTorch's own backward pass in bf16 takes 5 times as long for 64 tokens and 1.3 times for 256; beyond, it is as fast.
LONGEST_SHORT = 256
_QUERY_ROWS = 64
# From this length on, the gradient is computed by batched products.
_BATCHED_LENGTH = 384
# Scores computed at a time: 4 MiB in fp32, which stay in a cache.
_SCORES = 2**20


def is_training_on_cpu(values: Tensor) -> bool:
    """Returns whether a pass over `values` records gradients on a CPU; compiled code fuses operations by itself."""
    return torch.is_grad_enabled() and values.device.type == "cpu" and not torch.compiler.is_compiling()


class Linear(nn.Linear):
    """`nn.Linear` that takes oneDNN's product instead of MKL's in fp32 training, where that takes less time."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.has_bias = bias

    def forward(self, values: Tensor) -> Tensor:
        """Maps `[..., C]` to `[..., O]`."""
        if not self.has_bias and values.dim() == 2 and self._suits(values):
            product: Tensor = _Product.apply(values, self.weight)  # type: ignore[no-untyped-call]
            return product
        return super().forward(values)

    def _suits(self, values: Tensor) -> bool:
        is_fp32 = values.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return is_fp32 and PREFERS_ONEDNN and self.weight.numel() >= _LARGE_WEIGHT and is_training_on_cpu(values)


# Smaller products gain nothing.
_LARGE_WEIGHT = 2**17


def _prefers_onednn() -> bool:
    """Returns whether fp32 products take oneDNN instead of MKL.

    oneDNN's take 3 to 10 % less time on AMD. On Intel, MKL's large products are as fast, and those of small models take
    6 to 25 % less time, since MKL looks up no primitive in each call.
    """
    has_onednn = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if not has_onednn or not torch._C.has_mkl:
        return bool(has_onednn)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "Intel" not in str(capabilities.get("cpu_name", ""))


PREFERS_ONEDNN: bool = _prefers_onednn()


def _onednn(values: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(values, weight, None, "none", [], "")
    return product


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(values, weight)
        return _onednn(values, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        values, weight = ctx.saved_tensors
        to_values = _onednn(gradient, weight.T) if ctx.needs_input_grad[0] else None
        return to_values, gradient.T @ values if ctx.needs_input_grad[1] else None


class SwiGLU(Function):
    """`silu(gate) * up` for `[T, 2I]`, gate first."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        """Returns `[T, I]`; keeps only the input."""
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Returns the gradient of the input, written once."""
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        found = torch.empty_like(gate_up)
        to_gate, to_up = found.chunk(2, dim=-1)
        torch.mul(F.silu(gate), gradient, out=to_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=to_gate)
        return found


class Rotate(Function):
    """`rotary.rotate` of the first heads of `[T, H, D]`; the others are copied."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cosine: Tensor, sine: Tensor, num_turned: int) -> Tensor:
        """Returns `[T, H, D]`."""
        ctx.save_for_backward(cosine, sine)
        ctx.num_turned = num_turned
        return rotated(heads, (cosine, sine), num_turned)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Turns the gradient back."""
        cosine, sine = ctx.saved_tensors
        return rotated(gradient, (cosine, -sine), ctx.num_turned), None, None, None


def rotated(heads: Tensor, rotation: tuple[Tensor, Tensor], num_turned: int) -> Tensor:
    """Returns `[T, H, D]` with the first heads rotated."""
    cosine, sine = rotation
    found = torch.empty(heads.shape, dtype=heads.dtype)
    turned = heads[:, :num_turned]
    wide = found[:, :num_turned] if heads.dtype == cosine.dtype else torch.empty(turned.shape, dtype=cosine.dtype)
    first, second = turned.to(cosine.dtype).chunk(2, dim=-1)
    to_first, to_second = wide.chunk(2, dim=-1)
    torch.mul(first, cosine, out=to_first).addcmul_(second, sine, value=-1)
    torch.mul(second, cosine, out=to_second).addcmul_(first, sine)
    if wide.dtype != found.dtype:
        found[:, :num_turned] = wide
    found[:, num_turned:] = heads[:, num_turned:]
    return found


def flash(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Returns causal attention over `[B, H, T, D]`, and the logarithm of the sum of each row's exponentials."""
    dtype, is_narrow = query.dtype, _is_narrow(query)
    if is_narrow:
        query, key, value = query.float(), key.float(), value.float()
    output: Tensor
    output, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, True, scale=scale
    )
    return output.to(dtype) if is_narrow else output, logsumexp


def causal_gradients(
    gradient: Tensor, parts: tuple[Tensor, Tensor, Tensor], kept: tuple[Tensor, Tensor], scale: float
) -> tuple[Tensor, ...]:
    """Returns the gradients of query, key and value; see `batched_gradients` for the arguments.

    For short sequences, PyTorch's kernels take less time in fp32 than in half precision, most of all where heads share
    keys; for long ones, batched products take 25 % less time than PyTorch's kernel.
    """
    dtype, output, logsumexp = gradient.dtype, *kept
    if gradient.shape[2] >= _BATCHED_LENGTH:
        return batched_gradients(gradient, parts, kept, scale)
    if is_narrow := _is_narrow(gradient):
        query, key, value = (part.float() for part in parts)
        gradient, parts, output = gradient.float(), (query, key, value), output.float()
    found: tuple[Tensor, ...] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient, *parts, output, logsumexp, 0.0, True, scale=scale
    )
    return tuple(part.to(dtype) for part in found) if is_narrow else found


def _is_narrow(values: Tensor) -> bool:
    """Returns whether attention over `[B, H, T, D]` in half precision takes less time in fp32."""
    return values.dtype.itemsize < 4 and values.shape[2] <= LONGEST_SHORT


class ShortAttention(Function):
    """Causal attention over `[B, H, T, D]` for short sequences in half precision, computed in fp32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Returns `[B, H, T, D]`."""
        output, logsumexp = flash(query, key, value, scale)
        ctx.scale = scale
        ctx.save_for_backward(query, key, value, output, logsumexp)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of query, key and value."""
        query, key, value, output, logsumexp = ctx.saved_tensors
        return *causal_gradients(gradient, (query, key, value), (output, logsumexp), ctx.scale), None


def batched_gradients(
    gradient: Tensor, parts: tuple[Tensor, Tensor, Tensor], kept: tuple[Tensor, Tensor], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of query, key and value, `[B, H, T, D]` each, by batched products.

    Scores are computed again in fp32, so the gradient is as exact as PyTorch's.

    Args:
        gradient: Gradient of the output.
        parts: Query, key and value.
        kept: The output, and the logarithm of the sum of each row's exponentials, `[B, H, T]`.
        scale: Factor on the scores.
    """
    query, key, _ = parts
    groups = query.shape[1] // key.shape[1]
    delta = (gradient.float() * kept[0]).sum(-1, keepdim=True).flatten(0, 1)
    bounds = kept[1].float().flatten(0, 1).unsqueeze(-1)
    flat = [part.repeat_interleave(query.shape[1] // part.shape[1], 1).flatten(0, 1) for part in (*parts, gradient)]
    found = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in flat[:3]]
    step = max(1, _SCORES // (_QUERY_ROWS * query.shape[2]))
    for start in range(0, len(delta), step):
        heads = slice(start, start + step)
        _attention_gradients(
            [part[heads] for part in flat], bounds[heads], delta[heads], scale, [part[heads] for part in found]
        )
    to_query, to_key, to_value = (part.view(query.shape) for part in found)
    if groups > 1:
        size = (key.shape[0], key.shape[1], groups, *key.shape[2:])
        to_key, to_value = (part.view(size).sum(2) for part in (to_key, to_value))
    return to_query, to_key, to_value


def _attention_gradients(parts: list[Tensor], bounds: Tensor, delta: Tensor, scale: float, found: list[Tensor]) -> None:
    """Writes the gradients of query, key and value of some heads, `[N, T, D]` each, into `found`.

    Args:
        parts: Query, key, value and the output's gradient, `[N, T, D]` each.
        bounds: Logarithm of the sum of each row's exponentials, `[N, T, 1]`.
        delta: Products of the output and its gradient, summed over channels, `[N, T, 1]`.
        scale: Factor on the scores.
        found: Takes the gradients.

    Source: Dao et al. 2022, "FlashAttention", algorithm 4.
    """
    query, key, value, gradient = parts
    wide_query, wide_key = query.float(), key.float()
    to_key, to_value = (torch.zeros(part.shape) for part in (key, value))
    for start in range(0, query.shape[1], _QUERY_ROWS):
        stop = min(start + _QUERY_ROWS, query.shape[1])
        rows, seen = slice(start, stop), slice(0, stop)
        scores = torch.baddbmm(bounds[:, rows], wide_query[:, rows], wide_key[:, seen].mT, beta=-1, alpha=scale)
        weights = scores.exp_()
        weights[:, :, rows].tril_()
        _add_product(to_value[:, seen], weights.to(value.dtype).mT, gradient[:, rows])
        slopes = torch.bmm(gradient[:, rows], value[:, seen].mT).float().sub_(delta[:, rows])
        to_scores = slopes.mul_(weights).mul_(scale).to(query.dtype)
        found[0][:, rows] = torch.bmm(to_scores, key[:, seen])
        _add_product(to_key[:, seen], to_scores.mT, query[:, rows])
    found[1].copy_(to_key)
    found[2].copy_(to_value)


def _add_product(total: Tensor, first: Tensor, second: Tensor) -> None:
    if total.dtype == first.dtype:
        total.baddbmm_(first, second)
    else:
        total += torch.bmm(first, second)
