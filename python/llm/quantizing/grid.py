"""Integers with a scale per group of a row, and the search for the scale that loses least."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Scales that are tried for each group, as a share of the scale with which the largest value is the lowest integer.
# Negative ones turn the group round, so that its largest value is the highest integer.
_SHARES = {
    4: (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 1.05, 1.1, -1.14, -1.09, -1.04, -0.99, -0.94, -0.88, -0.82, -0.75),
    8: (1.0, 0.99, -128 / 127),
}
_REFINEMENTS = 2
# Most that rounding to half precision moves a number, relative to it.
_HALF_STEP = 2**-11
# Values at a time, so that they stay in the cache.
_CHUNK_VALUES = 1 << 16


class Grid(NamedTuple):
    """Signed integers of a number of bits, scaled by group.

    Attributes:
        bits: 4 or 8.
        group_size: Number of neighbours in a row that share a scale; None: the whole row does.
        scale_dtype: Type in which scales are stored.
    """

    bits: int
    group_size: int | None
    scale_dtype: torch.dtype

    @property
    def low(self) -> int:
        """The lowest integer."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """The highest integer."""
        return (1 << (self.bits - 1)) - 1

    def stored(self, scales: Tensor) -> Tensor:
        """Returns scales as they are stored, in fp32; a scale of zero becomes one, so that values can be divided.

        Of fp32, those of half precision are taken where it loses no bits to a small exponent: packed weights hold them.
        """
        rounded = scales.to(self.scale_dtype).float()
        if self.scale_dtype == torch.float32:
            halves = scales.to(torch.float16).float()
            rounded = torch.where((halves - scales).abs() <= scales.abs() * _HALF_STEP, halves, rounded)
        return torch.where(rounded == 0, torch.ones_like(rounded), rounded)

    def codes(self, values: Tensor, scales: Tensor) -> Tensor:
        """Returns the nearest integers, in fp32."""
        return (values / scales).round_().clamp_(self.low, self.high)


@dataclass(frozen=True, eq=False)
class Grouped:
    """A matrix of integers with scales.

    Attributes:
        codes: int8 `[O, I]`.
        scales: fp32 `[O, G]`, as they are stored.
    """

    codes: Tensor
    scales: Tensor

    def values(self) -> Tensor:
        """Returns the values, fp32 `[O, I]`."""
        groups = self.codes.view(*self.scales.shape, -1)
        return (groups * self.scales.unsqueeze(-1)).view(self.codes.shape)

    def take(self, rows: Tensor) -> "Grouped":
        """Returns the matrix of some rows."""
        return Grouped(self.codes[rows], self.scales[rows])


def nearest(matrix: Tensor, grid: Grid, importance: Tensor | None = None) -> Grouped:
    """Rounds each value to the nearest integer, with the scale of each group that loses least.

    Args:
        matrix: fp32 `[O, I]`, I a multiple of the group size.
        grid: The integers.
        importance: Weight of each column's squared error, fp32 `[I]`; None: all alike.
    """
    size = grid.group_size or matrix.shape[1]
    groups = matrix.reshape(-1, size)
    weights = None if importance is None else importance.view(1, -1, size).expand(len(matrix), -1, -1).reshape(-1, size)
    scales = torch.empty(len(groups), 1)
    codes = torch.empty(groups.shape, dtype=torch.int8)
    for part in _chunks(len(groups), size):
        scales[part] = best_scales(groups[part], grid, None if weights is None else weights[part])
        codes[part] = grid.codes(groups[part], scales[part]).to(torch.int8)
    return Grouped(codes.view(matrix.shape), scales.view(len(matrix), -1))


def rough(matrix: Tensor, grid: Grid) -> Tensor:
    """Returns the values of a matrix after rounding with scales of the largest values, fp32 `[O, I]`."""
    groups = matrix.reshape(-1, grid.group_size or matrix.shape[1])
    scales = grid.stored(_widest(groups, grid))
    return grid.codes(groups, scales).mul_(scales).view(matrix.shape)


def _widest(groups: Tensor, grid: Grid) -> Tensor:
    """Returns the scale of each group with which its largest value is the lowest integer."""
    return groups.gather(1, groups.abs().argmax(1, keepdim=True)) / grid.low


def _chunks(num_groups: int, size: int) -> Iterator[slice]:
    step = max(_CHUNK_VALUES // size, 1)
    for start in range(0, num_groups, step):
        yield slice(start, start + step)


def best_scales(groups: Tensor, grid: Grid, weights: Tensor | None = None) -> Tensor:
    """Returns the scale of each group that loses least.

    Tries shares of the largest value, and improves the best of them: with the integers fixed, the best scale is that of
    least squares.

    Args:
        groups: fp32 `[N, g]`.
        grid: The integers.
        weights: Weight of each squared error, `[N, g]` or `[1, g]`, or `[1, g, g]` of the products of all pairs of
            errors; None: all alike.

    Returns:
        fp32 `[N, 1]`, rounded as they are stored.
    """
    base = _widest(groups, grid)
    best = grid.stored(base)
    lost = _loss(groups, grid, best, weights)
    # With the products of all pairs a loss costs most; fitting afterwards makes up for the shares that are left out.
    is_costly = weights is not None and weights.dim() == 3
    for share in _SHARES[grid.bits][2::2] if is_costly else _SHARES[grid.bits][1:]:
        best, lost = _better(groups, grid, weights, (base * share, best, lost))
    for _ in range(_REFINEMENTS):
        codes = grid.codes(groups, best)
        weighted = _weighted(codes, weights)
        fitted = (weighted * groups).sum(1, keepdim=True) / (weighted * codes).sum(1, keepdim=True).clamp_min(1e-30)
        best, lost = _better(groups, grid, weights, (fitted, best, lost))
    return best


def _better(
    groups: Tensor, grid: Grid, weights: Tensor | None, found: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns scales and losses of whichever is better in each group: a candidate, or the best so far."""
    candidate, best, lost = found
    candidate = grid.stored(candidate)
    new = _loss(groups, grid, candidate, weights)
    wins = new < lost
    return torch.where(wins, candidate, best), torch.where(wins, new, lost)


def _loss(groups: Tensor, grid: Grid, scales: Tensor, weights: Tensor | None) -> Tensor:
    errors = grid.codes(groups, scales).mul_(scales).sub_(groups)
    return (_weighted(errors, weights) * errors).sum(1, keepdim=True)


def _weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return values
    return values @ weights[0] if weights.dim() == 3 else values * weights
