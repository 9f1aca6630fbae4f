"""Low-rank adapters in the halves of a block in training on a CPU.

An adapter adds `scale * b @ (a @ x)` to some columns of a product. All adapters of a matrix share their products: one
with all `a`, and one with all `b` as blocks of a matrix. Narrow products cost little but the start of all threads, for
which a machine with other work makes them wait for milliseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRankPart:
    """Where an adapter adds to a product.

    Attributes:
        rows: Columns of the product, which are rows of the weights.
        scale: Factor on the adapter's product.
    """

    rows: slice
    scale: float


@dataclass(frozen=True)
class _Block:
    """The adapters of some adjacent columns of a product.

    Attributes:
        columns: From the first adapter's first column to the last one's last.
        ranks: Their channels among those of all adapters.
        matrix: Each `scale * b` as a block, `[columns, ranks]`.
        members: Place of each adapter's block in `matrix`, and its scale.
    """

    columns: slice
    ranks: slice
    matrix: Tensor
    members: list[tuple[slice, slice, float]]


def low_rank(values: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """Returns the products of values `[T, C]` with each `a`, in one tensor `[T, sum of ranks]`; empty without adapters.

    Args:
        values: What the matrix multiplies.
        factors: `a` `[rank, C]` and `b` `[outputs, rank]` of each adapter, in the type of `values`.
    """
    return [torch.mm(values, torch.cat(list(factors[::2])).t())] if factors else []


def add_low_rank(
    product: Tensor, low: Sequence[Tensor], parts: Sequence[LowRankPart], factors: Sequence[Tensor], *, first: int = 0
) -> None:
    """Adds adapters to columns of a product, in place.

    Args:
        product: `[T, O]`, or some of its columns.
        low: What `low_rank` returned.
        parts: All adapters of the matrix, in the order of their rows.
        factors: Their factors.
        first: Number of the first column in `product`.
    """
    block = _block(parts, factors, first, first + product.shape[1]) if parts else None
    if block is not None:
        _add(product[:, block.columns], low[0][:, block.ranks], block.matrix.t())


def low_rank_gradients(
    gradients: Sequence[Tensor],
    to_values: Tensor,
    values: Tensor,
    parts: Sequence[LowRankPart],
    kept: tuple[Sequence[Tensor], Sequence[Tensor]],
) -> list[Tensor]:
    """Returns the gradients of each adapter's `a` and `b` in fp32, and adds those of the values to `to_values`.

    Args:
        gradients: Gradient of the product `[T, O]`, cut into pieces of adjacent columns.
        to_values: Gradient of the values so far, `[T, C]`.
        values: What was multiplied.
        parts: All adapters of the matrix, in the order of their rows.
        kept: The factors, and what `low_rank` returned.
    """
    factors, lows = kept
    if not lows:
        return []
    to_low, to_second = torch.empty_like(lows[0]), []
    first = 0
    for gradient in gradients:
        block = _block(parts, factors, first, first + gradient.shape[1])
        first += gradient.shape[1]
        if block is None:
            continue
        own = gradient[:, block.columns]
        to_low[:, block.ranks] = torch.mm(own, block.matrix)
        to_matrix = torch.mm(own.t(), lows[0][:, block.ranks])
        to_second += [to_matrix[rows, ranks].float() * scale for rows, ranks, scale in block.members]
    _add(to_values, to_low, torch.cat(list(factors[::2])))
    to_first = torch.split(torch.mm(to_low.t(), values).float(), [len(a) for a in factors[::2]])
    return [each for pair in zip(to_first, to_second, strict=True) for each in pair]


def _block(parts: Sequence[LowRankPart], factors: Sequence[Tensor], start: int, stop: int) -> _Block | None:
    """Returns the adapters of columns from `start` to `stop`, with numbers of columns from `start` on."""
    ranks = [0]
    for a in factors[::2]:
        ranks.append(ranks[-1] + len(a))
    inside = [idx for idx, part in enumerate(parts) if start <= part.rows.start < stop]
    if not inside:
        return None
    top, left = parts[inside[0]].rows.start, ranks[inside[0]]
    bottom, right = parts[inside[-1]].rows.stop, ranks[inside[-1] + 1]
    matrix = factors[0].new_zeros(bottom - top, right - left)
    members = []
    for idx in inside:
        part = parts[idx]
        rows = slice(part.rows.start - top, part.rows.stop - top)
        own = slice(ranks[idx] - left, ranks[idx + 1] - left)
        torch.mul(factors[2 * idx + 1], part.scale, out=matrix[rows, own])
        members.append((rows, own, part.scale))
    return _Block(slice(top - start, bottom - start), slice(left, right), matrix, members)


def _add(total: Tensor, first: Tensor, second: Tensor) -> None:
    if total.dtype == first.dtype:
        total.addmm_(first, second)
    else:
        total.add_(torch.mm(first, second))
