"""The contract of a model runner: from a step's plan to logits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llm._rust import StepPlan
from llm.models import DecoderModel


@dataclass
class Step:
    """A pass that no scheduler planned: the arrays of `StepPlan`."""

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    slot_mapping: NDArray[np.int64]
    query_start: NDArray[np.int32]
    seq_lens: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    logits_indices: NDArray[np.int64]
    block_copies: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))

    @classmethod
    def of(
        cls,
        spans: Sequence[tuple[int, int]],
        block_tables: NDArray[np.int32],
        token_ids: NDArray[np.int64],
        block_size: int,
    ) -> "Step":
        """One request a span of positions (first, one past the last); logits of each one's last token."""
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
    """Computes the logits a plan asks for; kernels and CUDA graphs are other implementations.

    Attributes:
        model: Whose logits they are.
    """

    model: DecoderModel

    def run(self, plan: StepPlan | Step) -> Tensor:
        """Writes the plan's tokens into the cache and returns logits, fp32 `[S, V]` on the CPU, contiguous.

        The caller may change them; the next `run` may use their memory again.
        """
