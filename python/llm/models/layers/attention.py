"""Grouped-query attention over flattened tokens, with or without a paged cache."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.config import ModelConfig
from llm.models.context import ForwardContext, PagedCache
from llm.models.layers.rotary import RotaryEmbedding


class Attention(nn.Module):
    """Causal self-attention with fewer key and value heads than query heads.

    Source: Ainslie et al. 2023, «GQA», figure 2.
    """

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_width
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor, rotation: tuple[Tensor, Tensor], context: ForwardContext) -> Tensor:
        """Attends within each sequence of `context`; `[T, C]` to `[T, C]`."""
        query, key, value = self._project(hidden_states)
        query = RotaryEmbedding.rotate(query, *rotation)
        key = RotaryEmbedding.rotate(key, *rotation)
        if context.cache is None:
            mixed = attend_dense(query, key, value, context.query_lens)
        else:
            store(key, value, context.cache, self.layer_idx)
            mixed = attend_paged(query, context, context.cache, self.layer_idx)
        output: Tensor = self.o_proj(mixed.flatten(1))
        return output

    def _project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.qkv_proj(hidden_states).view(len(hidden_states), -1, self.head_dim)  # (T, H + 2K, D)
        query, key, value = torch.split(heads, [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        return query, key, value


def attend_dense(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Causal attention inside each of the sequences that `lengths` cuts the tokens into.

    Args:
        query: `[T, H, D]`.
        key: `[T, K, D]`.
        value: `[T, K, D]`.
        lengths: Of the sequences; their sum is `T`.

    Returns:
        `[T, H, D]`.
    """
    if len(set(lengths)) == 1:
        shape = (len(lengths), lengths[0], -1, query.shape[-1])
        query, key, value = (tensor.reshape(shape).transpose(1, 2) for tensor in (query, key, value))  # (B, H, L, D)
        return _attend(query, key, value, is_causal=True).transpose(1, 2).flatten(0, 1)  # (T, H, D)
    cuts = list(lengths)
    parts = zip(torch.split(query, cuts), torch.split(key, cuts), torch.split(value, cuts), strict=True)
    return torch.cat([attend_dense(*part, lengths=(len(part[0]),)) for part in parts])


def store(key: Tensor, value: Tensor, cache: PagedCache, layer_idx: int) -> None:
    """Writes each token's key and value `[T, K, D]` into its slot of the layer's blocks."""
    cache.keys[layer_idx].flatten(0, 1).index_copy_(0, cache.slot_mapping, key)
    cache.values[layer_idx].flatten(0, 1).index_copy_(0, cache.slot_mapping, value)


def attend_paged(query: Tensor, context: ForwardContext, cache: PagedCache, layer_idx: int) -> Tensor:
    """Attention of this step's tokens `[T, H, D]` to all cached ones of their own request.

    Requests that add one token are gathered into one padded batch; prompts go one by one.
    """
    output = torch.empty_like(query)
    starts = [0]
    for length in context.query_lens:
        starts.append(starts[-1] + length)
    decoding = [idx for idx, length in enumerate(context.query_lens) if length == 1]
    if decoding:
        rows = torch.tensor([starts[idx] for idx in decoding], device=query.device)
        output[rows] = _decode(query[rows], [context.seq_lens[idx] for idx in decoding], decoding, cache, layer_idx)
    for idx, length in enumerate(context.query_lens):
        if length > 1:
            span = slice(starts[idx], starts[idx] + length)
            output[span] = _prefill(query[span], context.seq_lens[idx], idx, cache, layer_idx)
    return output


def _decode(query: Tensor, seq_lens: list[int], requests: list[int], cache: PagedCache, layer_idx: int) -> Tensor:
    """One query token a request, `[R, H, D]`, over caches padded to the longest."""
    longest = max(seq_lens)
    lengths = torch.tensor(seq_lens, device=query.device)
    key, value = _gather(requests, longest, cache, layer_idx)  # (R, S, K, D)
    mask = torch.arange(longest, device=query.device) < lengths[:, None]  # (R, S)
    mixed = _attend(
        query.unsqueeze(2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask[:, None, None, :]
    )  # (R, H, 1, D)
    return mixed.squeeze(2)


def _prefill(query: Tensor, seq_len: int, request: int, cache: PagedCache, layer_idx: int) -> Tensor:
    """The last `T` tokens of one request of `seq_len`, `[T, H, D]`."""
    key, value = _gather([request], seq_len, cache, layer_idx)  # (1, S, K, D)
    num_tokens = len(query)
    query, key, value = (tensor.transpose(1, 2) for tensor in (query.unsqueeze(0), key, value))
    if num_tokens == seq_len:
        mixed = _attend(query, key, value, is_causal=True)
    else:
        positions = torch.arange(seq_len, device=query.device)
        mixed = _attend(query, key, value, attn_mask=positions <= positions[-num_tokens:, None])
    return mixed.squeeze(0).transpose(0, 1)  # (T, H, D)


def _gather(requests: list[int], length: int, cache: PagedCache, layer_idx: int) -> tuple[Tensor, Tensor]:
    """The first `length` cached keys and values of `requests`, `[R, length, K, D]` each."""
    block_size = cache.keys[layer_idx].shape[1]
    num_blocks = -(-length // block_size)
    blocks = cache.block_tables[requests, :num_blocks]  # (R, blocks)
    key = cache.keys[layer_idx][blocks].flatten(1, 2)[:, :length]
    value = cache.values[layer_idx][blocks].flatten(1, 2)[:, :length]
    return key, value


def _attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Softmax attention of `[B, H, T, D]` queries over `[B, K, S, D]` keys and values."""
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, attn_mask, is_causal=is_causal, enable_gqa=grouped)
