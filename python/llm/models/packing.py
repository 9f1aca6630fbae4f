"""Packs quantised matrices of files into a model's layers instead of unpacking them to floats."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llm._rust import PACKED_SCHEMES, PACKED_STRIP_ROWS
from llm.errors import CheckpointError, InvalidArgumentError
from llm.models.decoder import DecoderModel
from llm.models.families import Family, Piece
from llm.models.gguf.reader import LazyTensor
from llm.models.gguf.types import Bytes
from llm.models.layers.packed import (
    PackedEmbedding,
    PackedLinear,
    PackedMatrix,
    PackedPart,
    bytes_of,
    huge_pages,
)
from llm.models.quantised import CodedTensor
from llm.models.quantised.blocks import blocks_of, scheme_to_pack
from llm.models.tensor_files import OnDisk

# The kernels multiply mixtures as floats.
_NEVER_PACKED = (".router.", ".shared_expert.", ".shared_expert_gate.")


class PackedPiece(NamedTuple):
    """A tensor on disk that is part of a matrix.

    Attributes:
        tensor: The tensor.
        scheme: The scheme that it is packed in.
        first: The matrix's row where the tensor begins.
    """

    tensor: LazyTensor | CodedTensor
    scheme: str
    first: int

    def blocks(self) -> Iterator[tuple[int, Bytes]]:
        """Yields the matrix's row where some blocks begin, and the blocks."""
        if isinstance(self.tensor, LazyTensor):
            yield self.first, self.tensor.blocks()
            return
        for start, codes in self.tensor.chunks():
            yield self.first + start, blocks_of(codes, self.scheme)


def pack_matrices(model: DecoderModel, family: Family, tensors: Mapping[str, OnDisk], dtype: torch.dtype) -> None:
    """Replaces layers of an empty model by packed ones, where all of a matrix has schemes that can be packed.

    Biases, norms and all other weights remain empty parameters. Packed bytes are as many as the file's, and the file's
    own are not needed afterwards.

    Args:
        model: Model from `empty_model`.
        family: Family that names the tensors.
        tensors: Tensors on disk; each packed one is read once.
        dtype: Type of the activations.

    Raises:
        CheckpointError: A scale is not a number.
    """
    is_tied = model.config.tie_word_embeddings
    matrices = packable(model, family, tensors)
    memory = huge_pages(sum(bytes_of(parts_of(pieces), _num_cols(pieces)) for pieces in matrices.values()))
    for name, pieces in matrices.items():
        path = name.removesuffix(".weight")
        layer = model.get_submodule(path)
        matrix = _packed(name, pieces, memory)
        memory = memory[matrix.data.nbytes :]
        packed = (
            PackedLinear(matrix, layer.bias, dtype) if isinstance(layer, nn.Linear) else PackedEmbedding(matrix, dtype)
        )
        model.set_submodule(path, packed)
    if is_tied and isinstance(model.embed_tokens, PackedEmbedding):
        model.set_submodule("lm_head", PackedLinear(model.embed_tokens.matrix, None, dtype))


def packable(model: DecoderModel, family: Family, tensors: Mapping[str, OnDisk]) -> dict[str, list[PackedPiece]]:
    """Returns the tensors, in the order of rows, of each matrix that can stay packed, by the matrix's name."""
    found: dict[str, list[PackedPiece]] = {}
    for name, empty in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        is_matrix = leaf == "weight" and isinstance(model.get_submodule(path), nn.Linear | nn.Embedding)
        pieces = _pieces(family.pieces(name, empty, model.config), tensors) if is_matrix and _is_taken(name) else []
        if pieces:
            found[name] = pieces
    return found


def _is_taken(name: str) -> bool:
    return not any(part in name for part in _NEVER_PACKED)


def _pieces(pieces: Sequence[Piece], tensors: Mapping[str, OnDisk]) -> list[PackedPiece]:
    """Returns the tensors that make up a matrix in the order of rows, or nothing if they can't be packed."""
    found: list[PackedPiece] = []
    for piece in pieces:
        tensor, view = tensors[piece.name], piece.view
        is_whole_rows = view.dim() == 2 and view.is_contiguous() and piece.rows is None
        if not is_whole_rows or not isinstance(tensor, LazyTensor | CodedTensor):
            return []
        first = view.storage_offset() // view.shape[1]
        scheme = _scheme(tensor)
        if scheme is None or first % PACKED_STRIP_ROWS:
            return []
        found.append(PackedPiece(tensor, scheme, first))
    return sorted(found, key=lambda piece: piece.first)


def _scheme(tensor: LazyTensor | CodedTensor) -> str | None:
    """Returns the scheme that a tensor can be packed in, or None."""
    if isinstance(tensor, CodedTensor):
        return scheme_to_pack(tensor)
    return tensor.type_name if tensor.is_packable and tensor.type_name in PACKED_SCHEMES else None


def parts_of(pieces: Sequence[PackedPiece]) -> list[PackedPart]:
    """Returns the parts of a matrix: neighbours of one scheme are joined."""
    groups = groupby(pieces, key=lambda piece: piece.scheme)
    return [PackedPart(scheme, sum(piece.tensor.shape[0] for piece in group)) for scheme, group in groups]


def _num_cols(pieces: Sequence[PackedPiece]) -> int:
    return pieces[0].tensor.shape[1]


def _packed(name: str, pieces: Sequence[PackedPiece], memory: Tensor) -> PackedMatrix:
    """Returns a matrix packed into the first bytes of `memory`."""
    matrix = PackedMatrix.empty(parts_of(pieces), _num_cols(pieces), memory)
    for piece in pieces:
        try:
            for first, blocks in piece.blocks():
                matrix.pack(blocks, first)
        except InvalidArgumentError as error:
            raise CheckpointError(f"weights must be finite, got NaN or infinity in {name}: {error}") from None
    return matrix
