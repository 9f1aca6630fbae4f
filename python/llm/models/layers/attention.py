"""Grouped-query and multi-head latent attention over flattened tokens, with or without a paged cache."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from llm.errors import ConfigError
from llm.models.context import ForwardContext, PagedCache
from llm.models.layers import fused
from llm.models.layers.attend import AttentionRule, attend, attend_causal, attend_masked
from llm.models.layers.cached import head_width, is_packed, keep, keep_keys, restore, restore_keys
from llm.models.layers.cpu_training import Linear, Rotate, is_training_on_cpu
from llm.models.layers.lora import whole_weight
from llm.models.layers.norm import OffsetRMSNorm, RMSNorm
from llm.models.layers.paged import attend_pages
from llm.models.layers.rotary import Rotation, rotate, yarn_scale
from llm.settings.model import LatentConfig, ModelConfig

# Epsilon of the norms of compressed keys and queries in DeepSeek's models, independent of their config.
LATENT_NORM_EPS = 1e-6


def attention_rule(config: ModelConfig, layer_idx: int, scale: float) -> AttentionRule:
    """Returns this layer's transformation of attention scores."""
    return AttentionRule(
        scale=scale,
        window=config.window_of(layer_idx),
        softcap=config.attn_logit_softcapping,
        dropout=config.attention_dropout,
    )


class Attention(nn.Module):
    """Causal self-attention with a configurable number of key-value heads, from one (MQA) to all (MHA).

    Source: Ainslie et al. 2023, "GQA", figure 2; Henry et al. 2020, "Query-Key Normalization" (with RMS norms).
    """

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_width
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.qkv_proj = Linear(config.hidden_size, width, bias=config.attention_bias)
        keys = self.num_kv_heads * self.head_dim
        self.joined_rows = {"qkv_proj.weight": (self.num_heads * self.head_dim, keys, keys)}
        self.o_proj = Linear(self.num_heads * self.head_dim, config.hidden_size, bias=config.attention_output_bias)
        self.has_norms = config.qk_norm
        self.norms_whole = config.qk_norm and config.qk_norm_type == "whole"
        self.q_norm = _query_norm(config, self.num_heads)
        self.k_norm = _query_norm(config, self.num_kv_heads)
        self.rotates_whole = config.rotary_width == self.head_dim
        scale = config.attention_multiplier or (config.query_pre_attn_scalar or self.head_dim) ** -0.5
        self.rule = attention_rule(config, layer_idx, scale)
        if config.attention_sinks:
            self.sinks = nn.Parameter(torch.zeros(self.num_heads))
        self.has_sinks = config.attention_sinks

    @staticmethod
    def cache_widths(config: ModelConfig) -> tuple[int, int, int]:
        """Returns the number of heads in the cache and the widths of a head's key and value."""
        return config.num_key_value_heads, config.head_width, config.head_width

    def forward(self, hidden_states: Tensor, rotation: Rotation | None, context: ForwardContext) -> Tensor:
        """Attends within each sequence of `context`; `[T, C]` to `[T, C]`."""
        rule = self.rule if self.training else without_dropout(self.rule)
        if self.has_sinks:
            rule = replace(rule, sinks=self.sinks)
        if context.cache is None:
            query, key, value = self._rotated(hidden_states, rotation)
            query = _scaled(query, context)
            mixed = attend(query, key, value, context.query_lens, rule, backend=context.attention_backend)
        else:
            turned, value = self._project(hidden_states)
            query = _scaled(self._store(turned, value, rotation, context.cache), context)
            mixed = attend_paged(query, context, context.cache, self.layer_idx, rule)
        output: Tensor = self.o_proj(mixed.flatten(1))
        return output

    def _rotated(self, hidden_states: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns rotated queries `[T, H, D]` and keys, and values, `[T, K, D]` each."""
        num_turned = self.num_heads + self.num_kv_heads
        is_plain = self.rotates_whole and not self.has_norms
        if rotation is not None and is_plain and is_training_on_cpu(hidden_states):
            heads = self.qkv_proj(hidden_states).unflatten(-1, (-1, self.head_dim))
            rotated: Tensor = Rotate.apply(heads, *rotation, num_turned)  # type: ignore[no-untyped-call]
            query, key, value = torch.split(rotated, [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
            return query, key, value
        turned, value = self._project(hidden_states)
        return *self._split(rotate(turned, rotation)), value

    def _project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Returns unrotated queries and keys `[T, H + K, D]`, and values `[T, K, D]`."""
        heads = self.qkv_proj(hidden_states).unflatten(-1, (-1, self.head_dim))  # (T, H + 2K, D)
        turned, value = torch.split(heads, [self.num_heads + self.num_kv_heads, self.num_kv_heads], dim=1)
        if self.has_norms:
            query, key = self._split(turned)
            turned = torch.cat((self._normed(self.q_norm, query), self._normed(self.k_norm, key)), dim=1)
        return turned, value

    def _normed(self, norm: nn.Module, heads: Tensor) -> Tensor:
        normed: Tensor = norm(heads.flatten(1)).view(heads.shape) if self.norms_whole else norm(heads)
        return normed

    def _split(self, turned: Tensor) -> tuple[Tensor, Tensor]:
        query, key = torch.split(turned, [self.num_heads, self.num_kv_heads], dim=1)
        return query, key

    def _store(self, turned: Tensor, value: Tensor, rotation: Rotation | None, cache: PagedCache) -> Tensor:
        """Writes rotated keys and values into the cache and returns the rotated queries."""
        is_fused = self.rotates_whole and fused.is_fused(turned) and not is_packed(cache.keys[self.layer_idx].dtype)
        if cache.pages is not None and rotation is not None and is_fused:
            rotated: Tensor = fused.kernels().rotate_into_cache(
                *self._split(turned),
                value,
                rotation,
                keys=cache.keys[self.layer_idx],
                values=cache.values[self.layer_idx],
                slots=cache.slot_mapping,
            )
            return rotated
        query, key = self._split(rotate(turned, rotation))
        store(key, value, cache, self.layer_idx)
        return query


def _query_norm(config: ModelConfig, num_heads: int) -> nn.Module:
    if not config.qk_norm:
        return nn.Identity()
    width = config.head_width * (num_heads if config.qk_norm_type == "whole" else 1)
    return (OffsetRMSNorm if config.qk_norm_type == "offset" else RMSNorm)(width, config.rms_norm_eps)


def _scaled(query: Tensor, context: ForwardContext) -> Tensor:
    scale = context.query_scale
    return query if scale is None else (query * scale).to(query.dtype)


class LatentAttention(nn.Module):
    """Attention that expands keys and values from one compressed vector per token; the cache holds only that vector.

    With a cache, queries are projected into the compressed space instead of expanding keys. Attention then has one key
    head of width `kv_lora_rank + qk_rope_head_dim`, and its first `kv_lora_rank` channels are the value.

    Source: DeepSeek-AI 2024, "DeepSeek-V2", section 2.1 and appendix C.
    """

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.widths = widths = latent_of(config)
        hidden, head = config.hidden_size, widths.qk_nope_head_dim + widths.qk_rope_head_dim
        if widths.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, self.num_heads * head, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, widths.q_lora_rank, bias=config.attention_bias)
            self.q_a_norm = RMSNorm(widths.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = nn.Linear(widths.q_lora_rank, self.num_heads * head, bias=False)
        rank = widths.kv_lora_rank
        self.kv_a_proj = nn.Linear(hidden, rank + widths.qk_rope_head_dim, bias=config.attention_bias)
        self.joined_rows = {"kv_a_proj.weight": (rank, widths.qk_rope_head_dim)}
        self.kv_a_norm = RMSNorm(rank, LATENT_NORM_EPS)
        self.kv_b_proj = nn.Linear(rank, self.num_heads * (widths.qk_nope_head_dim + widths.v_head_dim), bias=False)
        self.o_proj = nn.Linear(self.num_heads * widths.v_head_dim, hidden, bias=config.attention_output_bias)
        self.rule = attention_rule(config, layer_idx, _latent_scale(config, head))

    @staticmethod
    def cache_widths(config: ModelConfig) -> tuple[int, int, int]:
        """Returns the cache's number of heads, key width and value width; the value is the key's first part."""
        widths = latent_of(config)
        return 1, widths.kv_lora_rank + widths.qk_rope_head_dim, 0

    def forward(self, hidden_states: Tensor, rotation: Rotation | None, context: ForwardContext) -> Tensor:
        """Attends within each sequence of `context`; `[T, C]` to `[T, C]`."""
        plain, rotated = self._queries(hidden_states, rotation)
        latent, shared = self._latent(hidden_states, rotation)
        rule = self.rule if self.training else without_dropout(self.rule)
        if context.cache is None:
            key, value = self._expand(latent, shared)
            query = torch.cat((plain, rotated), dim=-1)
            mixed = attend(query, key, value, context.query_lens, rule, backend=context.attention_backend)
        else:
            store_latent(torch.cat((latent, shared), dim=-1), context.cache, self.layer_idx)
            mixed = self._attend_cached(plain, rotated, context, context.cache, rule)
        output: Tensor = self.o_proj(mixed.flatten(1))
        return output

    def _queries(self, hidden_states: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor]:
        widths = self.widths
        if widths.q_lora_rank is None:
            query = self.q_proj(hidden_states)
        else:
            query = self.q_b_proj(self.q_a_norm(self.q_a_proj(hidden_states)))
        heads = query.unflatten(-1, (self.num_heads, -1))
        plain, rotated = heads.split([widths.qk_nope_head_dim, widths.qk_rope_head_dim], dim=-1)
        return plain, rotate(rotated, rotation)

    def _latent(self, hidden_states: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor]:
        """Returns the compressed vector `[T, R]` and the rotated key `[T, P]` that all heads share."""
        latent, shared = self.kv_a_proj(hidden_states).split(
            [self.widths.kv_lora_rank, self.widths.qk_rope_head_dim], dim=-1
        )
        return self.kv_a_norm(latent), rotate(shared.unsqueeze(1), rotation).squeeze(1)

    def _expand(self, latent: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.kv_b_proj(latent).unflatten(-1, (self.num_heads, -1))
        plain, value = heads.split([self.widths.qk_nope_head_dim, self.widths.v_head_dim], dim=-1)
        key = torch.cat((plain, shared.unsqueeze(1).expand(-1, self.num_heads, -1)), dim=-1)
        return key, value

    def _attend_cached(
        self, plain: Tensor, rotated: Tensor, context: ForwardContext, cache: PagedCache, rule: AttentionRule
    ) -> Tensor:
        expansion = whole_weight(self.kv_b_proj).view(self.num_heads, -1, self.widths.kv_lora_rank)  # (H, N + V, R)
        to_key, to_value = torch.split(expansion, [self.widths.qk_nope_head_dim, self.widths.v_head_dim], dim=1)
        narrow = torch.einsum("thn,hnr->thr", plain, to_key)
        query = torch.cat((narrow, rotated), dim=-1)
        mixed = attend_paged(query, context, cache, self.layer_idx, rule)[..., : self.widths.kv_lora_rank]
        return torch.einsum("thr,hvr->thv", mixed, to_value)


def latent_of(config: ModelConfig) -> LatentConfig:
    """Returns the widths of latent attention.

    Raises:
        ConfigError: The config has no `latent` section.
    """
    if config.latent is None:
        raise ConfigError("`model.latent` must be given for `model.attention` = 'mla', got null")
    return config.latent


def _latent_scale(config: ModelConfig, head: int) -> float:
    scaling = config.rope_scaling
    if scaling is None or not scaling.mscale_all_dim:
        return float(head**-0.5)
    return float(head**-0.5 * yarn_scale(scaling.factor, scaling.mscale_all_dim) ** 2)


def without_dropout(rule: AttentionRule) -> AttentionRule:
    """Returns the rule without dropout, as outside training."""
    return replace(rule, dropout=0.0)


def store(key: Tensor, value: Tensor, cache: PagedCache, layer_idx: int) -> None:
    """Writes each token's key and value `[T, K, D]` into its slot of the layer's blocks."""
    for blocks, heads, encode in ((cache.keys[layer_idx], key, keep_keys), (cache.values[layer_idx], value, keep)):
        blocks.flatten(0, 1).index_copy_(0, cache.slot_mapping, encode(heads, blocks.dtype))


def store_latent(key: Tensor, cache: PagedCache, layer_idx: int) -> None:
    """Writes each token's compressed vector `[T, R + P]`, which is key and value in one, into its slot."""
    cache.keys[layer_idx].flatten(0, 2).index_copy_(0, cache.slot_mapping, key)


def attend_paged(
    query: Tensor, context: ForwardContext, cache: PagedCache, layer_idx: int, rule: AttentionRule
) -> Tensor:
    """Lets this step's tokens `[T, H, D]` attend to all cached tokens of their own request.

    Requests that add one token are gathered into one padded batch; prompts run one by one. If the cache holds no
    values, the keys serve as values.
    """
    if cache.pages is not None:
        return attend_pages(query, cache.keys[layer_idx], cache.values[layer_idx], cache.pages, rule)
    layer = _Layer(cache, layer_idx, query.dtype)
    decoding = [idx for idx, length in enumerate(context.query_lens) if length == 1]
    if len(decoding) == len(context.query_lens):
        return _decode(query, context.seq_lens, None, layer, rule)
    values = cache.values[layer_idx]
    output = query.new_empty(*query.shape[:2], head_width(values.shape[-1], values.dtype) or query.shape[-1])
    starts = list(itertools.accumulate(context.query_lens, initial=0))
    if decoding:
        rows = torch.tensor([starts[idx] for idx in decoding], device=query.device)
        output[rows] = _decode(query[rows], [context.seq_lens[idx] for idx in decoding], decoding, layer, rule)
    for idx, length in enumerate(context.query_lens):
        if length > 1:
            span = slice(starts[idx], starts[idx] + length)
            key, value = layer.gather([idx], 0, context.seq_lens[idx])
            mixed = attend_causal(query[span].unsqueeze(0).transpose(1, 2), key, value, rule)
            output[span] = mixed.squeeze(0).transpose(0, 1)  # (T, H, D)
    return output


def _decode(
    query: Tensor, seq_lens: Sequence[int], requests: list[int] | None, layer: "_Layer", rule: AttentionRule
) -> Tensor:
    """Attends with one query token per request over caches padded to the longest, skipping blocks before every window.

    Args:
        query: `[R, H, D]`.
        seq_lens: Lengths of the requests.
        requests: Rows of the requests in the block tables; None means all, in order.
        layer: The layer's cache.
        rule: Scale, window, cap.
    """
    shortest, longest = min(seq_lens), max(seq_lens)
    first = 0 if rule.window is None else max(shortest - rule.window, 0)
    key, value = layer.gather(requests, first, longest)  # (R, K, S, D)
    mask = None
    if shortest < longest or rule.window is not None or rule.softcap is not None or rule.sinks is not None:
        lengths = torch.tensor(seq_lens, device=query.device)[:, None]
        places = torch.arange(longest - key.shape[2], longest, device=query.device)
        mask = places < lengths  # (R, S)
        if rule.window is not None:
            mask &= places >= lengths - rule.window
        mask = mask[:, None, None, :]
    return attend_masked(query.unsqueeze(2), key, value, mask, rule).squeeze(2)  # (R, H, D)


class _Layer:
    """One layer's share of the cache, for queries of type `dtype`."""

    def __init__(self, cache: PagedCache, layer_idx: int, dtype: torch.dtype) -> None:
        self.keys, self.values = cache.keys[layer_idx], cache.values[layer_idx]
        self.tables = cache.block_tables
        self.dtype = dtype

    def gather(self, requests: list[int] | None, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """Returns keys and values `[R, K, S, D]` from the block of token `first` to `stop`."""
        block_size = self.keys.shape[1]
        begin = first // block_size
        blocks = self.tables[:, begin : -(-stop // block_size)]  # (R, blocks)
        if requests is not None:
            blocks = blocks[requests]
        num_tokens, places = stop - begin * block_size, blocks.flatten()

        def gathered(cached: Tensor, decode: Callable[[Tensor, torch.dtype], Tensor]) -> Tensor:
            chosen = cached.index_select(0, places).view(len(blocks), -1, *cached.shape[2:])  # (R, S, K, D)
            return decode(chosen[:, :num_tokens], self.dtype).transpose(1, 2)

        key = gathered(self.keys, restore_keys)
        return (key, gathered(self.values, restore)) if self.values.shape[-1] else (key, key)
