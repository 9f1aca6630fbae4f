"""The optimizer and its state under parameter names."""

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from llm.errors import CheckpointError
from llm.settings.run import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """AdamW with weight decay on matrices only.

    Source: Loshchilov and Hutter 2019, «Decoupled Weight Decay Regularization», algorithm 2.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return AdamW([group for group in groups if group["params"]], config.learning_rate, betas, config.eps, fused=True)


def optimizer_tensors(model: nn.Module, optimizer: AdamW) -> dict[str, Tensor]:
    """Moments and step counts as `parameter/field`, so that no pickle is needed to store them."""
    return {
        f"{name}/{field}": value
        for name, parameter in model.named_parameters()
        for field, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(model: nn.Module, optimizer: AdamW, tensors: dict[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave.

    Raises:
        CheckpointError: A parameter has no saved state, or one of another shape.
    """
    for name, parameter in model.named_parameters():
        state = {field: tensors.get(f"{name}/{field}") for field in ("step", "exp_avg", "exp_avg_sq")}
        moment = state["exp_avg"]
        if moment is None or moment.shape != parameter.shape:
            raise CheckpointError(
                f"the saved optimizer state of {name} must have shape {list(parameter.shape)}, "
                f"got {None if moment is None else list(moment.shape)}"
            )
        optimizer.state[parameter] = {
            field: value.to(parameter.device) for field, value in state.items() if value is not None
        }


def clip_gradients(model: nn.Module, max_norm: float | None) -> float:
    """Scales gradients down to a global norm of `max_norm` (`None`: leaves them) and returns the norm before."""
    limit = float("inf") if max_norm is None else max_norm
    return float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))
