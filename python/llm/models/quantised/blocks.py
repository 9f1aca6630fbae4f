"""Codes as the blocks of 32 columns that `llm._rust.pack_rows` packs: Q4_0, Q8_0, and Z4 and Z8 with zero points."""

from functools import cache

import torch
from torch import Tensor

from llm.models.gguf.types import Bytes
from llm.models.quantised.codes import CodedTensor, Codes

_BLOCK = 32
_SCHEMES = {(4, True): "Q4_0", (8, True): "Q8_0", (4, False): "Z4", (8, False): "Z8"}


def scheme_to_pack(tensor: CodedTensor) -> str | None:
    """Returns the scheme that holds a matrix exactly, or None if none does. Reads scales and zero points.

    Packed scales are in half precision; those of other types fit if they are neither tiny nor finer.
    """
    num_cols = tensor.shape[1]
    reader = tensor.read()
    scales, zeros = reader.parameters()
    num_groups = scales.shape[1]
    if num_cols % _BLOCK or not _are_equally_large(reader.groups, num_groups, num_cols // num_groups):
        return None
    if (num_cols // scales.shape[1]) % _BLOCK or not _fits(scales):
        return None
    return _SCHEMES[tensor.bits, bool((zeros == 1 << (tensor.bits - 1)).all())]


def _are_equally_large(groups: Tensor | None, num_groups: int, size: int) -> bool:
    return groups is None or bool((groups.bincount(minlength=num_groups) == size).all())


def columns_by_group(tensor: CodedTensor) -> Tensor | None:
    """Returns the columns, one group after the other, int64 `[columns]`; None if groups are neighbouring columns."""
    groups = tensor.read().groups
    return None if groups is None else groups.argsort(stable=True)


def _fits(scales: Tensor) -> bool:
    return scales.dtype == torch.float16 or torch.equal(scales.to(torch.float16).to(scales.dtype), scales)


def blocks_of(codes: Codes, scheme: str) -> Bytes:
    """Returns rows of codes as blocks, row after row; groups are neighbouring columns."""
    num_rows, num_cols = codes.values.shape
    repeats = num_cols // codes.scales.shape[1] // _BLOCK
    parts = [_halves(codes.scales, repeats)]
    if scheme in ("Z4", "Z8"):
        parts.append(_halves(_halves_of_zeros(8 if scheme == "Z8" else 4)[codes.zeros.to(torch.int32)], repeats))
    parts.append(_stored(codes.values.view(num_rows, -1, _BLOCK), scheme))
    return torch.cat(parts, dim=-1).view(-1).numpy()


def _stored(values: Tensor, scheme: str) -> Tensor:
    """Returns codes `[..., 32]` as a block holds them: with a sign, or two to a byte, 16 columns apart."""
    if scheme in ("Q8_0", "Z8"):
        return values ^ 0x80
    return values[..., : _BLOCK // 2] | values[..., _BLOCK // 2 :] << 4


@cache
def _halves_of_zeros(bits: int) -> Tensor:
    """Returns each zero point as a half-precision number, less what codes of 8 bits are stored too high."""
    return (torch.arange(256) - (128 if bits == 8 else 0)).to(torch.float16)


def _halves(numbers: Tensor, repeats: int) -> Tensor:
    """Returns a half-precision number for each block, as bytes `[rows, blocks, 2]`."""
    each = numbers.to(torch.float16).repeat_interleave(repeats, dim=1)
    return each.contiguous().view(torch.uint8).view(*each.shape, 2)
