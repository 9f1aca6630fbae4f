"""Muon: momentum whose matrices are made orthogonal before each step."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from llm.checkpoint import sharded_as
from llm.training.distributed import whole

# Coefficients of the quintic polynomial: its slope at zero is as large as it gets while all singular values end up
# near one, from 0.7 to 1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPS = 1e-7
# The root mean square of AdamW's usual updates; with it, AdamW's learning rate and weight decay suit Muon too.
_ADAMW_RMS = 0.2
# Numbers whose updates wait to be orthogonalized together, 256 MB in fp32: whole even where parameters are sharded.
_NUMBERS_AT_ONCE = 1 << 26


@torch.no_grad()
def orthogonalized(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the nearest (semi-)orthogonal matrix of each of `[..., M, N]`, roughly: singular values of 0.7 to 1.2.

    Args:
        matrices: fp32 matrices.
        dtype: Number type of the products; bf16 is exact enough, and twice as fast on hardware that has it.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (Newton-Schulz iteration).
    """
    first, second, third = _COEFFICIENTS
    norms = torch.linalg.matrix_norm(matrices, keepdim=True).clamp_min(_EPS)
    values = (matrices / norms).to(dtype)
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    if is_tall:
        values = values.mT
    stack = values.reshape(-1, *values.shape[-2:])
    for _ in range(_ITERATIONS):
        gram = stack @ stack.mT
        update = torch.baddbmm(gram, gram, gram, beta=second, alpha=third)
        stack = torch.baddbmm(stack, update, stack, beta=first)
    result: Tensor = stack.reshape(values.shape)
    return (result.mT if is_tall else result).to(matrices.dtype)


class Muon(Optimizer):
    """Muon for hidden matrices, fused AdamW for all other parameters, with one learning rate for both.

    A matrix steps along the orthogonalized Nesterov momentum of its gradient, scaled to the root mean square of
    AdamW's steps. A parameter that joins several matrices is split first, and a stack of experts steps expert by
    expert. Where a parameter is sharded, each process gathers its momentum, computes the whole step and keeps its own
    share, so sharding does not change the result.

    Args:
        matrices: Groups of hidden matrices. Each has `params`, `rows` (the rows of each matrix that a parameter
            joins, one tuple per parameter; empty: one matrix) and may have `weight_decay`.
        others: AdamW of the other parameters; None if there are none.
        lr: Learning rate of the matrices.
        momentum: Decay rate of the momentum.
        dtype: Number type of the products of `orthogonalized`.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is
    Scalable for LLM Training", equation 4 (weight decay, and AdamW's root mean square).
    """

    def __init__(
        self,
        matrices: Iterable[dict[str, Any]],
        others: AdamW | None,
        lr: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self._matrices = list(self.param_groups)
        self._others = others
        self._dtype = dtype
        if others is not None:
            others.state = self.state
            self.param_groups += others.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates all parameters that have gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self._matrices:
            self._step_matrices(group)
        if self._others is not None:
            self._others.step()
        return loss

    def is_matrix(self, parameter: Tensor) -> bool:
        """Whether `parameter` is updated by Muon rather than by AdamW."""
        return any(parameter is each for group in self._matrices for each in group["params"])

    def _step_matrices(self, group: dict[str, Any]) -> None:
        waiting: list[tuple[Tensor, Tensor, tuple[int, ...]]] = []
        for parameter, rows in zip(group["params"], group["rows"], strict=True):
            if parameter.grad is None:
                continue
            waiting.append((parameter, self._nesterov(parameter, parameter.grad, group["momentum"]), rows))
            if sum(update.numel() for _, update, _ in waiting) >= _NUMBERS_AT_ONCE:
                self._apply(waiting, group)
                waiting = []
        self._apply(waiting, group)

    def _nesterov(self, parameter: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        """Advances the momentum of a parameter and returns what to orthogonalize, whole even if it is sharded."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = gradient.lerp(buffer, momentum)
        return whole(update)

    def _apply(self, waiting: Sequence[tuple[Tensor, Tensor, tuple[int, ...]]], group: dict[str, Any]) -> None:
        """Moves parameters along their updates, which it overwrites by the steps."""
        alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for _, update, rows in waiting:
            for piece in torch.split(update, list(rows) or update.shape[-2], dim=-2):
                alike[piece.shape].append(piece)
        for pieces in alike.values():
            # One product over all matrices of a shape is up to twice as fast as one for each where they are small.
            steps = orthogonalized(torch.stack(pieces), self._dtype)
            for piece, step in zip(pieces, steps.unbind(), strict=True):
                torch.mul(step, _ADAMW_RMS * max(piece.shape[-2:]) ** 0.5, out=piece)
        for parameter, update, _ in waiting:
            own = sharded_as(update, parameter)
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(own, alpha=-group["lr"])
