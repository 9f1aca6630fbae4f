"""GPTQ: rounds column by column and lets the columns that follow make up for each error."""

import torch
from torch import Tensor

from llm.errors import CheckpointError
from llm.quantizing.grid import Grid, Grouped, best_scales, nearest

BLOCK_COLUMNS = 128
_MAX_DAMPINGS = 6


def gptq(matrix: Tensor, gram: Tensor, grid: Grid, *, damping: float = 0.01, act_order: bool = True) -> Grouped:
    """Rounds a matrix so that its products with the layer's inputs change least.

    Scales come from the values before rounding with `act_order`, where a group's columns are visited apart; otherwise
    from the group as it is when its first column is reached.

    Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
    algorithm 1, with columns in the order of the published code's `act_order` and fixed groups.

    Args:
        matrix: fp32 `[O, I]`; not changed.
        gram: Sum over tokens of the products of inputs, fp32 `[I, I]`: half the Hessian of the squared error.
        grid: The integers.
        damping: Share of the mean of the diagonal that is added to it.
        act_order: Whether columns with the largest inputs come first.

    Raises:
        CheckpointError: The inputs are not finite, or so large that their products can't be inverted.
    """
    order = gram.diagonal().argsort(descending=True) if act_order else torch.arange(len(gram))
    upper = _factor(gram[order][:, order], damping)
    size = grid.group_size or matrix.shape[1]
    importance = torch.empty(len(gram))
    importance[order] = upper.diagonal().reciprocal().square()
    is_static = act_order or size > BLOCK_COLUMNS
    scales = nearest(matrix, grid, importance).scales if is_static else matrix.new_empty(len(matrix), len(gram) // size)
    work = _Work(matrix.T[order].contiguous(), upper, grid)
    codes = torch.empty_like(work.columns)
    for start in range(0, len(order), BLOCK_COLUMNS):
        stop = min(start + BLOCK_COLUMNS, len(order))
        errors = work.columns[start:stop].clone()
        for column in range(start, stop):
            if not is_static and column % size == 0:
                group = slice(column, column + size)
                scales[:, column // size, None] = best_scales(
                    work.columns[group].T.contiguous(), grid, importance[None, group]
                )
            scale = scales[:, order[column] // size]
            codes[order[column]] = work.round(column, stop, scale, errors[column - start])
        work.columns[stop:] -= upper[start:stop, stop:].T @ errors
    return Grouped(codes.T.to(torch.int8).contiguous(), scales.contiguous())


class _Work:
    """The columns that are still to be rounded.

    Attributes:
        columns: fp32 `[I, O]`, in the order of rounding; each error is already spread over those that follow.
        upper: Upper Cholesky factor of the inverse of the damped Hessian, `[I, I]`.
        grid: The integers.
    """

    def __init__(self, columns: Tensor, upper: Tensor, grid: Grid) -> None:
        self.columns, self.upper, self.grid = columns, upper, grid

    def round(self, column: int, stop: int, scale: Tensor, error: Tensor) -> Tensor:
        """Rounds a column, spreads its error over those up to `stop`, and notes the error; returns the integers."""
        values = self.columns[column]
        codes = self.grid.codes(values, scale)
        torch.sub(values, codes * scale, out=error)
        error /= self.upper[column, column]
        self.columns[column + 1 : stop].addr_(self.upper[column, column + 1 : stop], error, alpha=-1)
        return codes


def _factor(gram: Tensor, damping: float) -> Tensor:
    """Returns the upper Cholesky factor of the inverse, with more damping where the matrix isn't positive definite."""
    mean = float(gram.diagonal().mean())
    if not torch.isfinite(gram).all():
        raise CheckpointError("inputs of a layer must be finite on the calibration text, got NaN or infinity")
    for _ in range(_MAX_DAMPINGS):
        damped = gram.clone()
        damped.diagonal().add_(damping * mean + 1e-12)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                factor: Tensor = upper
                return factor
        damping *= 10
    raise CheckpointError(
        f"products of a layer's inputs must be invertible, got none that are after {_MAX_DAMPINGS} dampings\n"
        "hint: `method` rtn needs no inputs"
    )
