"""Layers whose quantised weights stay packed in memory, in the order in which the CPU kernels read them.

The kernels multiply packed weights as they are; on CUDA, Triton's do so for a few rows of activations. Other passes of
PyTorch, such as those of embeddings, unpack a layer at a time.
"""

import contextlib
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from llm._rust import pack_rows, packed_bytes, unpack_rows
from llm.models.layers import fused
from llm.models.layers.moe import Experts

_HUGE_PAGE = 2 << 20
# Rows that are computed in fp32 at a time, where the result is narrower.
_CHUNK_ROWS = 4096
# Schemes of 4 and 8 bits that `layers.triton_packed` reads.
SCHEMES_ON_CUDA = ("Q4_0", "Q4_1", "Z4", "Q8_0", "Z8")


def huge_pages(num_bytes: int) -> Tensor:
    """Returns zeroed memory on huge pages where the system has them, uint8 `[num_bytes]`.

    A decode step reads all weights once. With pages of 4 KB, the look-up of addresses takes a quarter of that time. All
    matrices of a model share one call, since many are smaller than a huge page.
    """
    # Systems give huge pages to private memory alone, and Python maps shared memory by default.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, num_bytes + _HUGE_PAGE, **private)
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
        data: The packed bytes, uint8. Nothing may change them while kernels use them.
        order: The column of values that each packed column holds, int64 `[columns]`; None: they are in order.
    """

    parts: tuple[PackedPart, ...]
    num_cols: int
    data: Tensor
    order: Tensor | None = None

    @classmethod
    def empty(
        cls, parts: Sequence[PackedPart], num_cols: int, memory: Tensor | None = None, order: Tensor | None = None
    ) -> "PackedMatrix":
        """Returns a matrix that `pack` has yet to fill.

        Args:
            parts: Schemes and their rows.
            num_cols: Number of columns.
            memory: Zeroed bytes, uint8, of which the matrix takes the first; None allocates them.
            order: The column of values that each packed column holds; None: they are in order.
        """
        num_bytes = bytes_of(parts, num_cols)
        memory = torch.zeros(num_bytes, dtype=torch.uint8) if memory is None else memory[:num_bytes]
        return cls(tuple(parts), num_cols, memory, order)

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

    def on(self, device: torch.device) -> "PackedMatrix":
        """Returns the matrix on a device, this one if it is there."""
        order = None if self.order is None else self.order.to(device)
        return self if self.data.device == device else replace(self, data=self.data.to(device), order=order)

    def product(self, values: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns `values @ matrix.T + bias`, `[..., O]` for `[..., C]`.

        Kernels that read packed weights multiply few rows; many are multiplied with unpacked values.
        """
        num_rows = values.numel() // self.num_cols
        if not fused.reads_packed(self.data) or not 0 < num_rows <= fused.packed_kernels().MAX_ROWS:
            return F.linear(values, self.values(values.dtype), bias)
        flat = values.reshape(num_rows, self.num_cols)
        flat = flat.contiguous() if self.order is None else flat[:, self.order]
        out = flat.new_empty(num_rows, self.num_rows)
        for part, start, content in self._places():
            columns = out[:, start : start + part.num_rows]
            fused.packed_kernels().multiply(flat, part.scheme, content, part.num_rows, columns)
        out = out if bias is None else out + bias
        return out.view(*values.shape[:-1], self.num_rows)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the values of rows, computed in fp32 and rounded; ids `[N]`, result `[N, columns]`."""
        if fused.reads_packed(self.data):
            unpacked = torch.empty(len(ids), self.num_cols, dtype=dtype, device=self.data.device)
            for part, start, content in self._places():
                fused.packed_kernels().unpack(ids - start, part.scheme, content, part.num_rows, unpacked)
            return self._ordered(unpacked)
        values = np.empty((len(ids), self.num_cols), dtype=np.float32)
        wanted = ids.numpy()
        for part, start, content in self._places():
            places = np.flatnonzero((wanted >= start) & (wanted < start + part.num_rows))
            found = np.empty((len(places), self.num_cols), dtype=np.float32)
            unpack_rows(part.scheme, content.numpy(), wanted[places] - start, found)
            if len(self.parts) == 1:
                return self._ordered(torch.from_numpy(found)).to(dtype)
            values[places] = found
        return self._ordered(torch.from_numpy(values)).to(dtype)

    def _ordered(self, found: Tensor) -> Tensor:
        return found if self.order is None else torch.empty_like(found).index_copy_(1, self.order, found)

    def values(self, dtype: torch.dtype) -> Tensor:
        """Returns all values, computed in fp32 and rounded, `[rows, columns]`. Cost: memory for the result."""
        ids = torch.arange(self.num_rows, device=self.data.device)
        if dtype == torch.float32 or self.num_rows <= _CHUNK_ROWS or fused.reads_packed(self.data):
            return self.rows(ids, dtype)
        values = torch.empty(self.num_rows, self.num_cols, dtype=dtype)
        for start in range(0, self.num_rows, _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            values[rows] = self.rows(ids[rows], dtype)
        return values

    def for_kernels(self) -> dict[str, Any]:
        """Returns the matrix as `llm._rust.CpuModel` takes it."""
        order = None if self.order is None else self.order.numpy().astype(np.uint32)
        parts = [tuple(part) for part in self.parts]
        return {"packed": self.data, "parts": parts, "cols": self.num_cols, "order": order}

    def _places(self) -> Iterator[tuple[PackedPart, int, Tensor]]:
        """Yields each part, its first row and its bytes."""
        row, start = 0, 0
        for part in self.parts:
            num_bytes = packed_bytes(part.scheme, part.num_rows, self.num_cols)
            yield part, row, self.data[start : start + num_bytes]
            row, start = row + part.num_rows, start + num_bytes


class _PackedProduct(Function):
    """`values @ weight.T` for packed weights, which the backward pass unpacks anew instead of keeping them."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, matrix: PackedMatrix) -> Tensor:
        ctx.matrix = matrix
        return F.linear(values, matrix.values(values.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.matrix.values(gradient.dtype), None


def packed_product(values: Tensor, matrix: PackedMatrix, bias: Tensor | None) -> Tensor:
    """Returns `values @ matrix.T + bias`, under autocast in its type; with gradient of `values` alone.

    Source: Dettmers et al. 2023, "QLoRA", equation 5.
    """
    if not values.requires_grad:
        return matrix.product(values, bias)
    if torch.is_autocast_enabled("cpu"):
        values = values.to(torch.get_autocast_dtype("cpu"))
    product = cast(Tensor, _PackedProduct.apply(values, matrix))  # type: ignore[no-untyped-call]
    return product if bias is None else product + bias.to(product.dtype)


class PackedLinear(nn.Module):
    """A linear layer with packed weights, which training leaves as they are.

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
    def in_features(self) -> int:
        """Number of inputs."""
        return self.matrix.num_cols

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return self.matrix.num_rows

    @property
    def weight(self) -> Tensor:
        """The unpacked weights `[outputs, inputs]`, under autocast in its type. Cost: all values, and their memory."""
        is_cast = torch.is_autocast_enabled("cpu")
        return self.matrix.values(torch.get_autocast_dtype("cpu") if is_cast else self.dtype)

    def forward(self, values: Tensor) -> Tensor:
        """Maps `[..., C]` to `[..., O]`."""
        return packed_product(values, self.matrix, self.bias)


class PackedEmbedding(nn.Module):
    """Embeddings of tokens from packed weights, which training leaves as they are.

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


class PackedExperts(Experts):
    """Experts with packed weights; for inference only.

    Attributes:
        stacks: Matrices of all experts, `[2I, C]` each for "gate_up_proj" and `[C, I]` for "down_proj".
    """

    def __init__(self, plain: Experts, stacks: Mapping[str, Sequence[PackedMatrix]]) -> None:
        nn.Module.__init__(self)
        self.limit, self.activation, self.has_biases = plain.limit, plain.activation, plain.has_biases
        self.joined_rows = plain.joined_rows
        self.stacks = {name: list(matrices) for name, matrices in stacks.items()}
        if plain.has_biases:
            self.gate_up_bias, self.down_bias = plain.gate_up_bias, plain.down_bias

    def product(self, name: str, rows: Tensor, counts: Tensor) -> Tensor:
        """Multiplies each expert's rows with its unpacked matrix, one expert after the other."""
        matrices = self.stacks[name]
        groups = zip(torch.split(rows, counts.tolist()), matrices, strict=True)
        products = [F.linear(group, matrix.values(group.dtype)) for group, matrix in groups if len(group)]
        return torch.cat(products) if products else rows.new_zeros(0, matrices[0].num_rows)


def packed_matrices(model: nn.Module) -> list[PackedMatrix]:
    """Returns the packed matrices of a model; one that several layers share is there once."""
    found: list[PackedMatrix] = []
    for module in model.modules():
        if isinstance(module, PackedLinear | PackedEmbedding):
            found.append(module.matrix)
        elif isinstance(module, PackedExperts):
            found += chain.from_iterable(module.stacks.values())
    return list(dict.fromkeys(found))


def move_packed(model: nn.Module, device: torch.device) -> None:
    """Moves the packed matrices of linear layers and embeddings to a device; one that layers share stays shared."""
    moved = {matrix: matrix.on(device) for matrix in packed_matrices(model)}
    for module in model.modules():
        if isinstance(module, PackedLinear | PackedEmbedding):
            module.matrix = moved[module.matrix]
