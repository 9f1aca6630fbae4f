"""Resolution of device names."""

import re

import torch

from llm.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """Returns the device called `name`; `auto` selects CUDA if available, otherwise the CPU.

    Raises:
        ConfigError: The name is unknown, or the device does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"`device` must be auto, cpu or cuda[:N], got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"`device` is {name!r}, but PyTorch sees {torch.cuda.device_count()} CUDA devices\nhint: use `auto`"
        )
    return device


def is_out_of_memory(error: RuntimeError) -> bool:
    """Returns whether memory was not enough: PyTorch raises its own class on a GPU and a `RuntimeError` on the CPU."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
