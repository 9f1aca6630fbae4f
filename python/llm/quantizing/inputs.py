"""What the linear layers of a block are given on the calibration text."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from llm.models.layers.moe import Experts

# Matrices that choose experts: a wrong choice costs more than their few bytes.
_ROUTING = ("router", "shared_expert_gate")


@dataclass
class Inputs:
    """Sums over the tokens that a matrix multiplied.

    Attributes:
        gram: Sum of the products of all pairs of columns, fp32 `[I, I]`.
        magnitude: Sum of absolute values, fp32 `[I]`.
        num_tokens: Number of tokens.
    """

    gram: Tensor
    magnitude: Tensor
    num_tokens: int = 0

    @classmethod
    def none(cls, width: int) -> "Inputs":
        """Returns the sums of no tokens."""
        return cls(torch.zeros(width, width), torch.zeros(width))

    def add(self, rows: Tensor) -> None:
        """Adds tokens, fp32 `[T, I]`."""
        self.gram.addmm_(rows.T, rows)
        self.magnitude += rows.abs().sum(0)
        self.num_tokens += len(rows)


@dataclass
class Collected:
    """Inputs by parameter of a block; a stack of experts has one for each.

    Attributes:
        by_name: Inputs of each matrix.
    """

    by_name: dict[str, list[Inputs]] = field(default_factory=dict)

    def of(self, name: str) -> list[Inputs] | None:
        """Returns the inputs of a parameter, or None if none were collected."""
        return self.by_name.get(name)


def matrices(block: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters of a block that are quantised, by name: `[O, I]`, or `[E, O, I]` for experts."""
    found: dict[str, nn.Parameter] = {}
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in _ROUTING:
            found[f"{name}.weight"] = module.get_parameter("weight")
        elif isinstance(module, Experts):
            found |= {f"{name}.{leaf}": stack for leaf, stack in _stacks(module).items()}
    return found


def routers(block: nn.Module) -> list[str]:
    """Returns the linear layers of a block that keep their type."""
    return [
        name
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in _ROUTING
    ]


@contextmanager
def collecting(block: nn.Module) -> Iterator[Collected]:
    """Collects the inputs of a block's matrices while it runs."""
    collected = Collected()
    hooks = []
    wanted = matrices(block)
    for name, module in block.named_modules():
        if f"{name}.weight" in wanted:
            collected.by_name[f"{name}.weight"] = [inputs] = [Inputs.none(module.in_features)]
            hooks.append(module.register_forward_pre_hook(_adds_to(inputs)))
        elif isinstance(module, Experts):
            hooks.append(module.register_forward_pre_hook(_adds_experts(name, module, collected.by_name)))
    try:
        yield collected
    finally:
        for hook in hooks:
            hook.remove()


def _stacks(experts: Experts) -> dict[str, nn.Parameter]:
    return {"gate_up_proj": experts.gate_up_proj, "down_proj": experts.down_proj}


def _adds_to(inputs: Inputs) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _, given: inputs.add(given[0])


def _adds_experts(name: str, experts: Experts, by_name: dict[str, list[Inputs]]) -> Callable[..., None]:
    sizes: Mapping[str, int] = {leaf: stack.shape[2] for leaf, stack in _stacks(experts).items()}
    for leaf, width in sizes.items():
        by_name[f"{name}.{leaf}"] = [Inputs.none(width) for _ in range(len(experts.gate_up_proj))]

    def add(module: Experts, given: tuple[Tensor, Tensor]) -> None:
        rows, counts = given
        for leaf, values in (("gate_up_proj", rows), ("down_proj", module.inner(rows, counts))):
            for inputs, part in zip(by_name[f"{name}.{leaf}"], torch.split(values, counts.tolist()), strict=True):
                inputs.add(part)

    return add
