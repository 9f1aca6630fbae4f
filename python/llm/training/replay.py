"""Runs the step of a dump again and finds the first value that is not finite."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm.checkpoint import Run
from llm.training.assembly import build_task
from llm.training.distributed import Distributed
from llm.training.dumps import load_dumped_weights, read_dump
from llm.training.precision import autocast, autocast_dtype
from llm.training.seeds import seed_step
from llm.training.tasks import Task


@dataclass(frozen=True)
class Finding:
    """A tensor with values that are not finite.

    Attributes:
        rank: The process whose samples led to it.
        place: Such as `output of layers.1.mlp`.
        num_bad: Number of values that are not finite.
        num_values: Number of values.
        largest_input: Largest magnitude among the finite values that went in; None where nothing went in.
    """

    rank: int
    place: str
    num_bad: int
    num_values: int
    largest_input: float | None = None

    def __str__(self) -> str:
        inputs = "" if self.largest_input is None else f"; its inputs are at most {self.largest_input:.3g}"
        return f"rank {self.rank}, {self.place}: {self.num_bad:,} of {self.num_values:,} values are not finite{inputs}"


def replay(dump: str | os.PathLike[str], task: Task | None = None) -> Iterator[str]:
    """Runs the forward and backward passes of a dumped step again and yields what happens, a line at a time.

    Args:
        dump: A directory below `dumps/` in a run.
        task: A task of your own that the run was trained with; None for those of `training.task`.

    Raises:
        DataError: The directory holds no dump.
        CheckpointError: The run or the dump is damaged.
    """
    directory = Path(dump)
    shares = read_dump(directory)
    config = Run(directory.resolve().parent.parent).read_config()
    device = Distributed.start(config.training.device).device
    own = task or build_task(config)
    model = own.build_model()
    load_dumped_weights(directory, model)
    model.to(device).train()
    yield f"step {shares[0].step + 1} with a loss of {shares[0].loss} and a gradient norm of {shares[0].grad_norm}"
    watch, dtype = _Watch(model), autocast_dtype(config.training.precision, device)
    for share in shares:
        watch.rank = share.rank
        seed_step(config.training.seed, share.step, share.rank)
        yield f"rank {share.rank}: samples {', '.join(map(str, share.sample_ids))}"
        for part in share.parts:
            with autocast(device, dtype):
                loss = own.loss_sum(model, part.to(device)) / share.num_targets
            weighted = [weight * value for weight, value in own.auxiliary_losses(model).values()]
            (sum(weighted, loss) * share.loss_scale).backward()  # type: ignore[no-untyped-call]
    yield from watch.words()


class _Watch:
    """Hooks into every module that note the first bad value of the forward passes, and of the backward passes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.rank = 0
        self.forward: Finding | None = None
        self.backward: Finding | None = None
        self.weights = [
            Finding(0, f"weight {name}", _num_bad(tensor), tensor.numel())
            for name, tensor in model.named_parameters()
            if _num_bad(tensor)
        ]
        for name, module in model.named_modules():
            module.register_forward_hook(self._hook(name or "the model"))

    def words(self) -> Iterator[str]:
        """Yields the findings in the order in which they can cause each other."""
        found = [*self.weights[:1], *filter(None, (self.forward, self.backward)), *self._gradients()[:1]]
        yield from (f"first bad value in {kind}" for kind in map(str, found))
        if not found:
            yield "every value is finite this time: device, threads or PyTorch may differ from those of the run"

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            kind = type(module).__name__
            given = [tensor for tensor in inputs if isinstance(tensor, Tensor) and tensor.is_floating_point()]
            for tensor in (entry for entry in _tensors(output) if entry.is_floating_point()):
                self._look_forward(f"output of {name} ({kind})", tensor, given)
                if tensor.requires_grad:
                    tensor.register_hook(lambda grad: self._look_backward(f"gradient of {name} ({kind})", grad))  # type: ignore[no-untyped-call]

        return look

    def _look_forward(self, place: str, tensor: Tensor, given: list[Tensor]) -> None:
        if self.forward is None and (bad := _num_bad(tensor)):
            largest = max((float(entry.detach().nan_to_num(0, 0, 0).abs().max()) for entry in given), default=None)
            self.forward = Finding(self.rank, place, bad, tensor.numel(), largest)

    def _look_backward(self, place: str, grad: Tensor) -> None:
        if self.backward is None and (bad := _num_bad(grad)):
            self.backward = Finding(self.rank, place, bad, grad.numel())

    def _gradients(self) -> list[Finding]:
        return [
            Finding(self.rank, f"gradient of the weight {name}", _num_bad(weight.grad), weight.numel())
            for name, weight in self.model.named_parameters()
            if weight.grad is not None and _num_bad(weight.grad)
        ]


def _num_bad(tensor: Tensor) -> int:
    return int((~torch.isfinite(tensor.detach())).sum())


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in output for tensor in _tensors(part)] if isinstance(output, tuple | list) else []
