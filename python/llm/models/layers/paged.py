"""One new token a request over a paged cache whose lengths only the device knows: what CUDA graphs replay."""

import math
from typing import Any

import torch
from torch import Tensor

from llm.models.layers.attend import AttentionRule, compiled_flex, flash_module

# FlashAttention 2 takes blocks of so many tokens, or a multiple; FlashAttention 3 any.
_FLASH_2_BLOCK = 256


class Pages:
    """Blocks and lengths of requests that add one token each.

    Nothing here waits for the device: every shape follows from the arguments' shapes.

    Args:
        block_tables: int32 `[R, M]`: each request's blocks in order; what lies past its length is not looked at.
        lengths: int32 `[R]`: tokens of each request, the new one included.
        num_blocks: Of the cache.
        block_size: Tokens a block.
    """

    def __init__(self, block_tables: Tensor, lengths: Tensor, num_blocks: int, block_size: int) -> None:
        self.block_tables = block_tables
        self.lengths = lengths
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._places: Tensor | None = None
        self._masks: dict[int | None, Any] = {}

    def mask(self, window: int | None) -> Any:
        """FlexAttention's mask over the whole cache, of one window; made once a pass.

        Source: Dong et al. 2024, «Flex Attention» (paged attention by a mask over physical blocks).
        """
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        return self._masks[window]

    def _mask(self, window: int | None) -> Any:
        from torch.nn.attention.flex_attention import BlockMask

        size, lengths, places = self.block_size, self.lengths, self._logical_blocks()
        reach = self.block_tables.shape[1] * size if window is None else window

        def sees(request: Tensor, head: Tensor, row: Tensor, slot: Tensor) -> Tensor:
            block = places[request, slot // size]
            position = block * size + slot % size
            length = lengths[request]
            return (block >= 0) & (position < length) & (position >= length - reach)

        first = (lengths - reach).clamp(min=0) // size  # (R,)
        count = (lengths - 1) // size - first + 1
        order = first[:, None] + torch.arange(self.block_tables.shape[1], device=lengths.device)  # (R, M)
        chosen = self.block_tables.gather(1, order.clamp(max=self.block_tables.shape[1] - 1))
        return BlockMask.from_kv_blocks(
            count.to(torch.int32).view(-1, 1, 1),
            chosen.to(torch.int32).view(len(lengths), 1, 1, -1),
            BLOCK_SIZE=(128, size),
            mask_mod=sees,
            seq_lengths=(1, self.num_blocks * size),
            compute_q_blocks=False,
        )

    def _logical_blocks(self) -> Tensor:
        """Which of its blocks each block of the cache is for each request, or -1: int32 `[R, num_blocks + 1]`."""
        if self._places is None:
            num_requests, width = self.block_tables.shape
            logical = torch.arange(width, dtype=torch.int32, device=self.lengths.device).expand(num_requests, width)
            is_used = logical * self.block_size < self.lengths[:, None]
            # What is not used goes to a column of its own.
            column = torch.where(is_used, self.block_tables, self.num_blocks).to(torch.int64)
            empty = logical.new_full((num_requests, self.num_blocks + 1), -1)
            self._places = empty.scatter(1, column, logical)
        return self._places


def attend_pages(query: Tensor, keys: Tensor, values: Tensor, pages: Pages, rule: AttentionRule) -> Tensor:
    """Attention of one token a request to all cached ones of its own.

    Args:
        query: `[R, H, D]`.
        keys: `[blocks, block_size, K, D]`.
        values: `[blocks, block_size, K, Dv]`.
        pages: Which of them are whose.
        rule: Scale, window, cap.

    Returns:
        `[R, H, Dv]`.

    Source: Kwon et al. 2023, «PagedAttention», section 4.1; Dao et al. 2023, «Flash-Decoding».
    """
    if _flash_takes(query, pages.block_size):
        return _flash(query, keys, values, pages, rule)
    from torch.nn.attention.flex_attention import flex_attention

    def capped(score: Tensor, request: Tensor, head: Tensor, row: Tensor, slot: Tensor) -> Tensor:
        return score if rule.softcap is None else rule.softcap * torch.tanh(score / rule.softcap)

    key, value = (part.flatten(0, 1).transpose(0, 1).unsqueeze(0) for part in (keys, values))  # (1, K, slots, D)
    run: Any = compiled_flex() if query.device.type == "cuda" else flex_attention
    mixed: Tensor = run(
        query.unsqueeze(2),
        key,
        value,
        score_mod=capped,
        block_mask=pages.mask(rule.window),
        scale=rule.scale,
        enable_gqa=query.shape[1] != keys.shape[2],
    )
    return mixed.squeeze(2)


def _flash_takes(query: Tensor, block_size: int) -> bool:
    module = flash_module()
    if module is None or query.device.type != "cuda" or query.dtype == torch.float32:
        return False
    return module.__name__ == "flash_attn_interface" or math.gcd(block_size, _FLASH_2_BLOCK) == _FLASH_2_BLOCK


def _flash(query: Tensor, keys: Tensor, values: Tensor, pages: Pages, rule: AttentionRule) -> Tensor:
    """FlashAttention's decoding over block tables."""
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
