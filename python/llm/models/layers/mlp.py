"""Feed-forward layers."""

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))`, gate and up in one product.

    Source: Shazeer 2020, «GLU Variants Improve Transformer», equation 6.
    """

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Maps `[T, C]` to `[T, C]`."""
        gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
        output: Tensor = self.down_proj(F.silu(gate) * up)
        return output


class MLP(nn.Module):
    """`down(gelu(up(x)))`.

    Source: Vaswani et al. 2017, section 3.3, with Hendrycks and Gimpel's GELU (2016).
    """

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(hidden_size, intermediate_size)
        self.down_proj = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Maps `[T, C]` to `[T, C]`."""
        output: Tensor = self.down_proj(F.gelu(self.up_proj(hidden_states)))
        return output
