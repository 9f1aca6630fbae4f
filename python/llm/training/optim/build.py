"""Builds the optimizer that the settings name."""

import importlib.util
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from llm.errors import ConfigError
from llm.settings.run import OptimizerConfig
from llm.training.distributed import is_sharded
from llm.training.optim.cpu_adamw import CpuAdamW
from llm.training.optim.muon import Muon
from llm.training.optim.parameters import TrainedParameter, trained_parameters


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, dtype: torch.dtype = torch.float32, *, is_one_pass: bool = False
) -> Optimizer:
    """Returns the optimizer `config.name` of the model's parameters, with weight decay on matrices only.

    Args:
        model: The model, already on its device and sharded.
        config: The settings.
        dtype: Number type of matrix products; Muon orthogonalizes in it (in bf16 instead of fp16).
        is_one_pass: Whether the gradients of a step are those of one pass in one process.

    Raises:
        ConfigError: A group matches no parameter, or the optimizer needs a package that isn't installed.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2 (AdamW).
    """
    parameters = trained_parameters(model, config)
    if config.name == "adamw8bit":
        return _adamw_8bit(model, parameters, config)
    matrices = [each for each in parameters if each.is_hidden_matrix] if config.name == "muon" else []
    others = [each for each in parameters if each not in matrices]
    adamw = _adamw(others, config, is_scaled=dtype == torch.float16) if others else None
    if matrices:
        products = torch.bfloat16 if dtype == torch.float16 else dtype
        return Muon(_groups(matrices), adamw, config.learning_rate, config.momentum, products)
    if adamw is None:
        raise ConfigError("the model must have parameters to train, got none")
    if is_one_pass and dtype == torch.bfloat16 and isinstance(adamw, CpuAdamW):
        adamw.keep_gradients_narrow(model)
    return adamw


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of a step; groups with a rate of their own keep its ratio to the optimizer's."""
    for group in optimizer.param_groups:
        rate = learning_rate * group["rate_factor"]
        if isinstance(group["lr"], Tensor):  # the 8-bit optimizer compiles its step, and reads the rate from a tensor
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _adamw(parameters: Sequence[TrainedParameter], config: OptimizerConfig, is_scaled: bool) -> AdamW:
    """Returns AdamW; `is_scaled` says that the loss is scaled, and gradients with it."""
    betas = (config.beta1, config.beta2)
    is_ours = not is_scaled and all(CpuAdamW.takes(each.parameter) for each in parameters)
    return (CpuAdamW if is_ours else AdamW)(_groups(parameters), config.learning_rate, betas, config.eps, fused=True)


def _adamw_8bit(model: nn.Module, parameters: Sequence[TrainedParameter], config: OptimizerConfig) -> Optimizer:
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError(
            "`optimizer.name=adamw8bit` needs torchao, which is not installed\n"
            "hint: pip install 'llm-oxide[torchao]', or set `optimizer.name=adamw`"
        )
    if is_sharded(model):
        raise ConfigError("`optimizer.name=adamw8bit` can't train a sharded model\nhint: set `optimizer.name=adamw`")
    from torchao.optim import AdamW8bit

    betas = (config.beta1, config.beta2)
    optimizer: Optimizer = AdamW8bit(_groups(parameters), config.learning_rate, betas, config.eps)
    return optimizer


def _groups(parameters: Sequence[TrainedParameter]) -> list[dict[str, Any]]:
    """Joins parameters of equal rates to groups, in the order of the model."""
    alike: dict[tuple[float, float], list[TrainedParameter]] = defaultdict(list)
    for each in parameters:
        alike[each.rate_factor, each.weight_decay].append(each)
    return [
        {
            "params": [each.parameter for each in members],
            "rows": [each.rows for each in members],
            "rate_factor": factor,
            "weight_decay": decay,
        }
        for (factor, decay), members in alike.items()
    ]
