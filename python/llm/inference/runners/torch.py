"""Runs a step's plan in PyTorch on any device."""

import torch
from torch import Tensor

from llm._rust import StepPlan
from llm.inference.kv_cache import KVCache
from llm.inference.runners.base import AdapterLayers, Step
from llm.inference.runners.torch_adapters import RowAdapters
from llm.models import DecoderModel, ForwardContext, PagedCache


class TorchModelRunner:
    """Runs each step as one PyTorch forward pass over the flattened batch.

    Args:
        model: The model in eval mode, on its device.
        cache: A cache of the same device and dtype.
    """

    def __init__(self, model: DecoderModel, cache: KVCache) -> None:
        self.model = model
        self.cache = cache
        self.device = cache.keys[0].device
        self._adapters = RowAdapters(model)

    @property
    def backend(self) -> str:
        """Returns what runs the model; see `ModelRunner.backend`."""
        threads = f", threads: {torch.get_num_threads()}" if self.device.type == "cpu" else ""
        return f"PyTorch on {self.device}{threads}"

    def check_adapter(self, layers: AdapterLayers) -> None:
        """Checks that the layers can have an adapter; see `AdapterRunner.check_adapter`."""
        self._adapters.check(layers)

    def set_adapter(self, number: int, layers: AdapterLayers | None) -> None:
        """Sets or removes an adapter; see `AdapterRunner.set_adapter`."""
        self._adapters.set(number, layers)

    @torch.inference_mode()
    def run(self, plan: StepPlan | Step) -> Tensor:
        """Runs the plan's tokens; see `ModelRunner.run`."""
        if len(plan.block_copies):
            self.cache.copy_blocks(plan.block_copies)
        query_start = plan.query_start
        context = ForwardContext(
            query_lens=tuple((query_start[1:] - query_start[:-1]).tolist()),
            seq_lens=tuple(plan.seq_lens.tolist()),
            logits_indices=self._tensor(plan.logits_indices),
            cache=PagedCache(
                keys=self.cache.keys,
                values=self.cache.values,
                slot_mapping=self._tensor(plan.slot_mapping),
                block_tables=self._tensor(plan.block_tables),
            ),
        )
        if plan.adapters.any():
            lengths = torch.tensor(context.query_lens, device=self.device)
            self._adapters.choose(self._tensor(plan.adapters.astype("int64")), lengths)
        try:
            logits: Tensor = self.model(self._tensor(plan.token_ids), self._tensor(plan.positions), context)
        finally:
            self._adapters.clear()
        return logits.float().cpu().contiguous()

    def _tensor(self, array: object) -> Tensor:
        return torch.as_tensor(array, device=self.device)
