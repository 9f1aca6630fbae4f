"""Products of linear layers in float8, by torchao."""

import importlib.util
from typing import cast

import torch
from torch import nn

from llm.errors import ConfigError
from llm.models import DecoderModel

# GPUs from Ada (8.9) and Hopper (9.0) on multiply matrices in float8.
_CAPABILITY = (8, 9)
# Hardware takes matrices whose rows and columns are multiples of it.
_MULTIPLE = 16
_WAY_OUT = "hint: set training.precision=bfloat16"


def check_float8(device: torch.device) -> None:
    """Checks that the device multiplies in float8 and that torchao is installed.

    Raises:
        ConfigError: One of them is missing.
    """
    found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if found is None or found < _CAPABILITY:
        got = str(device) if found is None else f"one of {'.'.join(map(str, found))}"
        raise ConfigError(
            f"`training.precision=float8` needs an NVIDIA GPU of compute capability "
            f"{'.'.join(map(str, _CAPABILITY))} or higher, got {got}\n{_WAY_OUT}"
        )
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError(
            "`training.precision=float8` needs torchao, which is not installed\n"
            "hint: pip install 'llm-oxide[torchao]', or set training.precision=bfloat16"
        )


def use_float8(model: DecoderModel, *, emulate: bool = False) -> None:
    """Lets the linear layers of a model's blocks multiply in float8, scaled anew in each pass; weights stay.

    Only layers whose width and height are multiples of 16 take part, and of experts only the shared one. The router and
    the output matrix stay in the precision of all else.

    Args:
        model: The model, on any device.
        emulate: Whether to round to float8 and multiply in higher precision, which works on any device and is slow.

    Raises:
        ConfigError: No layer has such a size.
    """
    # torchao takes seconds to import and is optional.
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    # A pass of any number of tokens has a gradient, whose product is over the tokens.
    config = Float8LinearConfig(emulate=emulate, pad_inner_dim=True)
    for layer in model.layers:
        convert_to_float8_training(layer, module_filter_fn=_takes_part, config=config)
    if not _num_in_float8(model):
        raise ConfigError(
            f"`training.precision=float8` needs layers whose sizes are multiples of {_MULTIPLE}, got none\n{_WAY_OUT}"
        )


def describe_float8(model: nn.Module) -> str:
    """Returns in words how much of a model multiplies in float8."""
    num_layers = sum(isinstance(module, nn.Linear) for module in model.modules())
    return f"{_num_in_float8(model)} of {num_layers} linear layers multiply in float8, all else is in bfloat16"


def _takes_part(module: nn.Module, name: str) -> bool:
    linear = cast(nn.Linear, module)
    is_aligned = linear.in_features % _MULTIPLE == 0 and linear.out_features % _MULTIPLE == 0
    return is_aligned and name.rpartition(".")[2] != "router"


def _num_in_float8(model: nn.Module) -> int:
    from torchao.float8.float8_linear import Float8Linear

    return sum(isinstance(module, Float8Linear) for module in model.modules())
