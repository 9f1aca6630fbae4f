"""Converts Hugging Face's config and tensors to ours and back; projections are fused in memory only."""

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from llm.errors import CheckpointError, LLMWarning
from llm.models.decoder import DecoderModel
from llm.models.families import Family, Piece, family_named, family_of
from llm.models.quantised import QuantisedTensor
from llm.models.tensor_files import OnDisk
from llm.settings.model import ModelConfig

TIED = "lm_head.weight"
_COMPARED_ROWS = 1024
_MAX_PROBLEMS = 20


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Returns the `config.json` of a model, in the family that `family_of` finds."""
    return family_of(config).config_to(config)


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Reads a `config.json`.

    Raises:
        CheckpointError: An unknown family, or a feature that this package does not support.
    """
    return family_named(values).config_from(values)


def weights_to_hf(state: Mapping[str, Tensor], config: ModelConfig, family: Family | None = None) -> dict[str, Tensor]:
    """Returns our parameters under a family's names, fused ones split, without a tied output projection."""
    return {piece.name: piece.extract() for piece in weight_parts(state, config, family or family_of(config))}


def weight_parts(state: Mapping[str, Tensor], config: ModelConfig, family: Family) -> Iterator[Piece]:
    """Yields the family's tensors as views of our parameters, without a tied output projection."""
    for name, tensor in state.items():
        if name != TIED or not config.tie_word_embeddings:
            yield from family.pieces(name, tensor, config)


_OWN_DTYPES = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def own_dtype(values: Mapping[str, Any], tensors: Mapping[str, OnDisk]) -> str:
    """Returns the dtype that a checkpoint names, else that of its first floating tensor, as transformers does."""
    named = values.get("dtype") or values.get("torch_dtype")
    if named is not None:
        return str(named)
    kinds = (tensor.type_name for tensor in tensors.values())
    return next((_OWN_DTYPES[kind] for kind in kinds if kind in _OWN_DTYPES), "float32")


def known_names(tensors: Mapping[str, OnDisk], family: Family) -> dict[str, OnDisk]:
    """Returns the tensors under the family's names, if files omit a prefix or use the names of transformers 5.

    Raises:
        CheckpointError: The weights of an adapter.
    """
    if any(".lora_A." in name or ".lora_B." in name for name in tensors):
        raise CheckpointError(
            "the weights are an adapter's (LoRA), not a whole model's\nhint: merge the adapter into its model first"
        )
    first = family.prefix.partition(".")[0] + "."
    is_bare = not any(name.startswith(first) for name in tensors)
    found = {}
    for name, tensor in tensors.items():
        if is_bare and name != TIED:
            name = first + name  # noqa: PLW2901 - one tensor, two names
        if family.model_type == "mixtral":
            name = name.replace(".mlp.gate.", ".block_sparse_moe.gate.")  # noqa: PLW2901
        found[name] = tensor
    return found


def settle_head(
    tensors: dict[str, OnDisk], config: ModelConfig, family: Family
) -> tuple[dict[str, OnDisk], ModelConfig]:
    """Returns tensors and config that agree on whether the output projection is the embedding, as transformers does.

    A file may contain the shared matrix only under the projection's name. Where a file contains both matrices and they
    differ, the model is untied, with a warning.
    """
    embedding = f"{family.top['embed_tokens']}.weight"
    if not config.tie_word_embeddings or TIED not in tensors:
        return tensors, config
    if embedding not in tensors:
        return {embedding if name == TIED else name: tensor for name, tensor in tensors.items()}, config
    head, shared = tensors[TIED], tensors[embedding]
    if list(head.shape) != list(shared.shape) or _are_equal(head.load(), shared.load()):
        return tensors, config
    warnings.warn(
        f"config.json has `tie_word_embeddings` true, but {TIED} differs from {embedding}: both are used",
        LLMWarning,
        stacklevel=4,
    )
    return tensors, msgspec.structs.replace(config, tie_word_embeddings=False)


