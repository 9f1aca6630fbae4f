"""Converts stored values of GGUF files to PyTorch and back.

Source: ggml-org/ggml `src/ggml-quants.c` for the layout of blocks; its Python twin, the package `gguf`, for all types
but Q8_0, Q4_0 and Q4_1, which are read here in half the time (4096 × 4096 values of Q4_1: 38 ms instead of 113 ms).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from torch import Tensor

from llm.models.gguf.k_quants import encode_q4_k, encode_q6_k

Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ENCODERS = {"Q4_K": encode_q4_k, "Q6_K": encode_q6_k}
_BLOCKWISE = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4")
# Blocks at a time: their values stay in the cache. Half as many and twice as many took as long.
_CHUNK_BLOCKS = 2048


class ValueType(NamedTuple):
    """A type of stored values.

    Attributes:
        name: llama.cpp's name.
        type_id: Number in a file.
        block_values: Number of values in a block.
        block_bytes: Number of bytes in a block.
    """

    name: str
    type_id: int
    block_values: int
    block_bytes: int

    @property
    def dtype(self) -> torch.dtype:
        """Returns the smallest dtype that holds every stored value, or float32."""
        return _PLAIN.get(self.name, torch.float32)

    def num_bytes(self, num_values: int) -> int:
        """Returns the bytes of `num_values`, which must be a multiple of `block_values`."""
        return num_values // self.block_values * self.block_bytes


def _type(name: str) -> ValueType:
    number = GGMLQuantizationType[name]
    return ValueType(name, int(number), *GGML_QUANT_SIZES[number])


TYPES: Mapping[str, ValueType] = {name: _type(name) for name in (*_PLAIN, *_BLOCKWISE)}
TYPES_BY_ID: Mapping[int, ValueType] = {kind.type_id: kind for kind in TYPES.values()}


def name_of_type(type_id: int) -> str:
    """Returns the name of a type, supported or not; its number if it has no name."""
    names = {int(number): number.name for number in GGMLQuantizationType}
    return names.get(type_id, str(type_id))


def read_values(content: Bytes, kind: ValueType, dtype: torch.dtype) -> Tensor:
    """Reads the values in `content`.

    Args:
        content: Consecutive whole blocks. Shape (bytes,).
        kind: Type of the values.
        dtype: Type of the result; quantised values are computed in float32 and rounded.

    Returns:
        A tensor that shares no memory. Shape (values,).
    """
    if kind.name in _PLAIN:
        return torch.from_numpy(content).view(kind.dtype).to(dtype, copy=True)
    blocks = content.reshape(-1, kind.block_bytes)
    out = torch.empty((len(blocks), kind.block_values), dtype=dtype)
    scratch = torch.empty((_CHUNK_BLOCKS, kind.block_values))
    decode = _DECODERS.get(kind.name)
    for start in range(0, len(blocks), _CHUNK_BLOCKS):
        part = blocks[start : start + _CHUNK_BLOCKS]
        target = out[start : start + _CHUNK_BLOCKS]
        floats = target if dtype == torch.float32 else scratch[: len(part)]
        if decode is None:
            floats.copy_(_by_package(part, kind))
        else:
            decode(part, floats.numpy())
        if floats is not target:
            target.copy_(floats)
    return out.view(-1)


def write_values(values: Tensor, kind: ValueType) -> Any:
    """Returns the bytes of `values` as a buffer.

    Args:
        values: Values of any floating dtype. Shape (..., columns), columns a multiple of `kind.block_values`.
        kind: F32, F16, BF16, Q4_K, Q6_K, or a type that the package `gguf` can quantise to.
    """
    if kind.name in _PLAIN:
        return values.to(kind.dtype).contiguous().view(torch.uint8).numpy()
    if kind.name in _ENCODERS:
        return _ENCODERS[kind.name](values.to(torch.float32).contiguous())
    floats = values.to(torch.float32).contiguous().numpy()
    with np.errstate(over="ignore"):
        return quantize(floats, GGMLQuantizationType[kind.name])


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """A matrix whose rows are in a type of GGUF files already.

    Attributes:
        kind: Type of the values.
        shape: Hugging Face's shape of the matrix; that of a transposed layout is the other way round.
        rows: The bytes of each row of the file's matrix, uint8 `[rows, bytes]`.
    """

    kind: ValueType
    shape: tuple[int, ...]
    rows: Tensor

    @classmethod
    def of(cls, values: Tensor, kind: ValueType) -> "EncodedRows":
        """Returns a matrix of any floating dtype, converted; see `write_values`."""
        content = np.asarray(write_values(values, kind))
        return cls(kind, tuple(values.shape), torch.from_numpy(content.reshape(len(values), -1)))

    def values(self) -> Tensor:
        """Returns the values, fp32, in the file's layout."""
        return read_values(self.rows.reshape(-1).numpy(), self.kind, torch.float32).view(len(self.rows), -1)

    def take(self, rows: Tensor) -> "EncodedRows":
        """Returns the matrix of some rows."""
        return EncodedRows(self.kind, (len(rows), *self.shape[1:]), self.rows[rows])

    def transposed(self) -> "EncodedRows":
        """Returns the same matrix for a layout that transposes it."""
        return EncodedRows(self.kind, self.shape[::-1], self.rows)


def encode_groups(codes: Tensor, scales: Tensor, kind: ValueType) -> EncodedRows:
    """Returns integers with a scale for every 32 as rows of a file.

    Args:
        codes: int8 `[O, I]`, from -8 to 7 for Q4_0.
        scales: Values of float16, `[O, I / 32]`.
        kind: Q4_0 or Q8_0.
    """
    content = codes.view(-1, 32)
    halves = scales.to(torch.float16).view(-1, 1).view(torch.uint8)
    if kind.name == "Q4_0":
        nibbles = (content + 8).view(torch.uint8)
        content = nibbles[:, :16] | nibbles[:, 16:] << 4
    rows = torch.cat((halves, content.view(torch.uint8)), 1).view(len(codes), -1)
    return EncodedRows(kind, tuple(codes.shape), rows)


def _by_package(blocks: Bytes, kind: ValueType) -> Tensor:
    # All blocks in one row: the package loops over groups of rows in Python.
    floats = dequantize(np.ascontiguousarray(blocks).reshape(1, -1), GGMLQuantizationType[kind.name])
    return torch.from_numpy(floats).view(len(blocks), kind.block_values)


def _scales(blocks: Bytes, count: int) -> Floats:
    """Returns the first `count` half-precision numbers of each block. Shape (blocks, count)."""
    return np.ascontiguousarray(blocks[:, : 2 * count]).view(np.float16).astype(np.float32)


def _nibbles(codes: Bytes, out: Floats) -> None:
    """Unpacks the low halves of the 16 bytes of a block, then the high halves."""
    np.bitwise_and(codes, 15, out=out[:, :16], casting="unsafe")
    np.right_shift(codes, 4, out=out[:, 16:], casting="unsafe")


def _decode_q8_0(blocks: Bytes, out: Floats) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _scales(blocks, 1), out=out)


def _decode_q4_0(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 2:], out)
    out -= 8
    out *= _scales(blocks, 1)


def _decode_q4_1(blocks: Bytes, out: Floats) -> None:
    scales = _scales(blocks, 2)
    _nibbles(blocks[:, 4:], out)
    out *= scales[:, :1]
    out += scales[:, 1:]


_DECODERS: Mapping[str, Callable[[Bytes, Floats], None]] = {
    "Q8_0": _decode_q8_0,
    "Q4_0": _decode_q4_0,
    "Q4_1": _decode_q4_1,
}
