"""Runs decode steps on CUDA as graphs, with one launch per pass instead of hundreds."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm._rust import StepPlan
from llm.inference.kv_cache import KVCache
from llm.inference.runners.base import Step
from llm.inference.runners.torch import TorchModelRunner
from llm.models import DecoderModel, ForwardContext, PagedCache, Pages
from llm.models.layers.attention import Attention
from llm.models.layers.moe import MoE
from llm.registry import registry
from llm.settings.model import ModelConfig

logger = logging.getLogger(__name__)


def graph_obstacle(config: ModelConfig) -> str | None:
    """Returns the reason why a model's decode steps can't be captured, or None if they can."""
    if registry.get("attention", config.attention) is not Attention:
        return f"attention {config.attention!r}"
    if registry.get("mlp", config.mlp) is MoE:
        return "experts: the host must know their loads"
    return None


def graph_sizes(max_requests: int) -> list[int]:
    """Returns the batch sizes to capture; from 64 requests on, padding to the next size adds at most an eighth."""
    sizes = [1, 2, 4]
    while sizes[-1] < max_requests:
        sizes.append(sizes[-1] + max(4, sizes[-1] // 8 // 4 * 4))
    return [size for size in sizes if size < max_requests] + [max_requests]


class GraphModelRunner(TorchModelRunner):
    """Replays captured passes for steps in which every request adds one token; runs other steps without graphs.

    A graph always reads and writes the same memory, so each step's arrays are copied there. A batch between two
    captured sizes is padded with copies of its first request, which write the same key and value to the same slot.

    Source: NVIDIA, «CUDA C++ Programming Guide», chapter CUDA Graphs.

    Args:
        model: A model in eval mode for which `graph_obstacle` returns None.
        cache: A cache of the same device and dtype.
        max_requests: Largest number of requests that decode together.
        max_model_len: Longest context in tokens.
    """

    def __init__(self, model: DecoderModel, cache: KVCache, *, max_requests: int, max_model_len: int) -> None:
        super().__init__(model, cache)
        self.sizes = graph_sizes(max_requests)
        self.num_replays = 0
        self._batch = _Batch(max_requests, -(-max_model_len // cache.block_size), self.device)
        # Pinned memory that the device writes to; the host reads it once the device is done.
        self._logits = _host_array((max_requests, model.config.vocab_size), torch.float32, self.device)
        # Memory pool shared by all graphs, because no two run at once.
        self._pool: Any = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        self._passes: dict[int, Callable[[], None]] = {}
        # The largest graph is captured first, so that the others fit in its memory.
        for size in reversed(self.sizes):
            self._passes[size] = self._capture(size)

    @property
    def backend(self) -> str:
        """Returns what runs the model; see `ModelRunner.backend`."""
        return f"{super().backend}, CUDA graphs for up to {self.sizes[-1]} requests"

    def run(self, plan: StepPlan | Step) -> Tensor:
        """Runs the plan's tokens; see `ModelRunner.run`."""
        num_requests = len(plan.query_start) - 1
        is_decode = len(plan.token_ids) == num_requests <= self.sizes[-1]
        is_plain = is_decode and np.array_equal(plan.logits_indices, np.arange(num_requests))
        if not is_plain or plan.adapters.any():
            return super().run(plan)
        if len(plan.block_copies):
            self.cache.copy_blocks(plan.block_copies)
        size = next(size for size in self.sizes if size >= num_requests)
        self._batch.fill(plan, num_requests, size)
        self.num_replays += 1
        self._passes[size]()
        return self._logits[:num_requests]

    @torch.inference_mode()
    def _forward(self, size: int) -> None:
        """Copies the batch to the device, runs the model and copies the logits back, without waiting."""
        token_ids, positions, slots, lengths, tables = self._batch.to_device(size)
        cache = PagedCache(self.cache.keys, self.cache.values, slots, tables, Pages(tables, lengths))
        context = ForwardContext((1,) * size, (), cache=cache)
        logits = self.model(token_ids, positions, context)
        self._logits[:size].copy_(logits.float(), non_blocking=True)

    def _capture(self, size: int) -> Callable[[], None]:
        """Returns a function that replays a pass over the first `size` rows; without CUDA, it runs the pass."""
        if self.device.type != "cuda":
            return lambda: self._forward(size)
        self._batch.clear()
        # Compilers and libraries initialize during a first pass, which must not be captured.
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(2):
                self._forward(size)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._forward(size)
        logger.info("captured a decode step for %d requests", size)

        def replay() -> None:
            graph.replay()
            torch.cuda.current_stream(self.device).synchronize()

        return replay


class _Batch:
    """The arrays of a step on the host and on the device, at fixed addresses."""

    def __init__(self, max_requests: int, max_blocks: int, device: torch.device) -> None:
        shapes = (
            ((max_requests,), torch.int64),  # token ids
            ((max_requests,), torch.int64),  # positions
            ((max_requests,), torch.int64),  # slots
            ((max_requests,), torch.int32),  # lengths
            ((max_requests, max_blocks), torch.int32),
        )
        self._host = tuple(_host_array(shape, dtype, device) for shape, dtype in shapes)
        self._device = tuple(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in shapes)
        self._arrays = tuple(array.numpy() for array in self._host)
        self.clear()

    def clear(self) -> None:
        """Sets every row to a request of one token in the first block."""
        for array in self._arrays:
            array[:] = 0
        self._arrays[3][:] = 1

    def fill(self, plan: StepPlan | Step, num_requests: int, size: int) -> None:
        """Copies a plan's arrays; the rows from `num_requests` to `size` become copies of its first row."""
        columns: tuple[NDArray[Any], ...] = (plan.token_ids, plan.positions, plan.slot_mapping, plan.seq_lens)
        for target, array in zip(self._arrays, columns, strict=False):
            target[:num_requests] = array
            target[num_requests:size] = array[0]
        tables, blocks = self._arrays[4], plan.block_tables
        # A plan may have spare columns, which hold no blocks.
        width = min(blocks.shape[1], tables.shape[1])
        tables[:num_requests, :width] = blocks[:, :width]
        tables[num_requests:size, :width] = blocks[0, :width]

    def to_device(self, size: int) -> tuple[Tensor, ...]:
        """Starts copying the first `size` rows to the device and returns the device's arrays."""
        for source, target in zip(self._host, self._device, strict=True):
            target[:size].copy_(source[:size], non_blocking=True)
        return tuple(array[:size] for array in self._device)


def _host_array(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns zeros on the host, in pinned memory if CUDA is to copy them asynchronously."""
    return torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")
