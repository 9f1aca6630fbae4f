"""The device a name stands for."""

import torch

from llm.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """Finds the device that `name` means; `auto` is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: An unknown name, or a device that isn't there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"`device` must be auto, cpu or cuda[:N], got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"`device` is {name!r}, but PyTorch sees {torch.cuda.device_count()} CUDA devices\nhint: use `auto`"
        )
    return device
