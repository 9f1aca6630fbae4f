"""Passes of a model that is spread over processes, made by all of them at once to write a text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llm._rust import StepPlan
from llm.errors import TrainingError
from llm.inference.runners.base import Step
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.training.distributed import over_processes
from llm.training.parallel import reshard
from llm.training.precision import autocast


class ShardedRunner:
    """A `ModelRunner` for the engine of the main process; all other processes run `follow` meanwhile.

    It keeps no keys and values: each pass takes the whole text, which for a short sample costs less than the exchange
    of weights that any pass needs.

    Args:
        model: The sharded model.
        dtype: Number type of matrix products.
    """

    def __init__(self, model: DecoderModel, dtype: torch.dtype) -> None:
        self.model = model
        self._dtype = dtype
        self._token_ids: list[int] = []
        self._is_in_pass = False

    @property
    def backend(self) -> str:
        """Returns what runs the model."""
        return "sharded over processes"

    def run(self, plan: StepPlan | Step) -> Tensor:
        """Returns the logits after the last token, fp32 `[1, V]` on the CPU; there is one request."""
        self._token_ids += plan.token_ids.tolist()
        self._is_in_pass = True
        logits = _pass(self.model, _agreed(self._token_ids, self.model.device), self._dtype)
        self._is_in_pass = False
        return logits

    def end(self, failed: bool = False) -> None:
        """Lets the other processes go on, or stops them where the main process failed between two passes.

        Where it failed within a pass, the others wait for its part of the pass, and learn of the end of its process.
        """
        if self._is_in_pass:
            return
        _agreed([], self.model.device)
        reshard(self.model)
        over_processes(torch.tensor(int(failed), device=self.model.device))


def follow(model: DecoderModel, dtype: torch.dtype) -> None:
    """Takes part in the passes of the main process until it ends them.

    Raises:
        TrainingError: The main process failed to write the sample.
    """
    while token_ids := _agreed([], model.device):
        _pass(model, token_ids, dtype)
    reshard(model)
    if over_processes(torch.tensor(0, device=model.device)):
        raise TrainingError("the main process (rank 0) failed to write a sample; see its error message")


def _agreed(token_ids: Sequence[int], device: torch.device) -> list[int]:
    """Returns the main process's token ids in every process; all others give none."""
    [count] = over_processes(torch.tensor([len(token_ids)], device=device)).tolist()
    own = torch.tensor(token_ids, dtype=torch.int64, device=device) if token_ids else None
    return over_processes(torch.zeros(count, dtype=torch.int64, device=device) if own is None else own).tolist()


def _pass(model: DecoderModel, token_ids: Sequence[int], dtype: torch.dtype) -> Tensor:
    ids, lengths = torch.tensor(token_ids, device=model.device), (len(token_ids),)
    context = ForwardContext.for_sequences(lengths, torch.tensor([len(token_ids) - 1], device=model.device))
    with autocast(model.device, dtype):
        logits: Tensor = model(ids, positions_of(lengths, model.device), context)
    return logits.float().cpu()
