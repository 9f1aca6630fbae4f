"""From a step's plan to logits by the CPU kernels of `llm._rust`."""

import numpy as np
import torch
from torch import Tensor

from llm._rust import Decoder, StepPlan
from llm.inference.kv_cache import KVCache
from llm.inference.runners.base import Step
from llm.inference.runners.cpu_weights import kernel_weights
from llm.models import DecoderModel


class KernelModelRunner:
    """One call a step: all layers in Rust, over weights and a cache that PyTorch owns.

    Args:
        model: One that `kernel_weights.obstacle` finds nothing against; its weights stay as they are meanwhile.
        cache: On the CPU.
        num_threads: That share a step, the caller's included.
    """

    def __init__(self, model: DecoderModel, cache: KVCache, num_threads: int) -> None:
        self.model = model
        self.cache = cache
        self.decoder = Decoder(kernel_weights(model), list(cache.keys), list(cache.values), num_threads=num_threads)
        self._vocab_size = model.lm_head.weight.shape[0]
        self._logits = np.empty((0, self._vocab_size), dtype=np.float32)

    def run(self, plan: StepPlan | Step) -> Tensor:
        """Runs the plan's tokens; see `ModelRunner.run`. The logits are overwritten by the next call."""
        if len(plan.block_copies):
            self.cache.copy_blocks(plan.block_copies)
        num_rows = len(plan.logits_indices)
        if num_rows > len(self._logits):
            self._logits = np.empty((num_rows, self._vocab_size), dtype=np.float32)
        logits = self._logits[:num_rows]
        self.decoder.run(
            plan.token_ids,
            plan.positions,
            plan.slot_mapping,
            plan.query_start,
            plan.block_tables,
            plan.logits_indices,
            logits,
        )
        return torch.from_numpy(logits)
