"""Compilation of a model's blocks by PyTorch's compiler."""

import importlib.util
import os
import shutil

import torch

from llm.errors import ConfigError
from llm.models import DecoderModel
from llm.models.costs import flops_per_token
from llm.settings.run import RunConfig

_CXX_COMPILERS = ("g++", "clang++", "c++")
# What a GPU is expected to gain and to pay: fused norms, rotations and activations save this share of a step's time.
_SAVED_SHARE = 0.15
_COMPILATION_S = 60.0


def choose_compilation(config: RunConfig, total_steps: int, device: torch.device, flops: float) -> tuple[bool, str]:
    """Returns whether compiling the blocks of a model pays back within a run, and the reason in words.

    Args:
        config: The settings of the run.
        total_steps: Number of steps of the whole run.
        device: The device of this process.
        flops: Operations per second that all processes are expected to reach together.
    """
    obstacle = _obstacle(config, device)
    if obstacle is not None:
        return False, obstacle
    num_tokens = total_steps * config.training.batch_size * config.context_length
    run_s = num_tokens * flops_per_token(config.model, config.context_length) / flops
    saved_s = _SAVED_SHARE * run_s
    words = f"compilation takes about {_COMPILATION_S:.0f} s and saves about {saved_s:,.0f} of {run_s:,.0f} s"
    return saved_s > _COMPILATION_S, words


def _obstacle(config: RunConfig, device: torch.device) -> str | None:
    """Returns why a run gains nothing by compilation, whatever its length; None if it may."""
    # Even with dropout, where each layer runs by itself: 0.98 of the time in bf16, 1.02 in fp32 (12M, two threads).
    if device.type == "cpu":
        return "on a CPU, blocks have gradients of their own, which compilation hardly speeds up"
    if importlib.util.find_spec("triton") is None:
        return "the compiler needs the package triton on a GPU, which is not installed"
    if config.data.packing:
        return "packed documents differ in length, and each length would be compiled anew"
    if config.model.mlp == "moe":
        return "experts take other numbers of tokens in each pass"
    return None


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
