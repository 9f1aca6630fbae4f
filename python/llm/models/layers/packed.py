"""Layers whose quantised weights stay packed in memory, in the order in which the CPU kernels read them.

The kernels multiply packed weights as they are. Passes of PyTorch, such as those of embeddings, unpack a layer at a
time.
"""

import contextlib
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm._rust import pack_rows, packed_bytes, unpack_rows

_HUGE_PAGE = 2 << 20


def huge_pages(num_bytes: int) -> Tensor:
    """Returns zeroed memory on huge pages where the system has them, uint8 `[num_bytes]`.

    A decode step reads all weights once. With pages of 4 KB, the look-up of addresses takes a quarter of that time. All
    matrices of a model share one call, since many are smaller than a huge page.
    """
    memory = mmap.mmap(-1, num_bytes + _HUGE_PAGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Advice alone: a system without huge pages refuses it, and the memory serves as well.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % _HUGE_PAGE
    return whole[start : start + num_bytes]


class PackedPart(NamedTuple):
    """Rows of a packed matrix in one scheme.

    Attributes:
        scheme: The scheme's name, such as "Q4_1".
        num_rows: Number of rows.
    """

    scheme: str
    num_rows: int


def bytes_of(parts: Sequence[PackedPart], num_cols: int) -> int:
    """Returns the bytes of a packed matrix, a multiple of a cache line."""
    return sum(packed_bytes(part.scheme, part.num_rows, num_cols) for part in parts)


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A matrix of quantised values, packed by `llm._rust.pack_rows`.

    Attributes:
        parts: Schemes and their rows, in the order of rows; all but the last have whole strips of `PACKED_STRIP_ROWS`.
        num_cols: Number of columns, whole blocks of each scheme: a linear layer's inputs.
        data: The packed bytes, uint8 on the CPU. Nothing may change them while kernels use them.
    """

    parts: tuple[PackedPart, ...]
    num_cols: int
    data: Tensor

    @classmethod
    def empty(cls, parts: Sequence[PackedPart], num_cols: int, memory: Tensor | None = None) -> "PackedMatrix":
        """Returns a matrix that `pack` has yet to fill.

        Args:
            parts: Schemes and their rows.
            num_cols: Number of columns.
            memory: Zeroed bytes, uint8, of which the matrix takes the first; None allocates them.
        """
        num_bytes = bytes_of(parts, num_cols)
        memory = torch.zeros(num_bytes, dtype=torch.uint8) if memory is None else memory[:num_bytes]
        return cls(tuple(parts), num_cols, memory)

    @property
    def schemes(self) -> tuple[str, ...]:
        """Schemes of all parts."""
        return tuple(part.scheme for part in self.parts)

    @property
    def num_rows(self) -> int:
        """Number of rows: a linear layer's outputs."""
        return sum(part.num_rows for part in self.parts)

    def pack(self, blocks: Any, first: int) -> None:
        """Packs rows of a file's blocks, uint8 `[bytes]`, as rows `first` and following; all belong to one part.

        Raises:
            InvalidArgumentError: The sizes contradict each other, or a scale is not a finite number.
        """
        for part, start, content in self._places():
            if start <= first < start + part.num_rows:
                pack_rows(part.scheme, blocks, self.num_cols, content.numpy(), first - start)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the values of rows, computed in fp32 and rounded; ids `[N]`, result `[N, columns]`."""
        values = np.empty((len(ids), self.num_cols), dtype=np.float32)
        wanted = ids.numpy()
        for part, start, content in self._places():
            places = np.flatnonzero((wanted >= start) & (wanted < start + part.num_rows))
            found = np.empty((len(places), self.num_cols), dtype=np.float32)
            unpack_rows(part.scheme, content.numpy(), wanted[places] - start, found)
            if len(self.parts) == 1:
                return torch.from_numpy(found).to(dtype)
            values[places] = found
        return torch.from_numpy(values).to(dtype)

    def values(self, dtype: torch.dtype) -> Tensor:
        """Returns all values, computed in fp32 and rounded, `[rows, columns]`. Cost: memory for the result."""
        return self.rows(torch.arange(self.num_rows), dtype)

    def for_kernels(self) -> dict[str, Any]:
        """Returns the matrix as `llm._rust.CpuModel` takes it."""
        return {"packed": self.data, "parts": [tuple(part) for part in self.parts], "cols": self.num_cols}

    def _places(self) -> Iterator[tuple[PackedPart, int, Tensor]]:
        """Yields each part, its first row and its bytes."""
        row, start = 0, 0
        for part in self.parts:
            num_bytes = packed_bytes(part.scheme, part.num_rows, self.num_cols)
            yield part, row, self.data[start : start + num_bytes]
            row, start = row + part.num_rows, start + num_bytes


class PackedLinear(nn.Module):
    """A linear layer with packed weights; for inference only.

    Attributes:
        matrix: The weights, `[outputs, inputs]`.
        bias: One number per output, or None.
        dtype: Type that `weight` is unpacked to.
    """

    def __init__(self, matrix: PackedMatrix, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.matrix = matrix
        self.bias = bias
        self.dtype = dtype

    @property
    def weight(self) -> Tensor:
        """The unpacked weights, `[outputs, inputs]`. Cost: computes all values and memory for the result."""
        return self.matrix.values(self.dtype)

    def forward(self, values: Tensor) -> Tensor:
        """Maps `[..., C]` to `[..., O]`."""
        return F.linear(values, self.matrix.values(values.dtype), self.bias)


class PackedEmbedding(nn.Module):
    """Embeddings of tokens from packed weights; for inference only.

    Attributes:
        matrix: The weights, `[vocabulary, C]`.
        dtype: Type of the embeddings.
    """

    def __init__(self, matrix: PackedMatrix, dtype: torch.dtype) -> None:
        super().__init__()
        self.matrix = matrix
        self.dtype = dtype

    def forward(self, token_ids: Tensor) -> Tensor:
        """Maps `[T]` to `[T, C]`."""
        return self.matrix.rows(token_ids, self.dtype)


def packed_matrices(model: nn.Module) -> list[PackedMatrix]:
    """Returns the packed matrices of a model; one that several layers share is there once."""
    layers = (module for module in model.modules() if isinstance(module, PackedLinear | PackedEmbedding))
    return list(dict.fromkeys(layer.matrix for layer in layers))
