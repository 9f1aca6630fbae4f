"""Low-rank adapters of linear layers, with the names and values of PEFT's.

A layer of this package can be several projections at once, such as query, key and value. Adapters belong to
projections: each has its own rows of the layer's matrix.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.models.layers.cpu_training import Linear
from llm.models.layers.packed import PackedLinear, packed_product


@dataclass(frozen=True)
class Factors:
    """The trained values of one adapter.

    Attributes:
        lora_a: `[rank, inputs]`.
        lora_b: `[outputs, rank]`.
        scale: Factor on their product.
        magnitude: Length of each output's row, `[outputs]`; None leaves lengths to the product.
    """

    lora_a: Tensor
    lora_b: Tensor
    scale: float
    magnitude: Tensor | None = None

    def merged(self, weight: Tensor) -> Tensor:
        """Returns the weights `[outputs, inputs]` with the adapter in them, computed in fp32 and rounded.

        Source: Hu et al. 2021, "LoRA", equation 3; Liu et al. 2024, "DoRA", equation 5.
        """
        wide = torch.addmm(weight.float(), self.lora_b.float(), self.lora_a.float(), alpha=self.scale)
        if self.magnitude is not None:
            wide *= (self.magnitude.float() / torch.linalg.vector_norm(wide, dim=1)).unsqueeze(1)
        return wide.to(weight.dtype)


class LowRank(nn.Module):
    """The adapter of one projection: `scale * lora_b @ lora_a` is added to its weights.

    `lora_b` begins at zero, so a new adapter changes nothing.

    Source: Hu et al. 2021, "LoRA", section 4.1.
    """

    def __init__(self, num_inputs: int, rows: slice, rank: int, scale: float, device: torch.device) -> None:
        super().__init__()
        self.rows, self.scale = rows, scale
        self.lora_a = nn.Parameter(torch.empty(rank, num_inputs, device=device))
        self.lora_b = nn.Parameter(torch.zeros(rows.stop - rows.start, rank, device=device))
        self.magnitude: nn.Parameter | None = None
        if not self.lora_a.is_meta:
            nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def factors(self, gather: Callable[[Tensor], Tensor] = Tensor.detach) -> Factors:
        """Returns the values, without gradients; `gather` puts those together that are spread over processes."""
        magnitude = None if self.magnitude is None else gather(self.magnitude.detach())
        return Factors(gather(self.lora_a.detach()), gather(self.lora_b.detach()), self.scale, magnitude)


class AdaptedLinear(Linear):
    """A linear layer whose frozen weights are those of another layer, with adapters of some of its projections.

    Args:
        layer: The layer; its weights stay where they are, and packed if they are packed.
        adapters: Adapters by the names of their projections.
        dropout: Share of the adapters' inputs that are dropped in training.

    Attributes:
        is_off: Whether the layer leaves its adapters out; `adapters_off` sets it.
    """

    is_off = False

    def __init__(self, layer: nn.Linear | PackedLinear, adapters: Mapping[str, LowRank], dropout: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.matrix = layer.matrix if isinstance(layer, PackedLinear) else None
        weight = None if isinstance(layer, PackedLinear) else cast(nn.Parameter, layer.weight)
        self.register_parameter("weight", weight)
        self.register_parameter("bias", layer.bias)
        self.has_bias = layer.bias is not None
        self.adapters = nn.ModuleDict(adapters)
        self.dropout = nn.Dropout(dropout)
        self.norms: Tensor | None
        self.register_buffer("norms", None, persistent=False)

    def parts(self) -> Iterator[tuple[str, LowRank]]:
        """Yields the adapters with their names, in the order of their rows."""
        found = ((name, cast(LowRank, part)) for name, part in self.adapters.items())
        return iter(sorted(found, key=lambda entry: entry[1].rows.start))

    def use_magnitudes(self) -> None:
        """Adds the length of each row to what is trained, from the lengths that the rows have.

        Source: Liu et al. 2024, "DoRA", section 4.1.
        """
        # Lengths of frozen rows are computed once.
        self.norms = torch.linalg.vector_norm(self.weight.detach().float(), dim=1)
        for _, part in self.parts():
            part.magnitude = nn.Parameter(self.norms[part.rows].clone())

    def forward(self, values: Tensor) -> Tensor:
        """Maps `[..., C]` to `[..., O]`."""
        packed = self.matrix
        product = self._base(values) if packed is None else packed_product(values, packed, self.bias)
        if self.is_off:
            return product
        parts = [part for _, part in self.parts()]
        update = self._update(self.dropout(values), parts).to(product.dtype)
        if self.norms is None:
            return product + update
        # A bias is not part of the rows whose lengths are trained.
        gain = self._gain(parts).to(product.dtype)
        if not self.has_bias:
            return (product + update) * gain
        bias = self.bias.to(product.dtype)
        return (product - bias + update) * gain + bias

    def round_weight(self, dtype: torch.dtype) -> None:
        """Keeps the frozen weights in the type of their products; lengths of rows need them as they are."""
        if self.matrix is None and self.norms is None:
            self.weight = nn.Parameter(self.weight.detach().to(dtype), requires_grad=False)

    def _base(self, values: Tensor) -> Tensor:
        """Returns the product without adapters."""
        if self.weight.dtype == values.dtype or torch.is_autocast_enabled(values.device.type):
            return super().forward(values)
        return F.linear(values, self.weight.to(values.dtype), self.bias)

    def _update(self, values: Tensor, parts: list[LowRank]) -> Tensor:
        """Returns what the adapters add, `[..., O]`."""
        low = F.linear(values, torch.cat([part.lora_a for part in parts]))
        pieces, end = [], 0
        for part, own in zip(parts, torch.split(low, [len(part.lora_a) for part in parts], dim=-1), strict=True):
            if part.rows.start > end:
                pieces.append(low.new_zeros(*low.shape[:-1], part.rows.start - end))
            pieces.append(F.linear(own, part.lora_b) * part.scale)
            end = part.rows.stop
        if end < self.out_features:
            pieces.append(low.new_zeros(*low.shape[:-1], self.out_features - end))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    def _gain(self, parts: list[LowRank]) -> Tensor:
        """Returns the factor on each output, fp32 `[O]`: 1 where no adapter is."""
        gain = torch.ones(self.out_features, device=self.weight.device)
        pieces, end = [], 0
        for part in parts:
            pieces += [gain[end : part.rows.start], cast(Tensor, part.magnitude) / self._norms_of(part)]
            end = part.rows.stop
        return torch.cat([*pieces, gain[end:]])

    @torch.no_grad()
    def _norms_of(self, part: LowRank) -> Tensor:
        """Returns the lengths of the rows `w + s b a`, `[outputs]`, without a matrix of their size.

        The lengths are constants to the gradient, which saves memory and costs no accuracy.

        Source: Liu et al. 2024, "DoRA", section 4.3, equation 11; |w + s b a|² = |w|² + 2 s b (a wᵀ) + s² b (a aᵀ) bᵀ.
        """
        a, b, scale = part.lora_a.float(), part.lora_b.float(), part.scale  # sharded, they may be gathered in bf16
        with torch.autocast(a.device.type, enabled=False):
            across = self.weight[part.rows].to(a.dtype) @ a.T
            squares = cast(Tensor, self.norms)[part.rows].square()
            squares = squares + 2 * scale * (b * across).sum(1) + scale**2 * ((b @ (a @ a.T)) * b).sum(1)
        return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()


def whole_weight(layer: nn.Module, gather: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Returns the weights of a linear layer `[O, C]`, with adapters in them.

    Args:
        layer: The layer.
        gather: Puts tensors together that are spread over processes; None: none are.
    """
    weight = cast(Tensor, layer.weight)
    if not isinstance(layer, AdaptedLinear):
        return weight
    parts = [part for _, part in layer.parts()]
    if layer.is_off:
        return weight.to(parts[0].lora_a.dtype)
    gather = gather or Tensor.detach
    merged = gather(weight.detach()).to(parts[0].lora_a.dtype, copy=True)
    for part in parts:
        merged[part.rows] = part.factors(gather).merged(merged[part.rows])
    return merged
