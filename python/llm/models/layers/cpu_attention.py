"""Causal attention over the result of one product, in training on a CPU: by this package's kernel or by PyTorch's.

Both take queries, keys and values side by side, `[T, (H + 2K) · D]`, and return the gradient in the same form.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from llm._rust import TrainingAttention, instruction_sets
from llm.models.layers.cpu_training import causal_gradients, flash, rotated

Rotation = tuple[Tensor, Tensor]

# Without vector instructions, PyTorch's kernel takes less time.
_HAS_KERNEL = instruction_sets()[-1] != instruction_sets()[0]
_HEAD_MULTIPLE = 16


class AttentionShape(NamedTuple):
    """What attention does.

    Attributes:
        lengths: Number of tokens of each sequence.
        counts: Numbers of query and of key heads.
        scale: Factor on the scores.
        rotation: Cosines and sines of each token's rotation, fp32 `[T, 1, D/2]`, or None.
    """

    lengths: tuple[int, ...]
    counts: tuple[int, int]
    scale: float
    rotation: Rotation | None


def kernel_suits(head_dim: int, dtype: torch.dtype) -> bool:
    """Returns whether this package's kernel computes attention over heads of this width."""
    return _HAS_KERNEL and head_dim % _HEAD_MULTIPLE == 0 and dtype in (torch.float32, torch.bfloat16)


class KernelAttention:
    """Attention by this package's kernel: half the time of PyTorch's, and no copy of a head.

    Its results are the same bits for every number of threads.
    """

    def __init__(self, shape: AttentionShape, head_dim: int) -> None:
        starts = list(itertools.accumulate(shape.lengths, initial=0))
        self._num_heads, self._width = shape.counts[0], shape.counts[0] * head_dim
        self._kernel = TrainingAttention(
            (*shape.counts, head_dim), shape.scale, starts, shape.rotation, torch.get_num_threads()
        )

    def apply(self, joined: Tensor) -> list[Tensor]:
        """Returns what the gradient needs."""
        mixed = torch.empty(joined.shape[0], self._width, dtype=joined.dtype)
        logsumexp = torch.empty(joined.shape[0], self._num_heads)
        self._kernel.forward(joined, mixed, logsumexp)
        return [joined, mixed, logsumexp]

    def output(self, kept: list[Tensor]) -> Tensor:
        """Returns `[T, H · D]`."""
        return kept[1]

    def gradients(self, gradient: Tensor, kept: list[Tensor]) -> Tensor:
        """Returns the gradient of `joined` for that of the output."""
        joined, mixed, logsumexp = kept
        to_joined = torch.empty_like(joined)
        self._kernel.backward(joined, (mixed, logsumexp), gradient.contiguous(), to_joined)
        return to_joined


class TorchAttention:
    """Attention by PyTorch's kernel, for sequences of the same length."""

    def __init__(self, shape: AttentionShape) -> None:
        self.shape = shape
        self.parts = [shape.counts[0], shape.counts[1], shape.counts[1]]

    def apply(self, joined: Tensor) -> list[Tensor]:
        """Returns what the gradient needs."""
        heads = joined.view(len(joined), sum(self.parts), -1)
        if self.shape.rotation is not None:
            heads = rotated(heads, self.shape.rotation, sum(self.shape.counts))
        heads = heads.view(len(self.shape.lengths), -1, *heads.shape[1:])
        query, key, value = (part.transpose(1, 2) for part in torch.split(heads, self.parts, 2))
        return [query, key, value, *flash(query, key, value, self.shape.scale)]

    def output(self, kept: list[Tensor]) -> Tensor:
        """Returns `[T, H · D]`."""
        return kept[3].transpose(1, 2).flatten(2).flatten(0, 1)

    def gradients(self, gradient: Tensor, kept: list[Tensor]) -> Tensor:
        """Returns the gradient of `joined` for that of the output."""
        query, key, value, mixed, logsumexp = kept
        heads = gradient.view(len(self.shape.lengths), -1, *mixed.shape[1::2]).transpose(1, 2)
        parts = causal_gradients(heads, (query, key, value), (mixed, logsumexp), self.shape.scale)
        joined = torch.cat([part.transpose(1, 2) for part in parts], 2).flatten(0, 1)
        if self.shape.rotation is not None:
            cosine, sine = self.shape.rotation
            joined = rotated(joined, (cosine, -sine), sum(self.shape.counts))
        return joined.flatten(1)
