"""Finds the projections of a model by Hugging Face's names, and adapts, merges and lists them."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from llm.errors import CheckpointError, ConfigError
from llm.models.decoder import DecoderModel
from llm.models.families import Family, family_of
from llm.models.layers.lora import AdaptedLinear, Factors, LowRank
from llm.models.layers.packed import PackedLinear
from llm.settings.run import LoraConfig

ALL_LINEAR = "all-linear"
# Linear layers that `all-linear` leaves out: they choose experts or tokens.
_CHOOSING = ("lm_head", "router", "shared_expert_gate")


@dataclass(frozen=True)
class Projection:
    """A projection of a model as its family names it.

    Attributes:
        name: Hugging Face's name, such as `model.layers.0.self_attn.q_proj`.
        path: Our layer that it is part of.
        rows: Its rows of our layer's matrix.
        order: Order of rows; our row `i` is row `order[i]` on disk. None: the same order.
        is_transposed: Whether its matrix is transposed on disk.
        is_choosing: Whether the layer chooses experts or tokens.
    """

    name: str
    path: str
    rows: slice
    order: Tensor | None
    is_transposed: bool
    is_choosing: bool

    @property
    def key(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]

    def from_disk(self, values: Tensor) -> Tensor:
        """Returns values `[outputs, ...]` on disk in our order of rows."""
        return values if self.order is None else values[self.order.to(values.device)]

    def to_disk(self, values: Tensor) -> Tensor:
        """Returns values `[outputs, ...]` of ours in the order of rows on disk."""
        if self.order is None:
            return values
        found = torch.empty_like(values)
        found[self.order.to(values.device)] = values
        return found


def projections_of(model: DecoderModel) -> dict[str, Projection]:
    """Returns the projections of all linear layers by their names; stacked experts are none."""
    family = family_of(model.config)
    found = (
        part
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear | PackedLinear) and path != "lm_head"
        for part in _parts(path, layer, model, family)
    )
    return {part.name: part for part in found}


def _parts(path: str, layer: nn.Linear | PackedLinear, model: DecoderModel, family: Family) -> Iterator[Projection]:
    # Each element is the number of its row, so a view of the matrix shows the rows that it takes.
    numbered = torch.arange(layer.out_features, device="cpu")[:, None].expand(layer.out_features, layer.in_features)
    for piece in family.pieces(f"{path}.weight", numbered, model.config):
        is_transposed = piece.view.stride()[0] == 0
        rows = piece.view[0] if is_transposed else piece.view[:, 0]
        span = slice(int(rows[0]), int(rows[-1]) + 1)
        is_choosing = path.rpartition(".")[2] in _CHOOSING
        yield Projection(piece.name.removesuffix(".weight"), path, span, piece.rows, is_transposed, is_choosing)


def adapt(model: DecoderModel, settings: LoraConfig) -> None:
    """Freezes a model's weights and adds new adapters, the only weights that training then changes.

    Raises:
        ConfigError: A target is no projection of the model.
    """
    targets = _targets(projections_of(model), settings.target_modules)
    model.requires_grad_(False)
    for path, parts in _by_layer(targets).items():
        layer = cast(nn.Linear | PackedLinear, model.get_submodule(path))
        rank, device = settings.rank or 1, model.device
        adapters = {part.key: LowRank(layer.in_features, part.rows, rank, settings.scale, device) for part in parts}
        adapted = AdaptedLinear(layer, adapters, settings.input_dropout)
        if settings.use_dora:
            adapted.use_magnitudes()
        model.set_submodule(path, adapted)


def round_frozen(model: DecoderModel, dtype: torch.dtype) -> None:
    """Keeps the frozen matrices of adapted layers in the type of their products, which rounds them the same way.

    A pass under autocast to `dtype` computes the same bits. It needs half the memory for weights in fp32 and no copy of
    them, which it would keep for the backward pass.
    """
    for module in model.modules():
        if isinstance(module, AdaptedLinear):
            module.round_weight(dtype)


def _targets(projections: Mapping[str, Projection], asked: tuple[str, ...]) -> list[Projection]:
    """Returns the projections that `asked` names.

    Raises:
        ConfigError: A name is no projection of the model.
    """
    found: dict[str, Projection] = {}
    for target in asked:
        if target == ALL_LINEAR:
            found |= {name: part for name, part in projections.items() if not part.is_choosing}
            continue
        own = {name: part for name, part in projections.items() if name == target or name.endswith(f".{target}")}
        if not own:
            known = ", ".join(sorted({part.key for part in projections.values()}))
            raise ConfigError(
                f"`lora.target_modules` must be {ALL_LINEAR} or among {known}, got {target!r}\n"
                "hint: embeddings, the output layer and stacked experts keep their weights"
            )
        found |= own
    return [part for name, part in projections.items() if name in found]


def _by_layer(parts: list[Projection]) -> dict[str, list[Projection]]:
    found: dict[str, list[Projection]] = {}
    for part in parts:
        found.setdefault(part.path, []).append(part)
    return found


def is_adapted(model: nn.Module) -> bool:
    """Returns whether a model has adapters."""
    return any(isinstance(module, AdaptedLinear) for module in model.modules())


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Computes with the model's own weights alone while the context is open, as a reference of preferences needs them.

    Passes whose gradient is still to be computed must not be open across its borders. A model without adapters stays as
    it is.

    Example:
        >>> from llm import DecoderModel, ModelConfig
        >>> from llm.models.adapters import adapters_off
        >>> model = DecoderModel(ModelConfig(vocab_size=300))
        >>> with adapters_off(model):
        ...     reference = model.num_parameters()
    """
    layers = [module for module in model.modules() if isinstance(module, AdaptedLinear) and not module.is_off]
    try:
        for layer in layers:
            layer.is_off = True
        yield
    finally:
        for layer in layers:
            layer.is_off = False


