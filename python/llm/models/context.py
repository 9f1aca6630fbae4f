"""What a forward pass needs to know beside tokens and positions: the wall between model and engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from llm.models.layers.paged import Pages


@dataclass(frozen=True)
class PagedCache:
    """Keys and values of all requests in fixed-size blocks, and where this step reads and writes them.

    Attributes:
        keys: One tensor a layer, `[blocks, block_size, kv_heads, head_dim]`.
        values: Like `keys`; of no width where a layer's values are part of its keys.
        slot_mapping: int64 `[T]`: where each token's key and value go, `block * block_size + offset`.
        block_tables: int32 `[R, max_blocks]`: each request's blocks in order, padded with 0.
        pages: The tables with lengths on the device, where every request adds one token and the host must not wait for
            the device (CUDA graphs); `seq_lens` of the context are then not looked at.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    slot_mapping: Tensor
    block_tables: Tensor
    pages: "Pages | None" = None


@dataclass(frozen=True)
class ForwardContext:
    """How `T` flattened tokens fall into `R` sequences.

    Attributes:
        query_lens: Tokens of each sequence in this pass (training: the documents' lengths).
        seq_lens: Tokens of each sequence once this pass is done, cached ones included.
        logits_indices: int64 `[S]`: rows that need logits; `None`: all.
        cache: Paged keys and values; `None` in training, where a sequence attends to itself only.
        attention_backend: Computes attention without a cache; a name in `layers.attend.BACKENDS`, or `auto`.
    """

    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    logits_indices: Tensor | None = None
    cache: PagedCache | None = None
    attention_backend: str = "auto"

    @classmethod
    def for_sequences(
        cls, lengths: Sequence[int], logits_indices: Tensor | None = None, *, attention_backend: str = "auto"
    ) -> "ForwardContext":
        """Context of whole sequences without a cache: attention never crosses their borders."""
        return cls(tuple(lengths), tuple(lengths), logits_indices, attention_backend=attention_backend)


def positions_of(lengths: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Positions 0 … length-1 of each sequence, flattened: int64 `[T]`."""
    if len(set(lengths)) == 1:
        return torch.arange(lengths[0], device=device).repeat(len(lengths))
    return torch.cat([torch.arange(length, device=device) for length in lengths])
