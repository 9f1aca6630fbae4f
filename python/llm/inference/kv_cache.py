"""Memory for keys and values."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from llm.errors import CapacityError
from llm.model_config import ModelConfig
from llm.models import cache_widths

_SHARE_OF_FREE_MEMORY = 0.4


@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer in blocks.

    Attributes:
        keys: One tensor a layer, `[blocks, block_size, kv_heads, head_dim]`.
        values: Like `keys`; of no width where a layer's values are part of its keys.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @classmethod
    def allocate(
        cls, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> "KVCache":
        """Takes the memory for `num_blocks` blocks, zeroed, so that a lack of it shows now."""
        heads, *widths = cache_widths(config)
        keys, values = (
            tuple(
                torch.zeros((num_blocks, block_size, heads, width), dtype=dtype, device=device)
                for _ in range(config.num_hidden_layers)
            )
            for width in widths
        )
        return cls(keys, values)


def blocks_within(
    memory_bytes: int | None, block_bytes: int, blocks_per_request: int, max_requests: int, device: torch.device
) -> int:
    """How many blocks to take: as many as all requests could use, within the memory allowed.

    Args:
        memory_bytes: The limit; `None`: a share of what is free now.
        block_bytes: Of one block over all layers.
        blocks_per_request: For the longest context.
        max_requests: Running at once.
        device: Where the cache goes.

    Raises:
        CapacityError: Not even one request of the longest context fits.
    """
    limit = int(free_memory(device) * _SHARE_OF_FREE_MEMORY) if memory_bytes is None else memory_bytes
    num_blocks = min(limit // block_bytes, blocks_per_request * max_requests)
    if num_blocks < blocks_per_request:
        raise CapacityError(
            f"the key-value cache needs {blocks_per_request * block_bytes:,} bytes for one request of the longest "
            f"context, got {limit:,}\nhint: raise the cache's memory or lower the longest context (`max_model_len`)"
        )
    return num_blocks


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken on `device` without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
