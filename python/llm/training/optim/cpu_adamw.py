"""AdamW on a CPU in two passes over memory: the gradients' norm, then clipping and the step at once."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from llm._rust import AdamW as Kernel
from llm.models.layers.cpu_training import Linear
from llm.training.allocator import lasting_zeros
from llm.training.distributed import is_shard


class CpuAdamW(AdamW):
    """PyTorch's fused AdamW for contiguous fp32 parameters on a CPU, with one call for all of them.

    State, its names and the results are PyTorch's, the results to rounding; they are the same with every number of
    threads. PyTorch runs an operation per parameter, whose starts cost more than the arithmetic where parameters are
    small, and it scales the gradients in a pass of their own. Gradients may be bf16.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
    """

    _scale = 1.0
    _states: tuple[dict[str, Tensor], ...] = ()
    _addresses: tuple[int, ...] = ()
    _kernel: Kernel | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters. PyTorch's wrapper loads its compiler for this: 157 MiB, and seconds of a run's start."""
        plain = getattr(AdamW.add_param_group, "__wrapped__", AdamW.add_param_group)
        plain(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops all gradients, or sets them to zero; loads no compiler for it either."""
        for parameter in (each for group in self.param_groups for each in group["params"]):
            if set_to_none or parameter.grad is None:
                parameter.grad = None
            else:
                parameter.grad.detach_().zero_()

    @staticmethod
    def takes(parameter: Tensor) -> bool:
        """Returns whether the kernel updates such a parameter."""
        is_plain = not is_shard(parameter) and parameter.layout == torch.strided and parameter.is_contiguous()
        return is_plain and parameter.device.type == "cpu" and parameter.dtype == torch.float32

    @staticmethod
    def keep_gradients_narrow(model: nn.Module) -> None:
        """Lets the gradients of a model's matrices be kept in bf16, the type of the products that they come from.

        The kernel widens them, so results are the same bits, provided that each is the gradient of one product: a step
        must be one pass in one process, with products in bf16.
        """
        for layer in model.modules():
            if type(layer) is Linear and CpuAdamW.takes(layer.weight):
                layer.weight.grad_dtype = torch.bfloat16

    @torch.no_grad()
    def clip(self, max_norm: float | None) -> float:
        """Returns the norm of all gradients, and scales those of the next step to at most `max_norm` (None: no limit).

        The gradients themselves keep their values.
        """
        kernel, _, gradients = self._prepared()
        norm = kernel.norm(gradients)
        self._scale = 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))
        return norm

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates all parameters that have gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        kernel, rules, gradients = self._prepared()
        kernel.step(gradients, rules, self._scale)
        self._scale = 1.0
        return loss

    def _prepared(self) -> tuple[Kernel, list[tuple[float, ...]], list[Tensor]]:
        """Returns the kernel of the parameters that have gradients, with their settings and gradients."""
        parameters, rules, gradients = [], [], []
        for group in self.param_groups:
            rule = (group["lr"], group["weight_decay"], *group["betas"], group["eps"])
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameters.append(parameter)
                    rules.append(rule)
                    gradients.append(parameter.grad.contiguous())
        states = tuple(map(self._state_of, parameters))
        addresses = tuple(parameter.data_ptr() for parameter in parameters)
        is_known = len(states) == len(self._states) and all(map(operator.is_, states, self._states))
        if self._kernel is None or not is_known or addresses != self._addresses:
            tensors = [
                (parameter, state["exp_avg"], state["exp_avg_sq"], state["step"])
                for parameter, state in zip(parameters, states, strict=True)
            ]
            self._kernel = Kernel(tensors, torch.get_num_threads())
            self._states, self._addresses = states, addresses
        return self._kernel, rules, gradients

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = lasting_zeros(parameter), lasting_zeros(parameter)
        return state
