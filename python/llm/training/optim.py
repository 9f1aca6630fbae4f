"""The optimizer, and its state by parameter name."""

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from llm.errors import CheckpointError
from llm.settings.run import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """Returns an AdamW optimizer with weight decay on matrices only.

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
    """Returns moments and step counts by name `parameter/field`, which can be stored without a pickle."""
    return {
        f"{name}/{field}": value
        for name, parameter in model.named_parameters()
        for field, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(model: nn.Module, optimizer: AdamW, tensors: dict[str, Tensor]) -> None:
    """Restores the state that `optimizer_tensors` returned.

    Raises:
        CheckpointError: A parameter has no saved state, or a state of another shape.
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
    """Scales gradients to a global norm of at most `max_norm` (None: no limit) and returns the norm before scaling."""
    limit = float("inf") if max_norm is None else max_norm
    return float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))
