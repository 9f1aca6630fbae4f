"""The interface of model runners, which compute the logits of a step's plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llm._rust import StepPlan
from llm.errors import LLMError
from llm.models import DecoderModel
from llm.models.adapters import Projection
from llm.models.layers.lora import Factors
from llm.settings.model import ModelConfig

# The projections that an adapter changes and its values, with rows in our order, by the path of their layer.
AdapterLayers = Mapping[str, Sequence[tuple[Projection, Factors]]]


@dataclass
class Step:
    """The arrays of a pass that no scheduler planned, named as in `StepPlan`."""

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    slot_mapping: NDArray[np.int64]
    query_start: NDArray[np.int32]
    seq_lens: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    logits_indices: NDArray[np.int64]
    block_copies: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))

    @property
    def adapters(self) -> NDArray[np.uint16]:
        """The adapter of each request: none."""
        return np.zeros(len(self.seq_lens), dtype=np.uint16)

    @classmethod
    def of(
        cls,
        spans: Sequence[tuple[int, int]],
        block_tables: NDArray[np.int32],
        token_ids: NDArray[np.int64],
        block_size: int,
    ) -> "Step":
        """Returns a step with one request per span of positions `(start, stop)`, and logits of each last token."""
        positions = np.concatenate([np.arange(start, stop) for start, stop in spans])
        rows = np.concatenate([np.full(stop - start, row) for row, (start, stop) in enumerate(spans)])
        blocks = block_tables[rows, positions // block_size].astype(np.int64)
        starts = np.cumsum([0, *(stop - start for start, stop in spans)])
        return cls(
            token_ids=token_ids,
            positions=positions,
            slot_mapping=blocks * block_size + positions % block_size,
            query_start=starts.astype(np.int32),
            seq_lens=np.array([stop for _, stop in spans], dtype=np.int32),
            block_tables=block_tables,
            logits_indices=starts[1:] - 1,
        )


class ModelRunner(Protocol):
    """Computes the logits of a step's plan.

    Attributes:
        model: The model that computes the logits.
    """

    model: DecoderModel

    @property
    def backend(self) -> str:
        """Returns what runs the model and on how much of the machine, in words."""

    def run(self, plan: StepPlan | Step) -> Tensor:
        """Writes the plan's tokens into the cache and returns the logits, contiguous fp32 `[S, V]` on the CPU.

        The caller may modify the logits; the next `run` may reuse their memory.
        """


@runtime_checkable
class AdapterRunner(ModelRunner, Protocol):
    """A model runner that computes requests with adapters."""

    def check_adapter(self, layers: AdapterLayers) -> None:
        """Checks that the runner can run an adapter of these layers beside the model.

        Raises:
            CheckpointError: It can't; the error names the projection.
        """

    def set_adapter(self, number: int, layers: AdapterLayers | None) -> None:
        """Sets the adapter that requests with this number in `StepPlan.adapters` are computed with; None removes it."""


@runtime_checkable
class SharedRunner(ModelRunner, Protocol):
    """A model runner whose `model` is this process's part of one that several processes hold.

    Attributes:
        config: The whole model's config.
    """

    config: ModelConfig

    def watch(self, listener: Callable[[LLMError], None]) -> None:
        """Calls `listener`, from another thread, with the error of the first process that ends."""

    def close(self) -> None:
        """Ends the other processes; the runner can't be used any more."""
