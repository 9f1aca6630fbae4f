"""Whole numbers with scales and zero points: the one form that all readers of quantised weights produce."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llm.errors import CheckpointError
from llm.models.tensor_files import OnDisk

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
# Values at a time: their intermediate forms take a few MB, whatever the size of a tensor.
_CHUNK_VALUES = 1 << 20
# Rows of a chunk are whole words of packed zero points.
_ROW_STEP = 32


class Codes(NamedTuple):
    """Rows of a quantised matrix: value = (code - zero) · scale.

    Attributes:
        values: Codes from 0, uint8 `[rows, columns]`.
        scales: Scales, floating `[rows, groups]`. The values are computed in this type.
        zeros: Zero points in the range of codes, uint8 `[rows, groups]`.
        groups: Group of each column, int64 `[columns]`; None: groups are neighbouring columns, all of one size.
    """

    values: Tensor
    scales: Tensor
    zeros: Tensor
    groups: Tensor | None

    def taken(self, columns: Tensor) -> "Codes":
        """Returns the codes of columns that are sorted by group, int64 `[columns]`."""
        return Codes(self.values[:, columns], self.scales, self.zeros, None)

    def dequantised(self) -> Tensor:
        """Returns the values, `[rows, columns]`, in the type of the scales.

        A code less its zero point has at most 8 bits besides the sign, which each type holds exactly, so the product
        alone is rounded.
        """
        dtype = self.scales.dtype
        if self.groups is not None:
            zeros = self.zeros[:, self.groups].to(dtype)
            return (self.values.to(dtype) - zeros) * self.scales[:, self.groups]
        grouped = self.values.view(*self.scales.shape, -1).to(dtype) - self.zeros[..., None].to(dtype)
        return (grouped * self.scales[..., None]).view(self.values.shape)


class QuantisedTensor(ABC):
    """A quantised matrix that stays in its files until it is loaded.

    Attributes:
        name: Name of the matrix, as if it held plain numbers.
        shape: Shape of the matrix of values.
        type_name: Scheme and bits, such as "GPTQ-4".
        members: Tensors on disk that hold the matrix, by what they are.
    """

    def __init__(self, name: str, shape: Sequence[int], type_name: str, members: Mapping[str, OnDisk]) -> None:
        self.name = name
        self.shape = tuple(shape)
        self.type_name = type_name
        self.members = members

    @property
    def num_bytes(self) -> int:
        """Bytes of the matrix on disk."""
        return sum(num_bytes(member) for member in self.members.values())

    @abstractmethod
    def load(self, dtype: torch.dtype | None = None) -> Tensor:
        """Reads the values.

        Args:
            dtype: Floating type; None is the type that the scheme computes in. Values are computed in that type and
                converted.

        Returns:
            A tensor that shares no memory. Shape `self.shape`.

        Raises:
            CheckpointError: A column belongs to a group that is not there.
        """


class CodedTensor(QuantisedTensor):
    """A matrix of codes with scales and zero points, `[outputs, inputs]`.

    Attributes:
        bits: Bits of a code.
    """

    bits: int

    @abstractmethod
    def read(self) -> "RowReader":
        """Opens the members on disk; no more than mapped."""

    def chunks(self) -> Iterator[tuple[int, Codes]]:
        """Yields the first row and the codes of some rows at a time."""
        num_rows, num_cols = self.shape
        step = max(1, _CHUNK_VALUES // max(1, num_cols) // _ROW_STEP) * _ROW_STEP
        reader = self.read()
        for start in range(0, num_rows, step):
            yield start, reader.rows(slice(start, min(start + step, num_rows)))

    def load(self, dtype: torch.dtype | None = None) -> Tensor:
        """Reads the values; see `QuantisedTensor.load`."""
        dtype = dtype or FLOATS[self.members[self.scale_member].type_name]
        out = torch.empty(self.shape, dtype=dtype)
        for start, codes in self.chunks():
            out[start : start + len(codes.values)] = codes.dequantised()
        return out

    @property
    @abstractmethod
    def scale_member(self) -> str:
        """Name of the member that holds the scales."""

    def groups(self, stored: Tensor, num_groups: int, size: int) -> Tensor | None:
        """Returns the stored groups of columns, or None if they are neighbouring columns of one size.

        Raises:
            CheckpointError: A group is not there.
        """
        low, high = (int(bound) for bound in stored.aminmax())
        if low < 0 or high >= num_groups:
            raise CheckpointError(
                f"{self.name} has columns of group {low if low < 0 else high}; groups must be 0 to {num_groups - 1}\n"
                "hint: copy the checkpoint again; its order of columns (`g_idx`) is damaged"
            )
        order = stored.to(torch.int64)
        return None if torch.equal(order, neighbours(len(order), size)) and len(order) % size == 0 else order


class RowReader(ABC):
    """Members of one matrix, mapped, from which rows of codes are read.

    Attributes:
        groups: Group of each column, as in `Codes`.
    """

    groups: Tensor | None = None

    @abstractmethod
    def rows(self, span: slice) -> Codes:
        """Returns the codes of rows; a span begins at a multiple of 32 and ends there or with the matrix."""

    @abstractmethod
    def parameters(self) -> tuple[Tensor, Tensor]:
        """Returns the scales and zero points of all rows, as in `Codes`."""


def neighbours(num_cols: int, size: int) -> Tensor:
    """Returns the group of each column where `size` neighbours form a group; the last may be smaller."""
    return torch.div(torch.arange(num_cols), size, rounding_mode="floor")


def nibbles(words: Tensor) -> Tensor:
    """Splits integers into the 4-bit codes in them, lowest first: `[..., N]` to uint8 `[..., N · codes in each]`."""
    octets = words.contiguous().view(torch.uint8)
    return torch.stack((octets & 15, octets >> 4), dim=-1).flatten(-2)


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Splits integers into the codes of 4 or 8 bits in them, lowest first; see `nibbles`."""
    return nibbles(words) if bits == 4 else words.contiguous().view(torch.uint8)


def num_bytes(tensor: OnDisk) -> int:
    """Returns the bytes of a tensor on disk."""
    count = _BYTES.get(tensor.type_name, 1)
    for size in tensor.shape:
        count *= size
    return count
