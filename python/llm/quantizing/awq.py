"""AWQ: enlarges the columns that large activations meet, so that rounding costs them less.

The layer before shrinks by the same factors, so the block computes what it did. Layers before are norms, the values of
attention, and the upper half of a gated feed-forward.

Source: Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", equations 4
and 5, with the published code's range of scales and its search for the bounds of each group.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llm.errors import CheckpointError
from llm.models.decoder import TransformerBlock
from llm.models.layers.attention import Attention
from llm.models.layers.mlp import MLP, SwiGLU
from llm.models.layers.norm import LayerNorm, LayerNormNoBias, OffsetRMSNorm, RMSNorm
from llm.quantizing.grid import Grid, Grouped, best_scales, rough
from llm.quantizing.inputs import Inputs

# Exponents of the mean activation: some far apart, then neighbours of the best.
_NUM_EXPONENTS = 20
_DISTANCES = (4, 2, 1)
_LEAST_ACTIVATION = 1e-4
# Outputs of a matrix on which exponents are compared: the loss is a sum over outputs, and some show its minimum.
_SAMPLED_OUTPUTS = 512
_NORMS = (RMSNorm, OffsetRMSNorm, LayerNorm, LayerNormNoBias)

# Divides a layer's outputs by factors; returns the factors by which they were divided, after rounding.
_Shrink = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Place:
    """A layer and the linear layers that its outputs go to, unchanged or multiplied by numbers.

    Attributes:
        shrink: Divides the outputs by factors.
        readers: Names of the linear layers.
        heads: Query heads and key-value heads; the queries' heads of a group share factors.
    """

    shrink: _Shrink
    readers: Sequence[str]
    heads: tuple[int, int] = (1, 1)

    def reduced(self, columns: Tensor) -> Tensor:
        """Returns the means of the columns that share a factor."""
        heads, groups = self.heads
        return columns.view(groups, heads // groups, -1).mean(1).flatten()

    def expanded(self, factors: Tensor) -> Tensor:
        """Returns each column's factor."""
        heads, groups = self.heads
        return factors.view(groups, 1, -1).expand(groups, heads // groups, -1).flatten()


def scale_block(
    block: nn.Module, collected: Mapping[str, list[Inputs]], grid: Callable[[int], Grid | None], dtype: torch.dtype
) -> None:
    """Moves size from activations to the weights' columns where that brings rounded outputs nearer.

    Args:
        block: A block with its weights in fp32, which change.
        collected: Inputs of its linear layers by the names of their weights; they change with the weights.
        grid: Returns the integers of a matrix with so many columns.
        dtype: Type in which norms are stored. Factors are those that remain after rounding.

    Raises:
        CheckpointError: The inputs are not finite.
    """
    for place in _places(block, dtype):
        names = [f"{name}.weight" for name in place.readers]
        readers = [(block.get_parameter(name), collected[name][0]) for name in names]
        factors = _factors(place, readers, grid)
        if factors is None:
            continue
        columns = place.expanded(place.shrink(factors))
        for matrix, inputs in readers:
            matrix.mul_(columns)
            inputs.gram /= columns[:, None] * columns
            inputs.magnitude /= columns


def clipped(matrix: Tensor, gram: Tensor, grid: Grid) -> Grouped:
    """Rounds to the nearest integer, with the scale of each group that changes the group's products least.

    Args:
        matrix: fp32 `[O, I]`.
        gram: Sum over tokens of the products of inputs, `[I, I]`.
        grid: The integers.
    """
    size = grid.group_size or matrix.shape[1]
    codes, scales = [], []
    for start in range(0, matrix.shape[1], size):
        columns = slice(start, start + size)
        group = matrix[:, columns].contiguous()
        scales.append(best_scales(group, grid, gram[None, columns, columns]))
        codes.append(grid.codes(group, scales[-1]).to(torch.int8))
    return Grouped(torch.cat(codes, 1), torch.cat(scales, 1))


def _factors(
    place: _Place, readers: Sequence[tuple[Tensor, Inputs]], grid: Callable[[int], Grid | None]
) -> Tensor | None:
    """Returns the best of the factors that are tried, or None if none is better than 1."""
    inputs = readers[0][1]
    if not all(torch.isfinite(each.gram).all() for _, each in readers):
        raise CheckpointError("inputs of a layer must be finite on the calibration text, got NaN or infinity")
    activation = place.reduced(inputs.magnitude / max(inputs.num_tokens, 1)).clamp_min(_LEAST_ACTIVATION)
    samples = [_Sample.of(weight, each.gram) for weight, each in readers]
    lost: dict[int, float] = {}
    best = 0
    for distance in _DISTANCES:
        nearby = (best - distance, best + distance) if lost else range(0, _NUM_EXPONENTS, distance)
        for step in nearby:
            if 0 <= step < _NUM_EXPONENTS:
                columns = place.expanded(_enlarging(activation, step))
                lost[step] = sum(sample.loss(columns, grid) for sample in samples)
        best = min(lost, key=lost.__getitem__)
    return _enlarging(activation, best) if best else None


def _enlarging(activation: Tensor, step: int) -> Tensor:
    """Returns the factors of an exponent; the largest is as far above 1 as the smallest is below."""
    factors = activation ** (step / _NUM_EXPONENTS)
    return factors / (factors.max() * factors.min()).sqrt()


@dataclass(frozen=True)
class _Sample:
    """Outputs of a matrix at equal distances.

    Attributes:
        weight: fp32 `[S, I]`.
        gram: Sum over tokens of the products of inputs, `[I, I]`.
        share: Outputs of the matrix for each of the sample.
    """

    weight: Tensor
    gram: Tensor
    share: float

    @classmethod
    def of(cls, weight: Tensor, gram: Tensor) -> "_Sample":
        """Returns a sample of a matrix, or all of a small one."""
        rows = weight[:: -(-len(weight) // _SAMPLED_OUTPUTS)].contiguous()
        return cls(rows, gram, len(weight) / len(rows))

    def loss(self, factors: Tensor, grid: Callable[[int], Grid | None]) -> float:
        """Returns the squared error of the products with rounded weights, without a search for scales."""
        integers = grid(self.weight.shape[1])
        if integers is None:
            return 0.0
        errors = rough(self.weight * factors, integers) / factors - self.weight
        return self.share * float(((errors @ self.gram) * errors).sum())


def _places(block: nn.Module, dtype: torch.dtype) -> Iterator[_Place]:
    """Yields the places in a block where factors can move. Layers of other kinds have none."""
    if not isinstance(block, TransformerBlock):
        return
    attention, mlp = block.attention, block.mlp
    first = ["attention.qkv_proj"] if type(attention) is Attention else []
    second = {SwiGLU: ["mlp.gate_up_proj"], MLP: ["mlp.up_proj"]}.get(type(mlp), [])
    if block.placement in ("pre", "both"):
        pairs = [(block.norm1, first), (block.norm2, second)]
        if block.is_parallel:
            pairs = [(block.norm1, first + second if first and second else [])]
        for norm, readers in pairs:
            if readers and type(norm) in _NORMS:
                yield _Place(_norm_shrinker(norm, dtype), readers)
    if type(attention) is Attention:
        start = (attention.num_heads + attention.num_kv_heads) * attention.head_dim
        heads = attention.num_heads, attention.num_kv_heads
        yield _Place(_row_shrinker(attention.qkv_proj, start), ["attention.o_proj"], heads)
    if type(mlp) is SwiGLU:
        yield _Place(_row_shrinker(mlp.gate_up_proj, mlp.down_proj.in_features), ["mlp.down_proj"])


def _norm_shrinker(norm: nn.Module, dtype: torch.dtype) -> _Shrink:
    def shrink(factors: Tensor) -> Tensor:
        weight = norm.get_parameter("weight")
        offset = 1.0 if isinstance(norm, OffsetRMSNorm) else 0.0
        stored = ((weight + offset) / factors - offset).to(dtype).float()
        is_kept = (weight + offset == 0) | (stored + offset == 0)
        stored = torch.where(is_kept, weight, stored)
        applied = torch.where(is_kept, torch.ones_like(weight), (weight + offset) / (stored + offset))
        weight.copy_(stored)
        if type(norm) is LayerNorm:
            norm.bias.div_(applied)
        return applied

    return shrink


def _row_shrinker(layer: nn.Linear, start: int) -> _Shrink:
    """Returns what divides the rows from `start` on."""

    def shrink(factors: Tensor) -> Tensor:
        layer.weight[start:].div_(factors[:, None])
        if layer.bias is not None:
            layer.bias[start:].div_(factors)
        return factors

    return shrink
