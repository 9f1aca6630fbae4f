"""Decides where one fused kernel replaces several operations."""

import importlib
import importlib.util
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@lru_cache(maxsize=1)
def has_triton() -> bool:
    """Returns whether Triton is installed; PyTorch's CUDA builds for Linux include it."""
    return importlib.util.find_spec("triton") is not None


def is_fused(values: Tensor) -> bool:
    """Returns whether `layers.triton_kernels` processes `values`: on CUDA, outside training."""
    return (
        values.device.type == "cuda"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and has_triton()
    )


def kernels() -> Any:
    """Imports `layers.triton_kernels`, which needs Triton."""
    return importlib.import_module("llm.models.layers.triton_kernels")


def reads_packed(packed: Tensor) -> bool:
    """Returns whether `layers.triton_packed` reads packed weights: those on CUDA."""
    return packed.device.type == "cuda"


def packed_kernels() -> Any:
    """Imports `layers.triton_packed`, which needs Triton."""
    return importlib.import_module("llm.models.layers.triton_packed")
