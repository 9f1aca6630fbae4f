"""The state of an optimizer by parameter name, which can be stored without a pickle."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llm.checkpoint import sharded_as
from llm.errors import CheckpointError
from llm.training.distributed import is_shard
from llm.training.optim.muon import Muon

_ADAMW_FIELDS = ("step", "exp_avg", "exp_avg_sq")
_MUON_FIELDS = ("momentum_buffer",)


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Returns moments and step counts by name `parameter/field`."""
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        for field, value in optimizer.state[parameter].items():
            found |= {f"{name}/{field}{inner}": part for inner, part in _parts(value).items()}
    return found


def load_optimizer_tensors(model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restores the state that `optimizer_tensors` returned.

    Raises:
        CheckpointError: A parameter has no saved state, or a state of another shape.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(optimizer, "_new_buffer"):
            optimizer.state[parameter] = _quantized_state(optimizer, parameter, name, tensors)
            continue
        fields = _fields_of(optimizer, parameter)
        saved = {field: tensors.get(f"{name}/{field}") for field in fields}
        moment = saved[fields[-1]]
        if moment is None or moment.shape != parameter.shape:
            raise CheckpointError(
                f"the saved optimizer state of {name} must have shape {list(parameter.shape)}, "
                f"got {None if moment is None else list(moment.shape)}"
            )
        optimizer.state[parameter] = {
            field: _placed(value, parameter) for field, value in saved.items() if value is not None
        }


def _parts(value: Tensor) -> dict[str, Tensor]:
    """Returns the plain tensors of a value by their suffixes: codes and scales of 8-bit moments, else the value."""
    if is_shard(value) or not hasattr(value, "__tensor_flatten__"):
        return {"": value}
    return {f"/{inner}": getattr(value, inner) for inner in value.__tensor_flatten__()[0]}


def _quantized_state(
    optimizer: Any, parameter: nn.Parameter, name: str, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Returns the state of a parameter of torchao's optimizer, whose own method makes the moments to fill.

    Raises:
        CheckpointError: The state is missing or has another shape.
    """
    state = {
        "step": torch.tensor(0.0),
        "exp_avg": optimizer._new_buffer(parameter, True),
        "exp_avg_sq": optimizer._new_buffer(parameter, False),
    }
    for field, value in state.items():
        for inner, part in _parts(value).items():
            saved = tensors.get(f"{name}/{field}{inner}")
            if saved is None or saved.shape != part.shape:
                raise CheckpointError(
                    f"the saved optimizer state {name}/{field}{inner} must have shape {list(part.shape)}, "
                    f"got {None if saved is None else list(saved.shape)}"
                )
            part.copy_(saved)
    return state


def _fields_of(optimizer: Optimizer, parameter: nn.Parameter) -> tuple[str, ...]:
    is_matrix = isinstance(optimizer, Muon) and optimizer.is_matrix(parameter)
    return _MUON_FIELDS if is_matrix else _ADAMW_FIELDS


def _placed(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """Returns a saved tensor on the parameter's device, sharded like the parameter; step counts stay whole."""
    if is_shard(parameter) and value.shape == parameter.shape:
        return sharded_as(value, parameter)
    return value.to(parameter.device)
