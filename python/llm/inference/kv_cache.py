"""Memory of the key-value cache."""

import math
import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm.errors import CapacityError, ConfigError
from llm.models import cache_widths
from llm.models.layers.cached import FP8, INT8, kept_width
from llm.settings.engine import CacheDtype
from llm.settings.model import ModelConfig

_SHARE_OF_FREE_MEMORY = 0.4


@dataclass(frozen=True)
class KVCache:
    """Keys and values of all layers, stored in blocks.

    Attributes:
        keys: One tensor per layer, `[blocks, block_size, kv_heads, head_dim]`, or as `cached.keep` encodes them.
        values: Like `keys`; the last dimension is 0 if a layer's values are part of its keys.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def num_blocks(self) -> int:
        """Number of blocks in each layer."""
        return self.keys[0].shape[0]

    @property
    def block_size(self) -> int:
        """Number of tokens per block."""
        return self.keys[0].shape[1]

    @classmethod
    def allocate(
        cls, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> "KVCache":
        """Returns a zeroed cache of `num_blocks` blocks; NaNs in uninitialized memory would survive masking.

        On the CPU, the system supplies zeroed pages on first use, so allocating gigabytes takes no time.
        """
        heads, *widths = cache_widths(config)
        keys, values = (
            tuple(
                _zeros((num_blocks, block_size, heads, kept_width(width, dtype)), dtype, device)
                for _ in range(config.num_hidden_layers)
            )
            for width in widths
        )
        return cls(keys, values)

    def copy_blocks(self, copies: NDArray[np.int64]) -> None:
        """Copies blocks, one `(from, to)` pair per row, so that choices of one prompt don't write to shared blocks."""
        sources, targets = (torch.as_tensor(ids, device=self.keys[0].device) for ids in copies.T.copy())
        for blocks in (*self.keys, *self.values):
            blocks[targets] = blocks[sources]


def cache_dtype(name: CacheDtype, dtype: torch.dtype) -> torch.dtype:
    """Returns the type of the cache's tensors for `EngineConfig.kv_cache_dtype` and a model of type `dtype`."""
    return {"auto": dtype, "int8": INT8, "fp8": FP8}[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name of a cache's type."""
    return "fp8" if dtype == FP8 else str(dtype).removeprefix("torch.")


def check_cache_dtype(name: CacheDtype, config: ModelConfig, device: torch.device) -> None:
    """Checks that a model's keys and values can be cached so.

    Raises:
        ConfigError: There are no keys and values per head, or the device has no such numbers.
    """
    if name == "auto":
        return
    _, _, value_width = cache_widths(config)
    if value_width == 0:
        raise ConfigError(
            f"`kv_cache_dtype` must be 'auto' for attention {config.attention!r}, whose cache holds one compressed "
            f"vector per token instead of keys and values, got {name!r}\nhint: leave it out"
        )
    if name == "fp8" and device.type != "cuda":
        raise ConfigError(
            f"`kv_cache_dtype` 'fp8' needs a CUDA device, got {device.type}; here it must be 'auto' or 'int8'\n"
            "hint: `int8` takes as much memory"
        )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu" or not math.prod(shape):
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)  # `torch.zeros` would write to each page
    return torch.from_numpy(pages).view(dtype).view(shape)


def blocks_within(
    memory_bytes: int | None, block_bytes: int, blocks_per_request: int, max_requests: int, device: torch.device
) -> int:
    """Returns the number of blocks to allocate: as many as all requests could use, within the allowed memory.

    Args:
        memory_bytes: Memory limit in bytes; None uses a share of the memory that is free now.
        block_bytes: Bytes of one block over all layers.
        blocks_per_request: Blocks of a request with the longest context.
        max_requests: Number of requests that run at once.
        device: Device of the cache.

    Raises:
        CapacityError: Not even one request of the longest context fits.
    """
    limit = share_of(free_memory(device)) if memory_bytes is None else memory_bytes
    num_blocks = min(limit // block_bytes, blocks_per_request * max_requests)
    if num_blocks < blocks_per_request:
        raise CapacityError(
            f"the key-value cache needs {blocks_per_request * block_bytes:,} bytes for one request of the longest "
            f"context, got {limit:,}\nhint: raise the cache's memory or lower the longest context (`max_model_len`)"
        )
    return num_blocks


def share_of(free_bytes: int) -> int:
    """Returns how many of the bytes that are free a cache takes without a limit."""
    return int(free_bytes * _SHARE_OF_FREE_MEMORY)


def free_memory(device: torch.device) -> int:
    """Returns the number of bytes that can be allocated on `device` without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
