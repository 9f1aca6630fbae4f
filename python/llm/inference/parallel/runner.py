"""Runs a step's plan on all ranks of a model that is split."""

from collections.abc import Callable

import torch
from torch import Tensor

from llm._rust import StepPlan
from llm.errors import LLMError
from llm.inference.kv_cache import KVCache
from llm.inference.parallel import group
from llm.inference.parallel.messages import Join, Joined, Pass
from llm.inference.parallel.start import Started
from llm.inference.runners.base import Step
from llm.inference.runners.torch import TorchModelRunner


class ParallelModelRunner:
    """Sends each plan to the other ranks and runs it on this one, in PyTorch; a rank is this process.

    Args:
        started: The ranks, with their weights.
        cache: This rank's cache; the other ranks get as many blocks.

    Raises:
        LLMError: A rank can't allocate its cache, or has ended.
    """

    def __init__(self, started: Started, cache: KVCache) -> None:
        self.model = started.model
        self.config = started.config
        self._workers = started.workers
        self._local = TorchModelRunner(started.model, cache)
        device, size = started.model.device, started.workers.size
        started.workers.send(Join(num_blocks=cache.num_blocks))
        started.workers.reports(Joined)
        started.workers.watch()
        group.join(started.workers.store, 0, size, device)

    @property
    def backend(self) -> str:
        """Returns what runs the model; see `ModelRunner.backend`."""
        size, device = self._workers.size, self.model.device.type
        threads = f", threads: {torch.get_num_threads()} each" if device == "cpu" else ""
        return f"PyTorch on {device}, {size} processes with 1/{size} of the weights each{threads}"

    def run(self, plan: StepPlan | Step) -> Tensor:
        """Runs the plan's tokens; see `ModelRunner.run`.

        Raises:
            ProcessLostError: A rank has ended or failed; the runner can't be used any more.
        """
        try:
            self._workers.send(Pass.of(plan))
            return self._local.run(plan)
        except RuntimeError as error:
            raise self._workers.lost(error) from error
        except BaseException:  # after Ctrl-C, the other ranks are in a pass that this one has left
            self._workers.abandon("the pass was interrupted")
            raise

    def watch(self, listener: Callable[[LLMError], None]) -> None:
        """Calls `listener` once a rank is lost; see `SharedRunner.watch`."""
        self._workers.watch(listener)

    def close(self) -> None:
        """Ends the other ranks; see `SharedRunner.close`."""
        self._workers.close()
