"""What the rounding of activations to 8 bits does to logits, to first order; written from the definition in docs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llm.models import DecoderModel, ForwardContext, positions_of

_GROUP, _LARGEST_CODE = 32, 127


def deviations(model: DecoderModel, ids: list[int], pairs: list[tuple[int, int, int]]) -> list[float]:
    """Standard deviations of differences between logits under rounded inputs of all products.

    Each number x of a group whose largest magnitude is m moves by at most half a step of m / 127. With errors that are
    independent and uniform, the difference d of two logits has the variance Σ (∂d/∂x)² · (m / 127)² / 12, to first
    order. Earlier tokens count, too: their keys and values move.

    Args:
        model: The model with expanded weights, in fp32.
        ids: Token ids.
        pairs: Position, and the two tokens whose logits are subtracted.

    Returns:
        A deviation for each pair.
    """
    with torch.enable_grad(), _noises(model) as noises:
        logits = model(torch.tensor(ids), positions_of((len(ids),)), ForwardContext.for_sequences((len(ids),)))
        leaves, steps = [noise for noise, _ in noises], [step for _, step in noises]
        found = []
        for position, first, second in pairs:
            difference = logits[position, first] - logits[position, second]
            slopes = torch.autograd.grad(difference, leaves, retain_graph=True)
            variance = sum(
                float(((slope * step).double() ** 2).sum()) for slope, step in zip(slopes, steps, strict=True)
            )
            found.append((variance / 12) ** 0.5)
    return found


@contextmanager
def _noises(model: DecoderModel) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Adds zeros to the inputs of each product; yields the zeros and the steps of the codes, product after product."""
    found: list[tuple[Tensor, Tensor]] = []

    def add(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        values = inputs[0].detach()
        groups = values.unflatten(-1, (-1, _GROUP))
        step = (groups.abs().amax(-1, keepdim=True) / _LARGEST_CODE).expand_as(groups).flatten(-2)
        noise = torch.zeros_like(values, requires_grad=True)
        found.append((noise, step))
        return (inputs[0] + noise,)

    handles = [module.register_forward_pre_hook(add) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
