"""Memory for keys and values."""

import math
import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm.errors import CapacityError
from llm.models import cache_widths
from llm.settings.model import ModelConfig

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

    @property
    def num_blocks(self) -> int:
        """Blocks in each layer."""
        return self.keys[0].shape[0]

    @property
    def block_size(self) -> int:
        """Tokens a block."""
        return self.keys[0].shape[1]

    @classmethod
    def allocate(
        cls, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> "KVCache":
        """Takes the memory for `num_blocks` blocks, zeroed: a masked token weighs nothing only if it is a number.

        On the CPU the system gives pages of zeros when they are first used, so gigabytes are there at once.
        """
        heads, *widths = cache_widths(config)
        keys, values = (
            tuple(
                _zeros((num_blocks, block_size, heads, width), dtype, device) for _ in range(config.num_hidden_layers)
            )
            for width in widths
        )
        return cls(keys, values)

    def copy_blocks(self, copies: NDArray[np.int64]) -> None:
        """Copies blocks, `(from, to)` a row: choices of one prompt get their own before they write to them."""
        sources, targets = (torch.as_tensor(ids, device=self.keys[0].device) for ids in copies.T.copy())
        for blocks in (*self.keys, *self.values):
            blocks[targets] = blocks[sources]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu" or not math.prod(shape):
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)  # `torch.zeros` would write to each of them
    return torch.from_numpy(pages).view(dtype).view(shape)


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