def adapters_of(model: DecoderModel) -> Iterator[tuple[Projection, str, LowRank]]:
    """Yields each adapter with its projection and its path in the model."""
    for part in projections_of(model).values():
        layer = model.get_submodule(part.path)
        if isinstance(layer, AdaptedLinear) and part.key in layer.adapters:
            yield part, f"{part.path}.adapters.{part.key}", cast(LowRank, layer.adapters[part.key])


@torch.no_grad()
def merge_into(model: DecoderModel, adapters: Mapping[str, Factors]) -> None:
    """Adds adapters, by the names of their projections and with rows as on disk, to the weights of a model.

    Raises:
        CheckpointError: An adapter is of no projection of the model, or has another shape.
    """
    projections = projections_of(model)
    check_fit(model, projections, adapters)
    for name, factors in adapters.items():
        part = projections[name]
        weight = model.get_submodule(part.path).get_parameter("weight")
        magnitude = None if factors.magnitude is None else part.from_disk(factors.magnitude)
        own = Factors(factors.lora_a, part.from_disk(factors.lora_b), factors.scale, magnitude)
        weight[part.rows] = own.merged(weight[part.rows])


def check_fit(model: DecoderModel, projections: Mapping[str, Projection], adapters: Mapping[str, Factors]) -> None:
    """Checks names and shapes of adapters against a model.

    Raises:
        CheckpointError: An adapter is of no projection of the model, or has another shape; every one is listed.
    """
    problems = []
    for name, factors in adapters.items():
        part = projections.get(name)
        if part is None:
            problems.append(f"{name} is no linear layer of the base")
            continue
        num_inputs = cast(nn.Linear | PackedLinear, model.get_submodule(part.path)).in_features
        wanted = {"lora_A": [len(factors.lora_a), num_inputs], "lora_B": [_len(part.rows), len(factors.lora_a)]}
        for leaf, tensor in (("lora_A", factors.lora_a), ("lora_B", factors.lora_b)):
            if list(tensor.shape) != wanted[leaf]:
                problems.append(f"{name}.{leaf} has shape {list(tensor.shape)}, the base needs {wanted[leaf]}")
        if factors.magnitude is not None and len(factors.magnitude) != _len(part.rows):
            problems.append(f"{name} has {len(factors.magnitude)} magnitudes, the base needs {_len(part.rows)}")
    if problems:
        raise CheckpointError("the adapter is another base's:\n  " + "\n  ".join(problems))


def _len(rows: slice) -> int:
    return int(rows.stop - rows.start)
