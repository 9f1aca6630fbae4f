"""Packs quantised matrices of files into a model's layers instead of unpacking them to floats."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from llm._rust import PACKED_SCHEMES, PACKED_STRIP_ROWS
from llm.errors import CheckpointError, InvalidArgumentError
from llm.models.decoder import DecoderModel
from llm.models.families import Family, Piece, family_named
from llm.models.gguf.lazy import JoinedTensor, LazyTensor
from llm.models.gguf.types import Bytes
from llm.models.hf import agreed, check_shapes, empty_model
from llm.models.layers.moe import Experts
from llm.models.layers.packed import (
    SCHEMES_ON_CUDA,
    PackedEmbedding,
    PackedExperts,
    PackedLinear,
    PackedMatrix,
    PackedPart,
    bytes_of,
    huge_pages,
    move_packed,
)
from llm.models.quantised import CodedTensor, QuantisedTensor
from llm.models.quantised.blocks import blocks_of, columns_by_group, scheme_to_pack
from llm.models.quantised.mxfp4 import MxTensor, fits_half
from llm.models.reward import kind_of_model
from llm.models.tensor_files import OnDisk
from llm.settings.model import ModelConfig

# What chooses and weighs experts is multiplied as floats.
_NEVER_PACKED = (".router.", ".shared_expert_gate.")
_CPU = torch.device("cpu")


Packable: TypeAlias = LazyTensor | JoinedTensor | CodedTensor | MxTensor


class PackedPiece(NamedTuple):
    """A tensor on disk that is part of a matrix.

    Attributes:
        tensor: The tensor.
        scheme: The scheme that it is packed in.
        first: The matrix's row where the tensor begins.
        name: The tensor's name.
        order: The tensor's row for each row of the matrix; None: the same order.
        expert: Whose matrix of a tensor that stacks those of all experts; None: the tensor is a matrix.
        columns: The tensor's column for each column of the matrix; None: the same order.
    """

    tensor: Packable
    scheme: str
    first: int
    name: str
    order: Tensor | None = None
    expert: int | None = None
    columns: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        if isinstance(self.tensor, MxTensor | JoinedTensor):
            return self.tensor.matrix_shape
        return self.tensor.shape[0], self.tensor.shape[1]

    def blocks(self) -> Iterator[tuple[int, Bytes]]:
        """Yields the matrix's row where some blocks begin, and the blocks."""
        if isinstance(self.tensor, CodedTensor):
            for start, codes in self.tensor.chunks():
                codes = codes if self.columns is None else codes.taken(self.columns)  # noqa: PLW2901 - the same rows
                yield self.first + start, blocks_of(codes, self.scheme)
            return
        blocks = self.tensor.blocks() if isinstance(self.tensor, LazyTensor) else self.tensor.blocks(self.expert or 0)
        if self.order is not None:
            blocks = blocks.reshape(len(self.order), -1)[self.order.numpy()].reshape(-1)
        yield self.first, blocks


def pack_matrices(
    model: DecoderModel,
    family: Family,
    tensors: Mapping[str, OnDisk],
    dtype: torch.dtype,
    device: torch.device = _CPU,
) -> None:
    """Replaces layers of an empty model by packed ones, where all of a matrix has schemes that can be packed.

    Biases, norms and all other weights remain empty parameters. Packed bytes are as many as the file's, and the file's
    own are not needed afterwards.

    Args:
        model: Model from `empty_model`.
        family: Family that names the tensors.
        tensors: Tensors on disk; each packed one is read once.
        dtype: Type of the activations.
        device: Where the packed matrices go.

    Raises:
        CheckpointError: A scale is not a number.
    """
    is_tied = model.config.tie_word_embeddings
    matrices = packable(model, family, tensors, device)
    memory = huge_pages(sum(bytes_of(parts_of(pieces), pieces[0].shape[1]) for pieces in matrices.values()))
    stacks: dict[str, dict[str, list[PackedMatrix]]] = {}
    for name, pieces in matrices.items():
        matrix = _packed(pieces, memory)
        memory = memory[matrix.data.nbytes :]
        path, _, leaf = name.rpartition(".")
        if leaf != "weight":  # an expert's number
            path, _, stack = path.rpartition(".")
            stacks.setdefault(path, {}).setdefault(stack, []).append(matrix)
            continue
        layer = model.get_submodule(path)
        packed = (
            PackedLinear(matrix, layer.bias, dtype) if isinstance(layer, nn.Linear) else PackedEmbedding(matrix, dtype)
        )
        model.set_submodule(path, packed)
    for path, found in stacks.items():
        plain = model.get_submodule(path)
        assert isinstance(plain, Experts)  # noqa: S101 - `packable` has looked
        model.set_submodule(path, PackedExperts(plain, found))
    if is_tied and isinstance(model.embed_tokens, PackedEmbedding):
        model.set_submodule("lm_head", PackedLinear(model.embed_tokens.matrix, None, dtype))
    move_packed(model, device)


