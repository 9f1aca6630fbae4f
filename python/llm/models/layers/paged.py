"""Attention of one new token per request over a paged cache with lengths on the device, for CUDA graphs."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llm.models.layers import fused
from llm.models.layers.attend import AttentionRule, attend_masked, flash_module
from llm.models.layers.cached import is_packed, restore, restore_keys

# FlashAttention 2 needs blocks of a multiple of this many tokens; FlashAttention 3 accepts any size.
_FLASH_2_BLOCK = 256


@dataclass(frozen=True)
class Pages:
    """Blocks and lengths of requests that add one token each.

    Attributes:
        block_tables: int32 `[R, M]`: each request's blocks in order; entries past its length are ignored.
        lengths: int32 `[R]`: number of tokens of each request, including the new one.
    """

    block_tables: Tensor
    lengths: Tensor


def attend_pages(query: Tensor, keys: Tensor, values: Tensor, pages: Pages, rule: AttentionRule) -> Tensor:
    """Lets one token per request attend to its request's cached tokens without synchronizing the device.

    Args:
        query: `[R, H, D]`.
        keys: `[blocks, block_size, K, D]`, or as `cached.keep` encodes them.
        values: Like `keys`.
        pages: Blocks and lengths of each request.
        rule: Scale, window, cap.

    Returns:
        `[R, H, D]`.

    Source: Kwon et al. 2023, "PagedAttention", section 4.1.
    """
    if not fused.is_fused(query) or rule.sinks is not None or is_packed(keys.dtype):
        return _gathered(query, keys, values, pages, rule)
    if _flash_takes(query, keys.shape[1]):
        return _flash(query, keys, values, pages, rule)
    tables, lengths = pages.block_tables, pages.lengths
    mixed: Tensor = fused.kernels().attend_blocks(
        query, keys, values, tables, lengths, scale=rule.scale, window=rule.window, softcap=rule.softcap
    )
    return mixed


def _gathered(query: Tensor, keys: Tensor, values: Tensor, pages: Pages, rule: AttentionRule) -> Tensor:
    """Computes the same in PyTorch, over the full capacity of the block tables."""
    chosen = (part[pages.block_tables].flatten(1, 2) for part in (keys, values))  # (R, S, K, D)
    key, value = (
        decode(part, query.dtype).transpose(1, 2)  # (R, K, S, D)
        for decode, part in zip((restore_keys, restore), chosen, strict=True)
    )
    places, lengths = torch.arange(key.shape[2], device=query.device), pages.lengths[:, None]
    mask = places < lengths  # (R, S)
    if rule.window is not None:
        mask &= places >= lengths - rule.window
    return attend_masked(query.unsqueeze(2), key, value, mask[:, None, None, :], rule).squeeze(2)


def _flash_takes(query: Tensor, block_size: int) -> bool:
    module = flash_module()
    if module is None or query.dtype == torch.float32:
        return False
    return module.__name__ == "flash_attn_interface" or math.gcd(block_size, _FLASH_2_BLOCK) == _FLASH_2_BLOCK


def _flash(query: Tensor, keys: Tensor, values: Tensor, pages: Pages, rule: AttentionRule) -> Tensor:
    """Uses FlashAttention's decoding over block tables."""
    is_third = flash_module().__name__ == "flash_attn_interface"
    mixed = flash_module().flash_attn_with_kvcache(
        query.unsqueeze(1),
        keys,
        values,
        cache_seqlens=pages.lengths,
        softmax_scale=rule.scale,
        causal=True,
        softcap=rule.softcap or 0.0,
        window_size=(-1, -1) if rule.window is None else (rule.window - 1, 0),
        **{"page_table" if is_third else "block_table": pages.block_tables},
    )
    output: Tensor = mixed[0] if isinstance(mixed, tuple) else mixed
    return output.squeeze(1)
