"""Layer and RMS norm in training on a CPU, by this package's kernel where it computes them, otherwise by PyTorch's."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from llm._rust import row_norm, row_norm_gradients
from llm.models.layers import cpu_training
from llm.models.layers.cpu_attention import kernel_suits

NormParameters = tuple[Tensor, Tensor | None]


def typed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns `values.to(dtype)`, without a call of PyTorch where nothing changes."""
    return values if values.dtype == dtype else values.to(dtype)


class NormRule(NamedTuple):
    """How rows are normalized.

    Attributes:
        eps: Added to the mean square.
        is_rms: Whether rows are not centered.
        has_kernel: Whether this package's kernel computes it.
    """

    eps: float
    is_rms: bool
    has_kernel: bool

    @classmethod
    def of(cls, eps: float, is_rms: bool, parameters: NormParameters, dtypes: tuple[torch.dtype, ...]) -> "NormRule":
        """Returns the rule of a norm.

        Args:
            eps: Added to the mean square.
            is_rms: Whether rows are not centered.
            parameters: Weight and bias.
            dtypes: Number types of normalized rows, and of their gradients.
        """
        weight, bias = parameters
        has_kernel = _is_plain(weight) and (bias is None or _is_plain(bias))
        return cls(eps, is_rms, has_kernel and all(kernel_suits(weight.shape[0], dtype) for dtype in dtypes))

    def apply(self, rows: Tensor, parameters: NormParameters, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        """Returns the normalized rows in `dtype`, and what their gradient needs beside the arguments."""
        weight, bias = parameters
        if self.has_kernel:
            rows = rows.contiguous()
            normed, kept = torch.empty_like(rows, dtype=dtype), torch.empty(len(rows), 2)
            row_norm(self._kernel_rule(parameters), rows, normed, kept)
            return normed, [kept]
        if self.is_rms:
            normed, factor = rms_norm(rows, weight, self.eps)
            return typed(normed, dtype), [factor]
        normed, *spread = torch.native_layer_norm(rows, weight.shape, weight, bias, self.eps)
        return typed(normed, dtype), spread

    def gradients(
        self, gradients: tuple[Tensor, Tensor | None], rows: Tensor, parameters: NormParameters, kept: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the gradients of rows, weight and bias.

        Args:
            gradients: Those of the normalized rows, and what reaches the rows past the norm (None: nothing).
            rows: What was normalized.
            parameters: Weight and bias.
            kept: What `apply` returned.
        """
        weight, bias = parameters
        gradient, past = gradients
        if self.has_kernel:
            rows = rows.contiguous()
            to_rows, to_weight = torch.empty_like(rows), torch.empty_like(weight)
            to_bias = None if bias is None else torch.empty_like(bias)
            given = (rows, kept[0], gradient.contiguous(), None if past is None else past.contiguous())
            row_norm_gradients(self._kernel_rule(parameters), given, (to_rows, to_weight, to_bias))
            return to_rows, to_weight, to_bias
        gradient = typed(gradient, rows.dtype)
        if self.is_rms:
            to_rows, to_weight = rms_norm_gradients(gradient, rows, weight, kept[0])
            return to_rows if past is None else to_rows.add_(past), to_weight, None
        to_rows, to_weight, to_bias = torch.ops.aten.native_layer_norm_backward(
            gradient, rows, weight.shape, *kept, weight, bias, [True, True, bias is not None]
        )
        return to_rows if past is None else to_rows.add_(past), to_weight, to_bias

    def _kernel_rule(self, parameters: NormParameters) -> tuple[Any, ...]:
        return *parameters, self.eps, not self.is_rms, torch.get_num_threads()


def _is_plain(parameter: Tensor) -> bool:
    return parameter.dtype == torch.float32 and parameter.is_contiguous()


def rms_norm(values: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns the normalized rows, and the factor of each row, which the gradient needs."""
    norms: Tensor = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    factor = norms.square_().div_(values.shape[-1]).add_(eps).rsqrt_()
    return (values * factor).mul_(weight), factor


def rms_norm_gradients(gradient: Tensor, values: Tensor, weight: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of rows and weight."""
    normed = values * factor
    products = gradient * normed
    shares = torch.mv(products.flatten(0, -2), weight).div_(-values.shape[-1]).view_as(factor)
    to_values = (gradient * weight).addcmul_(normed, shares).mul_(factor)
    return to_values, products.flatten(0, -2).sum(0)


class Normalize(Function):
    """A norm over the last of two dimensions, with a gradient of its own; keeps the rows and numbers per row."""

    @staticmethod
    def forward(ctx: Any, rule: NormRule, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the normalized rows, in the type of `rows`."""
        normed, kept = rule.apply(rows, (weight, bias), rows.dtype)
        ctx.rule = rule
        ctx.save_for_backward(rows, weight, bias, *kept)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of rows, weight and bias."""
        rows, weight, bias, *kept = ctx.saved_tensors
        return None, *ctx.rule.gradients((gradient, None), rows, (weight, bias), kept)


def normalized(norm: Any, values: Tensor, *, is_rms: bool) -> Tensor | None:
    """Returns a norm of the last dimension of `[..., C]` in training on a CPU; None if its layer must compute it.

    Args:
        norm: A layer with `weight`, `bias` and `eps`.
        values: What to normalize.
        is_rms: Whether rows are not centered.
    """
    is_plain = type(values) is Tensor and values.dtype == norm.weight.dtype and cpu_training.is_training_on_cpu(values)
    if not is_plain or values.dim() < 2 or torch._C._len_torch_dispatch_stack():  # somebody counts operations
        return None
    weight, bias = norm.weight, getattr(norm, "bias", None)
    rule = NormRule.of(norm.eps, is_rms, (weight, bias), (values.dtype,))
    if not rule.has_kernel and not (is_rms and values.dtype.itemsize >= 4):
        return None  # PyTorch's operation has a gradient of its own
    rows = values if values.dim() == 2 else values.reshape(-1, values.shape[-1])
    normed: Tensor = Normalize.apply(rule, rows, weight, bias)  # type: ignore[no-untyped-call]
    return normed if values.dim() == 2 else normed.view(values.shape)
