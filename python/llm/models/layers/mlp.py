"""Feed-forward layers."""

from collections.abc import Callable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from llm.models.layers import cpu_training, fused
from llm.models.layers.cpu_training import Linear
from llm.settings.model import Activation, ModelConfig


def _gelu_tanh(values: Tensor) -> Tensor:
    return F.gelu(values, approximate="tanh")


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
}


class SwiGLU(nn.Module):
    """`down(act(gate(x)) * up(x))` with gate and up in one product; the default activation is SiLU.

    Source: Shazeer 2020, "GLU Variants Improve Transformer", equation 6.
    """

    def __init__(self, config: ModelConfig, layer_idx: int = 0, *, intermediate_size: int | None = None) -> None:
        super().__init__()
        width, bias = intermediate_size or config.intermediate_size, bool(config.mlp_bias)
        self.gate_up_proj = Linear(config.hidden_size, 2 * width, bias=bias)
        self.joined_rows = {"gate_up_proj.weight": (width, width)}
        self.down_proj = Linear(width, config.hidden_size, bias=bias)
        self.activation = ACTIVATIONS[config.hidden_act or "silu"]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Maps `[T, C]` to `[T, C]`."""
        gate_up: Tensor = self.gate_up_proj(hidden_states)
        output: Tensor = self.down_proj(self._activate(gate_up))
        return output

    def _activate(self, gate_up: Tensor) -> Tensor:
        if self.activation is F.silu and fused.is_fused(gate_up):
            return cast(Tensor, fused.kernels().silu_times(gate_up))
        if self.activation is F.silu and cpu_training.is_training_on_cpu(gate_up):
            return cast(Tensor, cpu_training.SwiGLU.apply(gate_up))  # type: ignore[no-untyped-call]
        gate, up = gate_up.chunk(2, dim=-1)
        return self.activation(gate) * up


class MLP(nn.Module):
    """`down(act(up(x)))`; by default, the activation is GELU and the projections have biases.

    Source: Vaswani et al. 2017, section 3.3, with Hendrycks and Gimpel's GELU (2016).
    """

    def __init__(self, config: ModelConfig, layer_idx: int = 0) -> None:
        super().__init__()
        bias = config.mlp_bias is not False
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=bias)
        self.activation = ACTIVATIONS[config.hidden_act or "gelu"]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Maps `[T, C]` to `[T, C]`."""
        output: Tensor = self.down_proj(self.activation(self.up_proj(hidden_states)))
        return output
