"""Arguments of a forward pass beside tokens and positions; the interface between model and engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llm.models.logprobs import Targets

if TYPE_CHECKING:
    from llm.models.layers.paged import Pages


@dataclass(frozen=True)
class PagedCache:
    """Keys and values of all requests in fixed-size blocks, and the places that this step reads and writes.

    Attributes:
        keys: One tensor per layer, `[blocks, block_size, kv_heads, head_dim]`, or as `layers.cached` encodes them.
        values: Like `keys`, with width 0 if a layer's values are part of its keys.
        slot_mapping: int64 `[T]`: slot of each token's key and value, `block * block_size + offset`.
        block_tables: int32 `[R, max_blocks]`: each request's blocks in order, padded with 0.
        pages: The tables with lengths on the device, for steps in which every request adds one token and the host must
            not wait for the device (CUDA graphs). The context's `seq_lens` are then ignored.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    slot_mapping: Tensor
    block_tables: Tensor
    pages: "Pages | None" = None


@dataclass(frozen=True)
class ForwardContext:
    """Division of `T` flattened tokens into `R` sequences.

    Attributes:
        query_lens: Number of tokens of each sequence in this pass (training: the documents' lengths).
        seq_lens: Number of tokens of each sequence after this pass, including cached ones.
        logits_indices: int64 `[S]`: rows that need logits; None selects all rows.
        cache: Paged keys and values; None in training, where a sequence attends only to itself.
        attention_backend: Backend for attention without a cache: a name in `layers.attend.BACKENDS`, or `auto`.
        targets: Labels whose log-probabilities the pass returns instead of logits; None returns logits.
        query_scale: fp32 `[T, 1, 1]`: factor on each token's queries; None means 1. The model sets it.
    """

    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    logits_indices: Tensor | None = None
    cache: PagedCache | None = None
    attention_backend: str = "auto"
    targets: Targets | None = None
    query_scale: Tensor | None = None

    @classmethod
    def for_sequences(
        cls,
        lengths: Sequence[int],
        logits_indices: Tensor | None = None,
        *,
        attention_backend: str = "auto",
        targets: Targets | None = None,
    ) -> "ForwardContext":
        """Returns the context of whole sequences without a cache; attention never crosses their boundaries."""
        return cls(tuple(lengths), tuple(lengths), logits_indices, attention_backend=attention_backend, targets=targets)


def positions_of(lengths: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Returns the positions 0 … length-1 of each sequence, flattened: int64 `[T]`."""
    if len(set(lengths)) == 1:
        return torch.arange(lengths[0], device=device).repeat(len(lengths))
    return torch.cat([torch.arange(length, device=device) for length in lengths])
