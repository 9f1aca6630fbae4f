"""Compilation of a model's blocks by PyTorch's compiler."""

import os
import shutil

import torch

from llm.errors import ConfigError
from llm.models import DecoderModel

_CXX_COMPILERS = ("g++", "clang++", "c++")


def check_compiler(device: torch.device) -> None:
    """Checks that PyTorch's compiler finds the C++ compiler that it needs on a CPU.

    Raises:
        ConfigError: There is none.
    """
    named = os.environ.get("CXX")
    names = (named,) if named else _CXX_COMPILERS
    if device.type == "cpu" and not any(shutil.which(name) for name in names):
        raise ConfigError(
            f"`training.compile=on` needs a C++ compiler on a CPU, found none of {', '.join(names)}\n"
            "hint: install g++, name another one in the variable CXX, or set training.compile=off"
        )


def compile_blocks(model: DecoderModel) -> None:
    """Lets PyTorch compile each block at its first pass; names of weights stay the same.

    Blocks of one shape share their compiled code, so compilation takes as long as for one block.
    """
    for layer in model.layers:
        layer.compile()
