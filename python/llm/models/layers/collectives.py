"""Operations over the ranks of a model that is split, which end once a rank is known to be lost.

Gloo ends an operation whose peer has ended, but not always one that begins at that moment: that one waits for the
group's time limit. Operations over gloo therefore wait in turns, and stop between two turns.
"""

import threading
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

_TURN = timedelta(seconds=0.5)

_is_lost = threading.Event()


def all_reduce(values: Tensor) -> None:
    """Sums `values` over all ranks, in place.

    Raises:
        RuntimeError: A rank has ended, or `give_up` was called.
    """
    _finish(dist.all_reduce(values, async_op=True))


def gather(values: Tensor, parts: list[Tensor] | None = None) -> None:
    """Copies each rank's `values` into rank 0's `parts`, by rank; the other ranks give no `parts`.

    Raises:
        RuntimeError: A rank has ended, or `give_up` was called.
    """
    _finish(dist.gather(values, parts, async_op=True))


def give_up() -> None:
    """Ends the operation that runs, within half a second, and all later ones, because a rank is lost."""
    _is_lost.set()


def begin() -> None:
    """Allows operations again, in a new process group."""
    _is_lost.clear()


def has_given_up() -> bool:
    """Returns whether `give_up` was called since `begin`; an operation may then wait on in a thread of gloo."""
    return _is_lost.is_set()


def _finish(work: "dist.Work") -> None:
    if dist.get_backend() != "gloo":
        work.wait()  # over NCCL this waits for nothing: the next kernel does, on the GPU
        return
    while not _is_done(work):
        if _is_lost.is_set():
            raise RuntimeError("a rank of the model has ended")


def _is_done(work: "dist.Work") -> bool:
    """Waits for a turn; returns whether the operation has ended.

    Raises:
        RuntimeError: It has failed.
    """
    try:
        return work.wait(_TURN)
    except RuntimeError:
        if work.is_completed():
            raise
        return False
