"""Rotary position encoding."""

import torch
from torch import Tensor, nn


class RotaryEmbedding(nn.Module):
    """Rotates pairs of a head's channels by an angle that grows with the position.

    Channel `i` is paired with `i + D/2` (the layout of Hugging Face's Llama).

    Source: Su et al. 2021, «RoFormer», equation 34.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, head_dim: int, max_positions: int, theta: float) -> None:
        super().__init__()
        frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)  # (D/2,)
        angles = torch.outer(torch.arange(max_positions, dtype=torch.float64), frequencies)  # (P, D/2)
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of `positions` (int64 `[T]`), each fp32 `[T, 1, D/2]`."""
        return self.cosine[positions].unsqueeze(1), self.sine[positions].unsqueeze(1)

    @staticmethod
    def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Rotates `heads` `[T, H, D]`; computed in fp32, returned in the dtype given."""
        first, second = heads.float().chunk(2, dim=-1)  # (T, H, D/2) each
        rotated = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
        return rotated.to(heads.dtype)
