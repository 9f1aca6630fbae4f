"""Names, shapes and config on disk are Hugging Face's; fusing happens in memory."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from llm.errors import CheckpointError
from llm.models.decoder import DecoderModel
from llm.models.families import Family, Piece, family_named, family_of
from llm.models.tensor_files import OnDisk
from llm.settings.model import ModelConfig

TIED = "lm_head.weight"


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a model, in the family that `family_of` finds."""
    return family_of(config).config_to(config)


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Reads a `config.json`.

    Raises:
        CheckpointError: An unknown family, or a feature this package doesn't compute.
    """
    return family_named(values).config_from(values)


def weights_to_hf(state: Mapping[str, Tensor], config: ModelConfig, family: Family | None = None) -> dict[str, Tensor]:
    """Our parameters under a family's names, fused ones split; a tied output projection is left out."""
    return {piece.name: piece.extract() for piece in weight_parts(state, config, family or family_of(config))}


def weight_parts(state: Mapping[str, Tensor], config: ModelConfig, family: Family) -> Iterator[Piece]:
    """The family's tensors in our parameters, not yet copied; a tied output projection is left out."""
    for name, tensor in state.items():
        if name != TIED or not config.tie_word_embeddings:
            yield from family.pieces(name, tensor, config)


def weights_from_hf(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Hugging Face's parameters under our names, q/k/v and gate/up fused.

    Raises:
        CheckpointError: Tensors are missing, unexpected or misshaped; every one is listed.
    """
    family = family_of(config)
    model = empty_model(config)
    check_shapes(tensors, model.state_dict(), config, family)
    state = {}
    for name, tensor in model.state_dict().items():
        source = "embed_tokens.weight" if name == TIED and config.tie_word_embeddings else name
        first = tensors[family.pieces(source, tensor, config)[0].name]
        state[name] = torch.empty(tensor.shape, dtype=first.dtype)
        for piece in family.pieces(source, state[name], config):
            piece.fill(tensors[piece.name])
    return state


def empty_model(config: ModelConfig) -> DecoderModel:
    """The model without memory for its parameters."""
    with torch.device("meta"):
        return DecoderModel(config)


def fill_model(
    model: DecoderModel,
    family: Family,
    load: Callable[[str], Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Gives an empty model its parameters, one after the other.

    Args:
        model: From `empty_model`.
        family: Whose names `load` knows.
        load: A tensor by its name, in any dtype; it is asked for each one once.
        dtype: Of the parameters.
        device: Where they go.

    Raises:
        CheckpointError: A weight is not a number.
    """
    broken: list[str] = []
    for name, empty in list(model.named_parameters()):
        tensor = torch.empty(empty.shape, dtype=dtype, device=device)
        for piece in family.pieces(name, tensor, model.config):
            piece.fill(load(piece.name))
            # The least and the greatest are found in one pass, and not a number if any is none.
            if not all(math.isfinite(value) for value in piece.view.aminmax()):
                broken.append(piece.name)
        _replace(model, name, torch.nn.Parameter(tensor))
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    if broken:
        raise CheckpointError(
            f"weights must be finite in {dtype}, got NaN or infinity in:\n  "
            + "\n  ".join(broken)
            + "\nhint: a wider `dtype` helps where numbers are too large for this one"
        )


def _replace(model: DecoderModel, name: str, parameter: torch.nn.Parameter) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, parameter)


def check_shapes(
    tensors: Mapping[str, OnDisk] | Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    config: ModelConfig,
    family: Family,
) -> None:
    """Compares what is on disk with what the config says.

    Raises:
        CheckpointError: Tensors are missing, unexpected or misshaped; every one is listed.
    """
    expected = {piece.name: piece.view.shape for piece in weight_parts(state, config, family)}
    problems = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in tensors]
    for name, tensor in tensors.items():
        if (name == TIED and config.tie_word_embeddings) or re.fullmatch(family.ignored, name):
            continue
        if name not in expected:
            problems.append(f"unexpected {name} {list(tensor.shape)}")
        elif list(tensor.shape) != list(expected[name]):
            problems.append(f"{name} has shape {list(tensor.shape)}, config.json says {list(expected[name])}")
    if problems:
        raise CheckpointError("weights and config.json disagree:\n  " + "\n  ".join(problems))
