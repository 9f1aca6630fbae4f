"""Decode steps on CUDA as graphs: one launch for a whole pass instead of some hundred."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm._rust import StepPlan
from llm.inference.kv_cache import KVCache
from llm.inference.model_runner import Step, TorchModelRunner
from llm.model_config import ModelConfig
from llm.models import DecoderModel, ForwardContext, PagedCache, Pages
from llm.models.layers.attention import Attention
from llm.models.layers.moe import MoE
from llm.registry import registry

logger = logging.getLogger(__name__)

Forward = Callable[[], Tensor]


def graph_obstacle(config: ModelConfig) -> str | None:
    """Why decode steps of a model can't be captured, or `None`."""
    if registry.get("attention", config.attention) is not Attention:
        return f"attention {config.attention!r}"
    if registry.get("mlp", config.mlp) is MoE:
        return "experts, whose loads the host must know"
    return None


def graph_sizes(max_requests: int) -> list[int]:
    """Batch sizes that graphs are made for: a batch is filled up to the next, by an eighth at most from 64 on."""
    sizes = [1, 2, 4]
    while sizes[-1] < max_requests:
        sizes.append(sizes[-1] + max(4, sizes[-1] // 8 // 4 * 4))
    return [size for size in sizes if size < max_requests] + [max_requests]


class GraphModelRunner(TorchModelRunner):
    """Replays a captured pass where every request adds one token; all other steps run as in `TorchModelRunner`.

    A graph reads and writes the same memory each time, so a step's arrays are copied there. A batch between two sizes
    is filled up with copies of its first request, which write the same key and value to the same place once more.

    Source: NVIDIA, «CUDA C++ Programming Guide», chapter CUDA Graphs.

    Args:
        model: In eval mode, one that `graph_obstacle` finds nothing against.
        cache: Of the same device and dtype.
        max_requests: That decode together.
        max_model_len: Longest context in tokens.
    """

    def __init__(self, model: DecoderModel, cache: KVCache, *, max_requests: int, max_model_len: int) -> None:
        super().__init__(model, cache)
        self.sizes = graph_sizes(max_requests)
        self.num_replays = 0
        self._num_blocks, self._block_size = cache.keys[0].shape[:2]

        def rows(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros((max_requests, *shape), dtype=dtype, device=self.device)

        self._token_ids, self._positions, self._slots = (rows(torch.int64) for _ in range(3))
        self._lengths = rows(torch.int32) + 1
        self._block_tables = rows(torch.int32, -(-max_model_len // self._block_size))
        # Memory that all graphs share: no two run at once.
        self._pool: Any = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        self._passes: dict[int, Forward] = {}
        # The largest first: the others find room in its memory.
        for size in reversed(self.sizes):
            self._passes[size] = self._capture(size)

    def run(self, plan: StepPlan | Step) -> Tensor:
        """Runs the plan's tokens; see `ModelRunner.run`."""
        num_requests = len(plan.query_start) - 1
        is_decode = len(plan.token_ids) == num_requests <= self.sizes[-1]
        if not is_decode or not np.array_equal(plan.logits_indices, np.arange(num_requests)):
            return super().run(plan)
        if len(plan.block_copies):
            self.cache.copy_blocks(plan.block_copies)
        size = next(size for size in self.sizes if size >= num_requests)
        self._fill(plan, num_requests, size)
        self.num_replays += 1
        return self._passes[size]()[:num_requests].cpu()

    def _fill(self, plan: StepPlan | Step, num_requests: int, size: int) -> None:
        # A plan may have columns to spare, which hold no blocks.
        width = min(plan.block_tables.shape[1], self._block_tables.shape[1])
        for target, array in (
            (self._token_ids, plan.token_ids),
            (self._positions, plan.positions),
            (self._slots, plan.slot_mapping),
            (self._lengths, plan.seq_lens),
            (self._block_tables[:, :width], plan.block_tables[:, :width]),
        ):
            target[:num_requests].copy_(torch.as_tensor(array))
            target[num_requests:size] = target[0]

    @torch.inference_mode()
    def _forward(self, size: int) -> Tensor:
        lengths, tables = self._lengths[:size], self._block_tables[:size]
        pages = Pages(tables, lengths, self._num_blocks, self._block_size)
        cache = PagedCache(self.cache.keys, self.cache.values, self._slots[:size], tables, pages)
        context = ForwardContext((1,) * size, (), cache=cache)
        logits: Tensor = self.model(self._token_ids[:size], self._positions[:size], context)
        return logits.float()

    def _capture(self, size: int) -> Forward:
        """A pass over the first `size` rows of the arrays; off CUDA, where nothing can be captured, the pass itself."""
        if self.device.type != "cuda":
            return lambda: self._forward(size)
        # Compilers and libraries set themselves up in a first pass, which must not be captured.
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(2):
                self._forward(size)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._forward(size)
        logger.info("captured a decode step of %d requests", size)

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay
