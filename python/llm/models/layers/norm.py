"""Normalization of the residual stream."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.models.layers import fused
from llm.models.layers.cpu_norm import normalized


class RMSNorm(nn.Module):
    """Divides each row by its root mean square and scales it.

    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalizes the last dimension of `[..., C]`."""
        if hidden_states.is_contiguous() and fused.is_fused(hidden_states):
            _, normed = fused.kernels().add_rms_norm(hidden_states, None, self.weight, self.eps)
            return cast(Tensor, normed)
        trained = normalized(self, hidden_states, is_rms=True)
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.eps) if trained is None else trained


class OffsetRMSNorm(nn.Module):
    """`RMSNorm` that stores its scale minus one, so weight decay pulls the scale to one; computed in fp32.

    Source: Gemma Team 2024, "Gemma: Open Models", section 2, and the model's published code.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalizes the last dimension of `[..., C]`."""
        scale = 1.0 + self.weight.float()
        return F.rms_norm(hidden_states.float(), scale.shape, scale, self.eps).to(hidden_states.dtype)


class LayerNorm(nn.Module):
    """Centers each row, divides it by its standard deviation, scales and shifts it.

    Source: Ba, Kiros and Hinton 2016, "Layer Normalization", equation 4.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalizes the last dimension of `[..., C]`."""
        trained = normalized(self, hidden_states, is_rms=False)
        if trained is not None:
            return trained
        return F.layer_norm(hidden_states, self.weight.shape, self.weight, self.bias, self.eps)


class LayerNormNoBias(LayerNorm):
    """`LayerNorm` without the shift, as in models whose layers have no biases at all."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps)
        self.register_parameter("bias", None)


def add_norm(residual: Tensor, update: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns `residual + update` and its norm, both `[T, C]`."""
    is_contiguous = residual.is_contiguous() and update.is_contiguous()
    if isinstance(norm, RMSNorm) and is_contiguous and fused.is_fused(residual):
        return cast(tuple[Tensor, Tensor], fused.kernels().add_rms_norm(residual, update, norm.weight, norm.eps))
    total = residual + update
    return total, norm(total)