def _are_equal(head: Tensor, shared: Tensor) -> bool:
    """Compares two mapped matrices without a copy; matrices of different types need a copy of a few rows each."""
    if head.dtype == shared.dtype:
        return torch.equal(head, shared)
    rows = zip(torch.split(head, _COMPARED_ROWS), torch.split(shared, _COMPARED_ROWS), strict=True)
    return all(torch.equal(mine.double(), theirs.double()) for mine, theirs in rows)


def agreed(
    config: ModelConfig, tensors: Mapping[str, OnDisk], family: Family
) -> tuple[ModelConfig, Mapping[str, OnDisk]]:
    """Returns config and weights as the file means them, the weights under the family's names.

    Raises:
        CheckpointError: The weights of an adapter, of too few layers or of the wrong type.
    """
    named = known_names(tensors, family)
    check_layers(named, config, family)
    for name, tensor in named.items():
        if not re.fullmatch(family.ignored, name):
            check_type(name, tensor)
    named, config = settle_head(named, config, family)
    return config, named


def check_layers(tensors: Mapping[str, OnDisk], config: ModelConfig, family: Family) -> None:
    """Checks the number of layers by names alone, before a model of that size is built.

    Raises:
        CheckpointError: The weights hold fewer layers.
    """
    start, _, end = family.prefix.partition("{layer}")
    pattern = re.compile(re.escape(start) + r"([0-9]{1,9})" + re.escape(end))
    held = {int(match.group(1)) for match in map(pattern.match, tensors) if match}
    if held and len(held) < config.num_hidden_layers:
        first = next(layer for layer in range(len(held) + 1) if layer not in held)
        raise CheckpointError(
            f"weights and config.json disagree: config.json says {config.num_hidden_layers} layers, "
            f"the weights hold {len(held)} and no layer {first}"
        )


def _pieces(tensors: Mapping[str, Any], family: Family, name: str, ours: Tensor, config: ModelConfig) -> list[Piece]:
    """Returns the tensors on disk that make up ours; transformers 5 can store stacked experts as one tensor."""
    fused, pieces = f"model.{name}", family.pieces(name, ours, config)
    if ".experts." in name and fused in tensors and pieces[0].name != fused:
        return [Piece(fused, ours)]
    return pieces


def empty_model(config: ModelConfig, kind: type[DecoderModel] = DecoderModel) -> DecoderModel:
    """Builds the model without memory for its parameters."""
    try:
        with torch.device("meta"):
            return kind(config)
    except RuntimeError as error:
        raise CheckpointError(f"config.json asks for a model that is too large: {error}") from None


