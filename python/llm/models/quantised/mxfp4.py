"""MXFP4: blocks of 32 four-bit floats that share a power of two.

Source: OCP Microscaling Formats (MX) Specification, version 1.0; gpt-oss stores each expert's matrix this way.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm.models.quantised.codes import QuantisedTensor, nibbles
from llm.models.quantised.members import MemberError, Members, need

BLOCKS, SCALES = "_blocks", "_scales"
_BLOCK = 32
_BIAS = 127
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_CHUNK_BLOCKS = 1 << 15
# Exponents of scales that are powers of two in half precision, for floats that are counted in halves.
_HALF_EXPONENTS = range(104, 144)
# The lower three bits of two codes, which are 0 for zeros of either sign.
_MAGNITUDES = 0x77


class MxTensor(QuantisedTensor):
    """A matrix, or one per expert, of MXFP4 values.

    Attributes:
        parts: Names of the members that hold the blocks and the scales.
        is_turned: Whether the last two dimensions are swapped after they are read.
    """

    def __init__(
        self, name: str, shape: Sequence[int], members: Members, parts: tuple[str, str], *, is_turned: bool = False
    ) -> None:
        super().__init__(name, shape, "MXFP4", members)
        self.parts = parts
        self.is_turned = is_turned

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Numbers of outputs and inputs of a matrix."""
        rows, cols = self.shape[-2:]
        return (cols, rows) if self.is_turned else (rows, cols)

    @cached_property
    def fits_half(self) -> bool:
        """Whether packed weights can hold the scales. Cost: reads all scales, once."""
        blocks, scales = (self.members[part].load() for part in self.parts)
        return _fit_half(scales.reshape(-1), blocks.reshape(-1, _BLOCK // 2))

    def blocks(self, idx: int) -> NDArray[np.uint8]:
        """Returns matrix `idx` as GGUF files have it: blocks of an exponent, then codes 16 columns apart."""
        num_rows, num_cols = self.matrix_shape
        num_blocks = num_rows * num_cols // _BLOCK
        span = slice(idx * num_blocks, (idx + 1) * num_blocks)
        codes, scales = (self.members[part].load() for part in self.parts)
        each = nibbles(codes.reshape(-1, _BLOCK // 2)[span])
        low, high = each[:, : _BLOCK // 2], each[:, _BLOCK // 2 :]
        return torch.cat((scales.reshape(-1, 1)[span], low | high << 4), dim=1).view(-1).numpy()

    def load(self, dtype: torch.dtype | None = None) -> Tensor:
        """Reads the values; see `QuantisedTensor.load`."""
        blocks, scales = (self.members[part].load() for part in self.parts)
        blocks, scales = blocks.reshape(-1, _BLOCK // 2), scales.reshape(-1)
        values = torch.tensor([*_VALUES, *(-value for value in _VALUES)])
        out = torch.empty((len(blocks), _BLOCK), dtype=dtype or torch.bfloat16)
        for start in range(0, len(blocks), _CHUNK_BLOCKS):
            span = slice(start, start + _CHUNK_BLOCKS)
            powers = torch.exp2(scales[span].to(torch.float32) - _BIAS)
            out[span] = (values[nibbles(blocks[span]).to(torch.int32)] * powers[:, None]).to(torch.bfloat16)
        if not self.is_turned:
            return out.view(self.shape)
        return out.view(*self.shape[:-2], self.shape[-1], self.shape[-2]).transpose(-1, -2).contiguous()


def fits_half(blocks: NDArray[np.uint8]) -> bool:
    """Whether the scales of blocks of 17 bytes, as GGUF files have them, fit half precision, those of zeros aside."""
    rows = blocks.reshape(-1, 1 + _BLOCK // 2)
    return _fit_half(torch.from_numpy(rows[:, 0]), torch.from_numpy(rows[:, 1:]))


def _fit_half(exponents: Tensor, codes: Tensor) -> bool:
    """Whether scales fit half precision; exponents `[N]`, codes `[N, 16]`, both uint8."""
    is_outside = (exponents < _HALF_EXPONENTS.start) | (exponents >= _HALF_EXPONENTS.stop)
    return not bool((codes[is_outside] & _MAGNITUDES).any())


def open_experts(name: str, members: Members) -> MxTensor:
    """Returns the stacked matrices of experts as Hugging Face has them, `[experts, inputs, outputs]`.

    Raises:
        MemberError: A tensor is missing, or has a wrong type or shape.
    """
    blocks, scales = need(members, BLOCKS, SCALES)
    shape = list(blocks.shape)
    if blocks.type_name != "U8" or len(shape) != 4 or shape[3] != _BLOCK // 2 or 0 in shape:
        raise MemberError(f"has blocks of type {blocks.type_name} and shape {shape}, which must be U8 [E, O, G, 16]")
    if scales.type_name != "U8" or list(scales.shape) != shape[:3]:
        raise MemberError(f"has scales of type {scales.type_name} and shape {list(scales.shape)}, not U8 {shape[:3]}")
    turned = (shape[0], shape[2] * _BLOCK, shape[1])
    return MxTensor(name, turned, members, (BLOCKS, SCALES), is_turned=True)