def packable(
    model: DecoderModel, family: Family, tensors: Mapping[str, OnDisk], device: torch.device = _CPU
) -> dict[str, list[PackedPiece]]:
    """Returns the tensors, in the order of rows, of each matrix that can stay packed, by the matrix's name.

    The matrices of experts have a number after the stack's name. All of a layer can stay packed, or none. On CUDA,
    these are linear layers and embeddings in `SCHEMES_ON_CUDA`.
    """
    found: dict[str, list[PackedPiece]] = {}
    for name, empty in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        is_matrix = leaf == "weight" and isinstance(model.get_submodule(path), nn.Linear | nn.Embedding)
        pieces = _pieces(family.pieces(name, empty, model.config), tensors) if is_matrix and _is_taken(name) else []
        # Rows of embeddings are read in their own order.
        is_read = device.type == "cpu" or all(piece.scheme in SCHEMES_ON_CUDA for piece in pieces)
        if pieces and is_read and (pieces[0].columns is None or isinstance(model.get_submodule(path), nn.Linear)):
            found[name] = pieces
    if device.type != "cpu":
        return found
    for path, module in model.named_modules():
        if isinstance(module, Experts):
            found |= _stacks(
                path, module, lambda name, empty: _pieces(family.pieces(name, empty, model.config), tensors)
            )
    return found


def packable_in(
    values: Mapping[str, Any], tensors: Mapping[str, OnDisk], device: torch.device = _CPU
) -> tuple[ModelConfig, Mapping[str, OnDisk], dict[str, list[PackedPiece]]]:
    """Returns config and weights of a checkpoint as `agreed` does, and what `packable` finds among them.

    Args:
        values: Of the model's `config.json`.
        tensors: Tensors on disk. Scales and zero points may be read.
        device: Where the packed matrices go.

    Raises:
        CheckpointError: Contradictory values or tensors; every missing, unexpected or misshaped one is listed.
    """
    family = family_named(values)
    config, named = agreed(family.config_from(values), tensors, family)
    model = empty_model(config, kind_of_model(values))
    check_shapes(named, model.state_dict(), config, family)
    return config, named, packable(model, family, named, device)


def _stacks(
    path: str, experts: Experts, pieces_of: Callable[[str, Tensor], list[PackedPiece]]
) -> dict[str, list[PackedPiece]]:
    """Returns the tensors of each expert's matrices, or nothing if one of them can't stay packed."""
    found: dict[str, list[PackedPiece]] = {}
    for stack in ("gate_up_proj", "down_proj"):
        empty = experts.get_parameter(stack)
        num_experts, num_rows, _ = empty.shape
        pieces = pieces_of(f"{path}.{stack}", empty)
        if not pieces or num_rows % PACKED_STRIP_ROWS or pieces[0].columns is not None:
            return {}
        for expert in range(num_experts):
            start = expert * num_rows
            own = [piece for piece in pieces if start <= piece.first < start + num_rows]
            found[f"{path}.{stack}.{expert}"] = [piece._replace(first=piece.first - start) for piece in own]
    return found


def is_quantised(tensor: OnDisk) -> bool:
    """Whether a tensor on disk holds whole numbers or blocks with scales."""
    if isinstance(tensor, LazyTensor | JoinedTensor):
        return tensor.is_quantised
    return isinstance(tensor, QuantisedTensor)


def expanded_tensors(
    values: Mapping[str, Any], tensors: Mapping[str, OnDisk], device: torch.device = _CPU
) -> dict[str, str]:
    """Returns the types of the quantised tensors that `pack_matrices` leaves to be expanded, by name.

    Args:
        values: Of the model's `config.json`.
        tensors: Tensors on disk. Scales and zero points may be read.
        device: Where the packed matrices go.

    Raises:
        CheckpointError: Contradictory values or tensors.
    """
    _, named, found = packable_in(values, tensors, device)
    kept = {id(piece.tensor) for pieces in found.values() for piece in pieces}
    quantised = {name: tensor for name, tensor in named.items() if is_quantised(tensor)}
    return {name: tensor.type_name for name, tensor in quantised.items() if id(tensor) not in kept}


