"""Triton kernels that read packed weights of 4 and 8 bits in strips of eight outputs, as kernels of the CPU do.

`layers.packed` imports this module for matrices on CUDA; tests run it in Triton's interpreter. A group of 32 columns
has a scale, and maybe a minimum or a zero point, in half precision. Codes become values in registers, with the bits
of `llm._rust.unpack_rows`, rounded to the type of the activations. Arguments with names in capitals are compile-time
constants.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"

from collections.abc import Iterable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from llm._rust import packed_bytes

# Most rows that the product takes; above, values are unpacked once and multiplied by cuBLAS.
MAX_ROWS = 64
# Groups of 32 columns, and outputs, of a tile.
_TILE_GROUPS = 4
_TILE_OUTPUTS = 32
# Fewest programs to launch, and most parts of a sum: as for attention.
_PROGRAMS = 400
_MAX_SPLITS = 16
_STRIP = 8


class _Layout(NamedTuple):
    """How a scheme's strips are laid out.

    Attributes:
        bits: Bits of a code.
        middle: What stored codes are too high.
        second: What the second number of a group is: 0 none, 1 a minimum, 2 a zero point.
    """

    bits: int
    middle: int
    second: int


_LAYOUTS = {
    "Q4_0": _Layout(4, 8, 0),
    "Q4_1": _Layout(4, 0, 1),
    "Z4": _Layout(4, 0, 2),
    "Q8_0": _Layout(8, 128, 0),
    "Z8": _Layout(8, 128, 2),
}


def is_taken(schemes: Iterable[str]) -> bool:
    """Returns whether the kernels read all of these schemes."""
    return all(scheme in _LAYOUTS for scheme in schemes)


def multiply(values: Tensor, scheme: str, packed: Tensor, num_outputs: int, out: Tensor) -> None:
    """Writes the product of activations and a packed matrix, summed in fp32, into `out`.

    Long sums of few outputs are computed in parts, always the same for a matrix, so results don't vary.

    Args:
        values: `[R, C]`, contiguous; C columns of the matrix, in its order.
        scheme: One of those that `is_taken` knows.
        packed: The matrix, uint8 on the values' device, whose address is even.
        num_outputs: Rows of the matrix, O.
        out: `[R, O]`, the last dimension contiguous.

    Source: Frantar et al. 2024, «MARLIN», section 3 (weights dequantised in registers, next to the product).
    """
    num_rows, num_cols = values.shape
    tiles, chunks = triton.cdiv(num_outputs, _TILE_OUTPUTS), triton.cdiv(num_cols, 32 * _TILE_GROUPS)
    splits = min(triton.cdiv(_PROGRAMS, tiles), chunks, _MAX_SPLITS)
    target = out if splits == 1 else torch.empty(splits, num_rows, num_outputs, dtype=torch.float32, device=out.device)
    tile_rows = max(16, triton.next_power_of_2(min(num_rows, MAX_ROWS)))
    _multiply_tile[(tiles, splits, triton.cdiv(num_rows, tile_rows))](
        values,
        packed,
        packed.view(torch.float16),
        target,
        num_rows,
        num_cols,
        num_outputs,
        target.stride(-2),
        TILE_ROWS=tile_rows,
        SPLITS=splits,
        **_constants(scheme, num_cols),
    )
    if splits > 1:
        out.copy_(target.sum(0))


def unpack(ids: Tensor, scheme: str, packed: Tensor, num_outputs: int, out: Tensor) -> None:
    """Writes the values of some rows, computed in fp32 and rounded, into `out`.

    Args:
        ids: int64 `[N]`; rows that are not in the matrix are left as they are in `out`.
        scheme: One of those that `is_taken` knows.
        packed: The matrix, uint8 on the device of `ids`, whose address is even.
        num_outputs: Rows of the matrix.
        out: `[N, C]`, contiguous.
    """
    num_cols = out.shape[1]
    tiles = triton.cdiv(len(ids), _TILE_OUTPUTS)
    _unpack_tile[(tiles, triton.cdiv(num_cols, 32 * _TILE_GROUPS))](
        ids,
        packed,
        packed.view(torch.float16),
        out,
        len(ids),
        num_cols,
        num_outputs,
        **_constants(scheme, num_cols),
    )


def _constants(scheme: str, num_cols: int) -> dict[str, int]:
    """Returns what is compiled into a kernel for a scheme."""
    layout = _LAYOUTS[scheme]
    strip_bytes = packed_bytes(scheme, _STRIP, num_cols)
    head_bytes = strip_bytes - num_cols * _STRIP * layout.bits // 8
    constants = {
        "STRIP_BYTES": strip_bytes,
        "HEAD_BYTES": head_bytes,
        "BITS": layout.bits,
        "GROUP_BYTES": 4 * layout.bits,
    }
    constants |= {"MIDDLE": layout.middle, "SECOND": layout.second}
    return constants | {"TILE_GROUPS": _TILE_GROUPS, "TILE_OUTPUTS": _TILE_OUTPUTS}


@triton.jit
def _scaled(codes, numbers, strip, output, group, is_there, STRIP_BYTES: tl.constexpr, SECOND: tl.constexpr):
    """Values in fp32 of codes less what they are too high; all but `numbers` of one shape."""
    # Half-precision numbers: eight scales of a group, then as many minima or zero points.
    at = strip * (STRIP_BYTES // 2) + group * (16 if SECOND else 8) + output
    scale = tl.load(numbers + at, is_there, other=0.0).to(tl.float32)
    value = codes.to(tl.float32) * scale
    if SECOND == 1:
        value += tl.load(numbers + at + 8, is_there, other=0.0).to(tl.float32)
    if SECOND == 2:
        # Both products are exact, so the difference alone is rounded.
        value -= tl.load(numbers + at + 8, is_there, other=0.0).to(tl.float32) * scale
    return value


@triton.jit
def _codes(
    packed, strip, output, group, place, is_there, STRIP_BYTES: tl.constexpr, HEAD: tl.constexpr, BITS: tl.constexpr
):
    """Bytes of codes: byte `place` of each group, of 16 for four bits and 32 for eight, as int32."""
    at = strip * STRIP_BYTES + HEAD + group * (32 * BITS) + place // 8 * 64 + output * 8 + place % 8
    return tl.load(packed + at, is_there, other=0).to(tl.int32)


@triton.jit
def _multiply_tile(
    values,
    packed,
    numbers,
    out,
    num_rows,
    num_cols,
    num_outputs,
    out_stride,
    TILE_ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    STRIP_BYTES: tl.constexpr,
    HEAD_BYTES: tl.constexpr,
    BITS: tl.constexpr,
    GROUP_BYTES: tl.constexpr,
    MIDDLE: tl.constexpr,
    SECOND: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    TILE_OUTPUTS: tl.constexpr,
):
    """Multiplies a tile of rows with a tile of outputs, over one part of the columns."""
    outputs = tl.program_id(0) * TILE_OUTPUTS + tl.arange(0, TILE_OUTPUTS)
    split = tl.program_id(1)
    rows = tl.program_id(2) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    strip, output = (outputs // 8).to(tl.int64)[None, :], (outputs % 8)[None, :]
    steps = tl.arange(0, TILE_GROUPS * GROUP_BYTES)
    place = steps % GROUP_BYTES
    num_groups = num_cols // 32
    part = tl.cdiv(tl.cdiv(num_groups, TILE_GROUPS), SPLITS) * TILE_GROUPS
    stop = tl.minimum(split * part + part, num_groups)
    total = tl.zeros([TILE_ROWS, TILE_OUTPUTS], tl.float32)
    for begin in range(split * part, stop, TILE_GROUPS):
        group = begin + steps // GROUP_BYTES
        is_there = (group < stop)[:, None] & (outputs < num_outputs)[None, :]
        is_value = (rows < num_rows)[:, None] & (group < stop)[None, :]
        codes = _codes(packed, strip, output, group[:, None], place[:, None], is_there, STRIP_BYTES, HEAD_BYTES, BITS)
        at = values + rows.to(tl.int64)[:, None] * num_cols + (group * 32 + place)[None, :]
        for half in tl.static_range(8 // BITS):
            found = ((codes >> 4 * half) & 15 if BITS == 4 else codes) - MIDDLE
            weight = _scaled(found, numbers, strip, output, group[:, None], is_there, STRIP_BYTES, SECOND)
            value = tl.load(at + 16 * half, is_value, other=0.0)
            total += tl.dot(value, weight.to(value.dtype), input_precision="ieee")
    to = out + (split.to(tl.int64) * num_rows + rows)[:, None] * out_stride + outputs[None, :]
    tl.store(to, total.to(out.dtype.element_ty), (rows < num_rows)[:, None] & (outputs < num_outputs)[None, :])


@triton.jit
def _unpack_tile(
    ids,
    packed,
    numbers,
    out,
    num_ids,
    num_cols,
    num_outputs,
    STRIP_BYTES: tl.constexpr,
    HEAD_BYTES: tl.constexpr,
    BITS: tl.constexpr,
    GROUP_BYTES: tl.constexpr,
    MIDDLE: tl.constexpr,
    SECOND: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    TILE_OUTPUTS: tl.constexpr,
):
    """Unpacks some columns of a tile of rows."""
    places = tl.program_id(0) * TILE_OUTPUTS + tl.arange(0, TILE_OUTPUTS)
    row = tl.load(ids + places, places < num_ids, other=-1)[:, None]
    steps = tl.arange(0, TILE_GROUPS * GROUP_BYTES)
    group = (tl.program_id(1) * TILE_GROUPS + steps // GROUP_BYTES)[None, :]
    place = (steps % GROUP_BYTES)[None, :]
    is_there = (row >= 0) & (row < num_outputs) & (group < num_cols // 32)
    strip, output = row // 8, row % 8
    codes = _codes(packed, strip, output, group, place, is_there, STRIP_BYTES, HEAD_BYTES, BITS)
    to = out + places.to(tl.int64)[:, None] * num_cols + group * 32 + place
    for half in tl.static_range(8 // BITS):
        found = ((codes >> 4 * half) & 15 if BITS == 4 else codes) - MIDDLE
        value = _scaled(found, numbers, strip, output, group, is_there, STRIP_BYTES, SECOND)
        tl.store(to + 16 * half, value.to(out.dtype.element_ty), is_there)
