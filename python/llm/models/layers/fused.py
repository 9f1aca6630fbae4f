"""Where several operations are one kernel, and where they are not."""

import importlib
import importlib.util
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@lru_cache(maxsize=1)
def has_triton() -> bool:
    """Whether the kernels' compiler is installed: PyTorch's builds for CUDA on Linux bring it along."""
    return importlib.util.find_spec("triton") is not None


def is_fused(values: Tensor) -> bool:
    """Whether what is done to `values` is done by `layers.triton_kernels`: on CUDA, outside training."""
    return (
        values.device.type == "cuda"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and has_triton()
    )


def kernels() -> Any:
    """The module `layers.triton_kernels`, which can't be imported without Triton."""
    return importlib.import_module("llm.models.layers.triton_kernels")
