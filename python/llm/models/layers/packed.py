"""Layers whose quantised weights stay packed in memory, in the order in which the CPU kernels read them.

The kernels multiply packed weights as they are. Passes of PyTorch, such as those of embeddings, unpack a layer at a
time.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm._rust import pack_rows, packed_bytes, unpack_rows


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A matrix of quantised values, packed by `llm._rust.pack_rows`.

    Attributes:
        scheme: The scheme's name in GGUF files, such as "Q4_1".
        num_rows: Number of rows: a linear layer's outputs.
        num_cols: Number of columns, whole groups of 32: a linear layer's inputs.
        data: The packed bytes, uint8 on the CPU. Nothing may change them while kernels use them.
    """

    scheme: str
    num_rows: int
    num_cols: int
    data: Tensor

    @classmethod
    def empty(cls, scheme: str, num_rows: int, num_cols: int) -> "PackedMatrix":
        """Returns a matrix that `pack` has yet to fill."""
        data = torch.zeros(packed_bytes(scheme, num_rows, num_cols), dtype=torch.uint8)
        return cls(scheme, num_rows, num_cols, data)

    def pack(self, blocks: Any, first: int) -> None:
        """Packs rows of a file's blocks, uint8 `[bytes]`, as rows `first` and following.

        Raises:
            InvalidArgumentError: The sizes contradict each other, or a scale is not a finite number.
        """
        pack_rows(self.scheme, blocks, self.num_cols, self.data.numpy(), first)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the values of rows, computed in fp32 and rounded; ids `[N]`, result `[N, columns]`."""
        values = np.empty((len(ids), self.num_cols), dtype=np.float32)
        unpack_rows(self.scheme, self.data.numpy(), ids.numpy(), values)
        return torch.from_numpy(values).to(dtype)

    def values(self, dtype: torch.dtype) -> Tensor:
        """Returns all values, computed in fp32 and rounded, `[rows, columns]`. Cost: memory for the result."""
        return self.rows(torch.arange(self.num_rows), dtype)

    def for_kernels(self) -> dict[str, Any]:
        """Returns the matrix as `llm._rust.CpuModel` takes it."""
        return {"packed": self.data, "scheme": self.scheme, "rows": self.num_rows, "cols": self.num_cols}


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
