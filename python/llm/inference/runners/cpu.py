"""Runs a step's plan through the CPU kernels of `llm._rust`."""

import numpy as np
import torch
from torch import Tensor

from llm._rust import CpuModel, StepPlan, instruction_sets
from llm.inference.kv_cache import KVCache
from llm.inference.runners.base import AdapterLayers, Step
from llm.inference.runners.cpu_adapters import check_kernel_adapter, kernel_adapter
from llm.inference.runners.cpu_weights import kernel_weights
from llm.models import DecoderModel


class KernelModelRunner:
    """Runs all layers in Rust with one call per step, over weights and a cache that PyTorch owns.

    Args:
        model: A model for which `cpu_weights.obstacle` returns None; the weights must not change meanwhile.
        cache: A cache on the CPU.
        num_threads: Threads that share a step, the calling thread included.
    """

    def __init__(self, model: DecoderModel, cache: KVCache, num_threads: int) -> None:
        self.model = model
        self.cache = cache
        self.cpu_model = CpuModel(kernel_weights(model), list(cache.keys), list(cache.values), num_threads=num_threads)
        self._num_threads = num_threads
        self._vocab_size = model.config.vocab_size
        self._logits = np.empty((0, self._vocab_size), dtype=np.float32)

    @property
    def backend(self) -> str:
        """Returns what runs the model; see `ModelRunner.backend`."""
        return f"CPU kernels ({instruction_sets()[-1]}), threads: {self._num_threads}"

    def check_adapter(self, layers: AdapterLayers) -> None:
        """Checks that the kernels can run an adapter; see `AdapterRunner.check_adapter`."""
        check_kernel_adapter(layers)

    def set_adapter(self, number: int, layers: AdapterLayers | None) -> None:
        """Sets or removes an adapter; see `AdapterRunner.set_adapter`."""
        self.cpu_model.set_adapter(number, None if layers is None else kernel_adapter(self.model, layers))

    def run(self, plan: StepPlan | Step) -> Tensor:
        """Runs the plan's tokens; see `ModelRunner.run`. The next call overwrites the logits."""
        if len(plan.block_copies):
            self.cache.copy_blocks(plan.block_copies)
        num_rows = len(plan.logits_indices)
        if num_rows > len(self._logits):
            self._logits = np.empty((num_rows, self._vocab_size), dtype=np.float32)
        logits = self._logits[:num_rows]
        self.cpu_model.run(
            plan.token_ids,
            plan.positions,
            plan.slot_mapping,
            plan.query_start,
            plan.block_tables,
            plan.logits_indices,
            logits,
            plan.adapters,
        )
        return torch.from_numpy(logits)
