"""Layers of which a rank holds a part; the ranks of PyTorch's process group put their results together.

Plain tensors and one collective operation each: DTensor's dispatch costs more than a small product (ADR 26).
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from llm.models.layers import collectives


def summed(part: Tensor) -> Tensor:
    """Returns the sum of `part` over all ranks, in `part`'s memory."""
    collectives.all_reduce(part)
    return part


class RowParallelLinear(nn.Module):
    """A projection of which each rank has some columns of the weight, and of its input the channels for them.

    The products are summed over the ranks; the bias is added once, after that.

    Source: Shoeybi et al. 2019, "Megatron-LM", section 3, the second product of figure 3.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, values: Tensor) -> Tensor:
        """Maps this rank's channels `[T, I / N]` to `[T, C]`, which is the same on each rank."""
        product = summed(F.linear(values, self.weight))
        return product if self.bias is None else product + self.bias


class VocabularyParallelEmbedding(nn.Module):
    """An embedding of which each rank has consecutive rows.

    Args:
        rows: The rows that this rank holds.
        hidden_size: Width of a row.
    """

    def __init__(self, rows: range, hidden_size: int) -> None:
        super().__init__()
        self.rows = rows
        self.weight = nn.Parameter(torch.empty(len(rows), hidden_size))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Maps int64 `[T]` to `[T, C]`: one rank adds a token's row, the others zeros, so that no sum is rounded."""
        own = token_ids - self.rows.start
        is_elsewhere = (own < 0) | (own >= len(self.rows))
        found = F.embedding(own.masked_fill(is_elsewhere, 0), self.weight)
        return summed(found.masked_fill(is_elsewhere[:, None], 0.0))


class VocabularyParallelHead(nn.Module):
    """An output projection of which each rank has consecutive rows; rank 0 gets the logits of all.

    Args:
        rows: The rows that this rank holds.
        hidden_size: Width of a row.
        vocab_size: Number of rows over all ranks.
    """

    def __init__(self, rows: range, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(len(rows), hidden_size))
        self.vocab_size = vocab_size

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Maps `[S, C]` to `[S, V]` on rank 0, and to this rank's logits elsewhere."""
        own, size = F.linear(hidden_states, self.weight), dist.get_world_size()
        widest = -(-self.vocab_size // size)  # ranks send equally many; the last may have fewer
        own = F.pad(own, (0, widest - own.shape[-1]))
        if dist.get_rank() != 0:
            collectives.gather(own)
            return own
        parts = [torch.empty_like(own) for _ in range(size)]
        collectives.gather(own, parts)
        return torch.cat(parts, dim=-1)[:, : self.vocab_size]
