"""Packs the quantised matrices of a GGUF file into a model's layers instead of unpacking them to floats."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llm._rust import PACKED_SCHEMES
from llm.errors import CheckpointError, InvalidArgumentError
from llm.models.decoder import DecoderModel
from llm.models.families import Family, Piece
from llm.models.gguf.reader import LazyTensor
from llm.models.layers.packed import PackedEmbedding, PackedLinear, PackedMatrix
from llm.models.tensor_files import OnDisk

# The kernels multiply mixtures as floats.
_NEVER_PACKED = (".router.", ".shared_expert.", ".shared_expert_gate.")


class _Part(NamedTuple):
    """A tensor on disk, and the row of our matrix where it begins."""

    tensor: LazyTensor
    first: int


def pack_matrices(model: DecoderModel, family: Family, tensors: Mapping[str, OnDisk], dtype: torch.dtype) -> None:
    """Replaces layers of an empty model by packed ones, where all of a matrix has one scheme that can be packed.

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
    for name, empty in list(model.named_parameters()):
        path, _, leaf = name.rpartition(".")
        layer = model.get_submodule(path)
        if leaf != "weight" or not isinstance(layer, nn.Linear | nn.Embedding) or _is_left_out(name):
            continue
        parts = _parts(family.pieces(name, empty, model.config), tensors)
        if parts:
            matrix = _packed(name, parts, empty)
            packed = (
                PackedEmbedding(matrix, dtype)
                if isinstance(layer, nn.Embedding)
                else PackedLinear(matrix, layer.bias, dtype)
            )
            model.set_submodule(path, packed)
    if is_tied and isinstance(model.embed_tokens, PackedEmbedding):
        model.set_submodule("lm_head", PackedLinear(model.embed_tokens.matrix, None, dtype))


def _is_left_out(name: str) -> bool:
    return any(part in name for part in _NEVER_PACKED)


def _parts(pieces: Sequence[Piece], tensors: Mapping[str, OnDisk]) -> list[_Part]:
    """Returns the tensors that make up a matrix, or nothing if they can't be packed together."""
    found: list[_Part] = []
    for piece in pieces:
        tensor, view = tensors[piece.name], piece.view
        is_whole_rows = view.dim() == 2 and view.is_contiguous() and piece.rows is None
        if not isinstance(tensor, LazyTensor) or not tensor.is_packable or not is_whole_rows:
            return []
        found.append(_Part(tensor, view.storage_offset() // view.shape[1]))
    schemes = {part.tensor.type_name for part in found}
    return found if len(schemes) == 1 and schemes.issubset(PACKED_SCHEMES) else []


def _packed(name: str, parts: Sequence[_Part], empty: Tensor) -> PackedMatrix:
    matrix = PackedMatrix.empty(parts[0].tensor.type_name, *empty.shape)
    for part in parts:
        try:
            matrix.pack(part.tensor.blocks(), part.first)
        except InvalidArgumentError as error:
            raise CheckpointError(f"weights must be finite, got NaN or infinity in {name}: {error}") from None
    return matrix
