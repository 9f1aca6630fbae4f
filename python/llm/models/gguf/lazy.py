"""Tensors of a GGUF file that are read when their values are needed."""

import mmap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm.models.gguf.joins import Join
from llm.models.gguf.names import Layout
from llm.models.gguf.types import TYPES_BY_ID, Bytes, read_values
from llm.tokenization.readers.gguf_file import TensorEntry


class LazyTensor:
    """A tensor that stays in the file until it is loaded.

    Attributes:
        shape: Hugging Face's shape.
        type_name: Type in the file, such as "Q4_1".
        dtype: Default of `load`: float16 and bfloat16 as stored, float32 for all other types.
    """

    def __init__(self, content: Bytes, entry: TensorEntry, layout: Layout, num_heads: int) -> None:
        self._content = content
        self._entry = entry
        self._stored_shape = entry.shape
        self._kind = TYPES_BY_ID[entry.type_id]
        self._layout = layout
        self._num_heads = num_heads
        self.shape = _shape(entry.shape, layout)
        self.type_name = self._kind.name
        self.dtype = self._kind.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return self._content.nbytes

    @property
    def is_quantised(self) -> bool:
        """Whether values are in blocks with scales."""
        return self._kind.block_values > 1

    @property
    def is_packable(self) -> bool:
        """Whether the rows of `blocks` are those of Hugging Face's matrix."""
        return len(self.shape) == 2 and self._layout in (Layout.SAME, Layout.PAIRED_ROWS)

    def blocks(self) -> Bytes:
        """Returns the stored bytes, row after row of Hugging Face's matrix; a view of the file if rows keep order."""
        if self._layout is Layout.PAIRED_ROWS:
            return _halve_rows(self._content, self._num_heads, self._stored_shape[0])
        return self._content

    def at(self, idx: int) -> "LazyTensor":
        """Returns a part along the first dimension of a tensor whose layout is Hugging Face's."""
        size = self.num_bytes // self._stored_shape[0]
        entry = self._entry._replace(shape=self._stored_shape[1:])
        return LazyTensor(self._content[idx * size : (idx + 1) * size], entry, self._layout, self._num_heads)

    def release(self) -> None:
        """Lets the system drop the tensor's bytes from memory; whoever reads them again reads the file."""
        owner: Any = self._content
        while isinstance(owner, np.ndarray):
            owner = owner.base
        owner = owner.obj if isinstance(owner, memoryview) else owner
        if not isinstance(owner, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = self._content.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = start + self._content.nbytes - first
        if length > 0:
            owner.madvise(mmap.MADV_DONTNEED, first, length)

    def load(self, dtype: torch.dtype | None = None) -> Tensor:
        """Reads the values. Cost: memory for the result; only this tensor's bytes of the file are read.

        Args:
            dtype: Floating type; None is `self.dtype`. Quantised values are computed in float32 and rounded.

        Returns:
            A contiguous tensor on the CPU that shares no memory. Shape `self.shape`.
        """
        content, dtype = self.blocks(), dtype or self.dtype
        if self._layout is Layout.PLUS_ONE:
            return (read_values(content, self._kind, torch.float32) - 1).to(dtype).view(self.shape)
        values = read_values(content, self._kind, dtype)
        if self._layout is Layout.TRANSPOSED:
            return values.view(self._stored_shape).t().contiguous()
        return values.view(self.shape)


def _shape(stored: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    if layout is Layout.TRANSPOSED:
        return stored[::-1]
    return (1, *stored) if layout is Layout.FLAT else stored


def _halve_rows(content: Bytes, num_heads: int, num_rows: int) -> Bytes:
    """Reorders the rows of each head from pairs to halves while still quantised, at a seventh of the size."""
    pairs = content.reshape(num_heads, num_rows // num_heads // 2, 2, -1)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(-1)


class JoinedTensor:
    """A tensor of Hugging Face's that the file has in parts.

    Attributes:
        shape: Hugging Face's shape.
        parts: Tensors of the file.
        type_name: Types in the file, such as "MXFP4" or "Q4_K+Q6_K".
        dtype: Default of `load`: that of all parts, or float32.
    """

    def __init__(self, join: Join, config: Mapping[str, Any], parts: Sequence[LazyTensor]) -> None:
        self.shape = join.shape(config)
        self.parts = tuple(parts)
        self._join, self._config = join, config
        self.type_name = "+".join(dict.fromkeys(part.type_name for part in parts))
        dtypes = {part.dtype for part in parts}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def is_quantised(self) -> bool:
        """Whether values of a part are in blocks with scales."""
        return any(part.is_quantised for part in self.parts)

    @property
    def is_stack(self) -> bool:
        """Whether the tensor stacks the matrices of experts, `[E, inputs, outputs]`, whose parts take turns."""
        return len(self.shape) == 3

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Numbers of outputs and inputs of an expert's matrix."""
        return self.shape[2], self.shape[1]

    def blocks(self, expert: int) -> Bytes:
        """Returns the stored bytes of an expert's matrix, output after output; all parts must be of one type."""
        rows = [part.at(expert).blocks().reshape(part.shape[1], -1) for part in self.parts]
        return np.stack(rows, axis=1).reshape(-1)

    def release(self, expert: int) -> None:
        """Lets the system drop an expert's bytes from memory; see `LazyTensor.release`."""
        for part in self.parts:
            part.at(expert).release()

    def load(self, dtype: torch.dtype | None = None) -> Tensor:
        """Reads the values. Cost: memory for the result, and for one matrix of a stack besides.

        Args:
            dtype: Floating type; None is `self.dtype`.

        Returns:
            A contiguous tensor on the CPU that shares no memory. Shape `self.shape`.
        """
        whole = torch.empty(self.shape, dtype=dtype or self.dtype)
        for idx, part in enumerate(self.parts):
            place = self._join.part(whole, idx, self._config)
            if place.dim() < 3:
                place.copy_(part.load(whole.dtype))
                continue
            for number, matrix in enumerate(place):
                matrix.copy_(part.at(number).load(whole.dtype))
        return whole
