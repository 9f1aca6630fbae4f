"""Which rule updates a parameter, and with which learning rate and weight decay."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from llm.errors import ConfigError
from llm.settings.run import OptimizerConfig, ParameterGroup

# Modules whose matrix turns hidden states into scores of tokens.
_OUTPUTS = ("lm_head",)


@dataclass(frozen=True)
class TrainedParameter:
    """A parameter and how it is updated.

    Attributes:
        name: Name in the model.
        parameter: The parameter itself.
        is_hidden_matrix: Whether it maps hidden states to hidden states, as one matrix or a stack of matrices.
        rows: Rows of each matrix that the parameter joins, from top to bottom; empty for a single matrix.
        rate_factor: Its learning rate / the optimizer's.
        weight_decay: Its weight decay.
    """

    name: str
    parameter: nn.Parameter
    is_hidden_matrix: bool
    rows: tuple[int, ...]
    rate_factor: float
    weight_decay: float


def trained_parameters(model: nn.Module, config: OptimizerConfig) -> list[TrainedParameter]:
    """Returns the parameters of `model` that need gradients, with their rates.

    Raises:
        ConfigError: A group of `optimizer.groups` matches no parameter or is no regular expression.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = _first_matches([name for name, _ in named], config.groups)
    hidden, rows = _hidden_matrices(model), _joined_rows(model)
    found = []
    for name, parameter in named:
        factor, decay = _rates(parameter, groups.get(name), config)
        found.append(TrainedParameter(name, parameter, name in hidden, rows.get(name, ()), factor, decay))
    return found


def _rates(parameter: nn.Parameter, group: ParameterGroup | None, config: OptimizerConfig) -> tuple[float, float]:
    """Returns the ratio of a parameter's learning rate to the optimizer's, and its weight decay."""
    rate, decay = (None, None) if group is None else (group.learning_rate, group.weight_decay)
    if decay is None:
        decay = config.weight_decay if parameter.dim() >= 2 else 0.0
    return 1.0 if rate is None else rate / config.learning_rate, decay


def _first_matches(names: Sequence[str], groups: Sequence[ParameterGroup]) -> dict[str, ParameterGroup]:
    """Returns the first group that matches each name.

    Raises:
        ConfigError: A group matches no name or is no regular expression.
    """
    found: dict[str, ParameterGroup] = {}
    for idx, group in enumerate(groups):
        try:
            matched = [name for name in names if re.search(group.match, name)]
        except re.error as error:
            raise ConfigError(
                f"`optimizer.groups[{idx}].match` must be a regular expression, got {group.match!r}: {error}"
            ) from None
        if not matched:
            known = sorted({re.sub(r"[.][0-9]+[.]", ".N.", name) for name in names})
            raise ConfigError(
                f"`optimizer.groups[{idx}].match` must match a parameter's name, got {group.match!r}\n"
                f"hint: the parameters are {', '.join(known)}"
            )
        for name in matched:
            found.setdefault(name, group)
    return found


def _hidden_matrices(model: nn.Module) -> set[str]:
    """Returns the names of linear layers' weights and of experts' stacked weights, without embeddings and outputs."""
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found = set()
    for path, module in model.named_modules():
        if path.rpartition(".")[2] in _OUTPUTS:
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            is_matrix = (isinstance(module, nn.Linear) and parameter.dim() == 2) or parameter.dim() == 3
            if is_matrix and id(parameter) not in shared and min(parameter.shape[-2:]) > 1:
                found.add(f"{path}.{leaf}" if path else leaf)
    return found


def _joined_rows(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns the rows of each matrix of the parameters that join several, as the modules' `joined_rows` declare."""
    found = {}
    for path, module in model.named_modules():
        declared: dict[str, tuple[int, ...]] = getattr(module, "joined_rows", {})
        for leaf, rows in declared.items():
            found[f"{path}.{leaf}" if path else leaf] = rows
    return found