def fill_model(
    model: DecoderModel,
    family: Family,
    tensors: Mapping[str, OnDisk],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Fills an empty model with its parameters, one after the other.

    Args:
        model: Model from `empty_model`.
        family: Family that names the tensors.
        tensors: Tensors on disk; each is loaded once.
        dtype: Type of the parameters.
        device: Device of the parameters.

    Raises:
        CheckpointError: A weight is not a number.
    """
    for name, tensor in read_parameters(model, family, tensors, dtype=dtype, device=device):
        place(model, name, torch.nn.Parameter(tensor))
    is_tied = model.config.tie_word_embeddings and hasattr(model, "lm_head")
    if is_tied and isinstance(model.embed_tokens, torch.nn.Embedding):
        model.lm_head.weight = model.embed_tokens.weight


def read_parameters(
    model: DecoderModel,
    family: Family,
    tensors: Mapping[str, OnDisk],
    *,
    dtype: torch.dtype,
    device: torch.device,
    prefixes: tuple[str, ...] = ("",),
) -> Iterator[tuple[str, Tensor]]:
    """Yields the parameters of a model of the same shape by name, one after the other; see `fill_model`.

    Only parameters whose names begin with one of `prefixes` are read.

    Raises:
        CheckpointError: A weight is not a number; raised after the last parameter.
    """
    broken: list[str] = []
    for name, empty in list(model.named_parameters()):
        if not name.startswith(prefixes):
            continue
        # Rounding these numbers would change which experts are chosen.
        kept = torch.float32 if name.endswith("score_correction") else dtype
        tensor = torch.empty(empty.shape, dtype=kept, device=device)
        for piece in _pieces(tensors, family, name, tensor, model.config):
            piece.fill(tensors[piece.name].load(kept))
            if not is_finite(piece):
                broken.append(piece.name)
        yield name, tensor
    raise_if_broken(broken, dtype)


def is_finite(piece: Piece) -> bool:
    """Whether every number of a filled piece is finite."""
    # One pass finds minimum and maximum; both are NaN if any value is.
    return all(math.isfinite(value) for value in piece.view.aminmax())


def raise_if_broken(names: Sequence[str], dtype: torch.dtype) -> None:
    """Raises an error that names the weights that are not finite, if there are any.

    Raises:
        CheckpointError: There are.
    """
    if names:
        raise CheckpointError(
            f"weights must be finite in {dtype}, got NaN or infinity in:\n  "
            + _listed(names)
            + "\nhint: a wider `dtype` helps where numbers are too large for this one"
        )


def place(model: DecoderModel, name: str, parameter: torch.nn.Parameter) -> None:
    """Puts a parameter in the place of the one that has this name."""
    module, _, leaf = name.rpartition(".")
    parameter.requires_grad_(model.get_parameter(name).requires_grad)
    setattr(model.get_submodule(module), leaf, parameter)


def check_type(name: str, tensor: OnDisk) -> None:
    """Checks that a weight holds floating-point numbers, before any weight is read.

    Raises:
        CheckpointError: Integers, booleans, complex numbers or floats of fewer than 8 bits.
    """
    if tensor.type_name.startswith(("F4", "F6_", "I", "U", "BOOL", "C", "int", "uint", "bool", "complex")):
        raise CheckpointError(
            f"weights must be floating-point numbers of at least 8 bits, got {name} ({tensor.type_name})\n"
            "hint: quantized weights need a scheme that this package reads, such as a GGUF file's"
        )


def _is_spare_bias(name: str, tensors: Mapping[str, OnDisk] | Mapping[str, Tensor]) -> bool:
    """Whether a bias adds nothing: quantizers store zeros for layers that have none."""
    tensor, weight = tensors[name], tensors.get(name.removesuffix("bias") + "weight")
    if not name.endswith(".bias") or not isinstance(weight, QuantisedTensor) or isinstance(tensor, Tensor):
        return False
    return not bool(tensor.load().any())


def check_shapes(
    tensors: Mapping[str, OnDisk] | Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    config: ModelConfig,
    family: Family,
) -> None:
    """Checks that names and shapes on disk match the config.

    Raises:
        CheckpointError: Tensors are missing, unexpected or misshaped; the first ones are listed.
    """
    parts = (
        _pieces(tensors, family, name, ours, config)
        for name, ours in state.items()
        if name != TIED or not config.tie_word_embeddings
    )
    expected = {piece.name: piece.shape for pieces in parts for piece in pieces}
    problems = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in tensors]
    for name, tensor in tensors.items():
        if (name == TIED and config.tie_word_embeddings) or re.fullmatch(family.ignored, name):
            continue
        if name not in expected and _is_spare_bias(name, tensors):
            continue
        if name not in expected:
            problems.append(f"unexpected {name} {list(tensor.shape)}")
        elif list(tensor.shape) != list(expected[name]):
            problems.append(f"{name} has shape {list(tensor.shape)}, config.json says {list(expected[name])}")
    if problems:
        raise CheckpointError(f"weights and config.json disagree:\n  {_listed(problems)}")


def _listed(problems: Sequence[str]) -> str:
    """Returns problems on a line each, and how many more there are after the first ones."""
    rest = [f"and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
    return "\n  ".join([*problems[:_MAX_PROBLEMS], *rest])