def _is_taken(name: str) -> bool:
    return not any(part in name for part in _NEVER_PACKED)


def _pieces(pieces: Sequence[Piece], tensors: Mapping[str, OnDisk]) -> list[PackedPiece]:
    """Returns the tensors that make up a matrix in the order of rows, or nothing if they can't be packed."""
    found: list[PackedPiece] = []
    for piece in pieces:
        # Transformers 5 can store the experts of a layer as one tensor, under another name.
        tensor, view = tensors.get(piece.name), piece.view
        if isinstance(tensor, JoinedTensor) or (isinstance(tensor, MxTensor) and tensor.is_turned):
            scheme = _scheme(tensor)
            stack = [] if scheme is None else _stacked_pieces(tensor, piece, scheme)
            if not stack:
                return []
            found += stack
            continue
        is_ordered = piece.rows is None or isinstance(tensor, LazyTensor)
        is_whole_rows = view.dim() == 2 and view.is_contiguous() and is_ordered
        if not is_whole_rows or not isinstance(tensor, Packable):
            return []
        first = view.storage_offset() // view.shape[1]
        scheme = _scheme(tensor)
        if scheme is None or first % PACKED_STRIP_ROWS:
            return []
        columns = columns_by_group(tensor) if isinstance(tensor, CodedTensor) else None
        found.append(PackedPiece(tensor, scheme, first, piece.name, piece.rows, columns=columns))
    if any(not _are_alike(found[0].columns, piece.columns) for piece in found[1:]):
        return []
    return sorted(found, key=lambda piece: piece.first)


def _are_alike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _stacked_pieces(tensor: MxTensor | JoinedTensor, piece: Piece, scheme: str) -> list[PackedPiece]:
    """Returns each expert's matrix of a tensor `[E, I, O]`, whose outputs may take turns, as gate and up do in pairs.

    The piece's view is the place of the tensor in our parameter `[E, O, I]`, the outputs as one or two dimensions.
    """
    view, (num_rows, num_cols) = piece.view, tensor.matrix_shape
    if view.stride(1) != 1 or view.shape[1] != num_cols:
        return []
    places = torch.tensor(view.storage_offset())
    for dim in (0, *range(2, view.dim())):
        places = places.unsqueeze(-1) + torch.arange(view.shape[dim]) * view.stride(dim)
    rows = torch.div(places.flatten(1), num_cols, rounding_mode="floor")  # (E, O): our row of each output
    return [
        PackedPiece(tensor, scheme, int(own.min()), piece.name, own.argsort(), expert)
        for expert, own in enumerate(rows)
        if len(own) == num_rows
    ]


def _scheme(tensor: Packable) -> str | None:
    """Returns the scheme that a tensor can be packed in, or None."""
    if isinstance(tensor, CodedTensor):
        return scheme_to_pack(tensor)
    if isinstance(tensor, MxTensor):
        return "MXFP4" if tensor.fits_half else None
    is_packable = tensor.is_stack if isinstance(tensor, JoinedTensor) else tensor.is_packable
    if not is_packable or tensor.type_name not in PACKED_SCHEMES:
        return None
    parts = tensor.parts if isinstance(tensor, JoinedTensor) else (tensor,)
    if tensor.type_name == "MXFP4" and not all(fits_half(part.blocks()) for part in parts):
        return None
    return tensor.type_name


def parts_of(pieces: Sequence[PackedPiece]) -> list[PackedPart]:
    """Returns the parts of a matrix: neighbours of one scheme are joined."""
    groups = groupby(pieces, key=lambda piece: piece.scheme)
    return [PackedPart(scheme, sum(piece.shape[0] for piece in group)) for scheme, group in groups]


def _packed(pieces: Sequence[PackedPiece], memory: Tensor) -> PackedMatrix:
    """Returns a matrix packed into the first bytes of `memory`."""
    matrix = PackedMatrix.empty(parts_of(pieces), pieces[0].shape[1], memory, pieces[0].columns)
    for piece in pieces:
        try:
            for first, blocks in piece.blocks():
                matrix.pack(blocks, first)
        except InvalidArgumentError as error:
            raise CheckpointError(f"weights must be finite, got NaN or infinity in {piece.name}: {error}") from None
        if isinstance(piece.tensor, LazyTensor):
            piece.tensor.release()
        elif isinstance(piece.tensor, JoinedTensor):
            piece.tensor.release(piece.expert or 0)
    return matrix
