"""The processes of a training run, started by `torchrun`."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from llm.errors import TrainingError
from llm.models.device import resolve_device
from llm.settings.run import TrainingConfig

_TIMEOUT_S = TrainingConfig().process_timeout_s
# The other processes wait as long as the main one may need to tokenize the corpus.
_PREPARATION_LIMIT = timedelta(days=7)
_TRANSPORT = "gloo/transport"  # in messages about broken connections, for which gloo has no type of its own

# Groups that were left. DDP owns its group too, and as the last owner would free it with the interpreter's lock held,
# for which the group's thread may wait to free a tensor.
_LEFT: list[dist.ProcessGroup | None] = []

T = TypeVar("T")


@dataclass(frozen=True)
class Distributed:
    """The rank of this process in a training run, and its device.

    Attributes:
        rank: Number of this process among all, from 0.
        world_size: Number of processes.
        device: Device that this process trains on.
        background: The processes' group for saving, which a thread can use beside the loop; None for one process.
    """

    rank: int
    world_size: int
    device: torch.device
    background: dist.ProcessGroup | None = None

    @classmethod
    def start(cls, device: str, timeout_s: int = _TIMEOUT_S) -> "Distributed":
        """Returns this process's place, after joining the process group that `torchrun` set in the environment, if any.

        Args:
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            timeout_s: Seconds that a process waits for another.

        Raises:
            ConfigError: The device is unknown or unavailable.
        """
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")), world_size)
        timeout = timedelta(seconds=timeout_s)
        if world_size > 1 and not dist.is_initialized():
            _join_group("nccl" if chosen.type == "cuda" else "gloo", timeout)
        background = dist.new_group(backend="gloo", timeout=timeout) if world_size > 1 else None
        return cls(int(os.environ.get("RANK", "0")), world_size, chosen, background)

    @staticmethod
    def is_main_process() -> bool:
        """Returns whether this process is the only or the main one; valid outside a process group too."""
        return os.environ.get("RANK", "0") == "0"

    @property
    def is_main(self) -> bool:
        """Returns whether this process writes files and shows progress."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Returns each value summed over all processes.

        Raises:
            TrainingError: Another process ended, or hangs for longer than the timeout.
        """
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            raise _unreachable(error) from error
        return [float(value) for value in tensor]

    def main_first(self, work: Callable[[], object]) -> None:
        """Runs `work` in the main process while the other processes wait; if it fails, all stop.

        Raises:
            TrainingError: The main process failed; raised in the other processes.
        """
        if self.world_size == 1:
            work()
            return
        waiting = dist.new_group(backend="gloo", timeout=_PREPARATION_LIMIT)
        done = torch.zeros(1)
        try:
            if self.is_main:
                work()
            done += 1
        finally:
            dist.all_reduce(done, group=waiting)
            dist.destroy_process_group(waiting)
        if done < self.world_size:
            raise TrainingError("the main process (rank 0) failed to prepare the run; see its error message")

    def together(self, work: Callable[[], T]) -> T:
        """Runs `work` in all processes, from any thread, and waits for all; if one fails, all fail.

        Raises:
            TrainingError: Another process failed.
        """
        if self.background is None:
            return work()
        done = torch.zeros(1)
        try:
            result = work()
            done += 1
        finally:
            dist.all_reduce(done, group=self.background)
        if done < self.world_size:
            raise TrainingError("another process could not save its share of the checkpoint; see its error message")
        return result

    def work_so_far(self) -> "torch.cuda.Event | None":
        """Returns a mark behind all work that the GPU was given so far; None on a CPU, whose work is done."""
        if self.device.type != "cuda":
            return None
        mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
        mark.record()
        return mark

    def stop(self) -> None:
        """Leaves the process group."""
        if self.world_size > 1 and dist.is_initialized():
            _LEFT.append(dist.group.WORLD)
            dist.destroy_process_group()


def over_processes(values: Tensor) -> Tensor:
    """Returns the values summed over all processes, without a gradient."""
    summed = values.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(summed)
    return summed


def largest_over_processes(value: float, device: torch.device) -> float:
    """Returns the largest value of all processes."""
    if not dist.is_initialized():
        return value
    found = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return float(found)


@contextlib.contextmanager
def explains_lost_processes() -> Iterator[None]:
    """Names another process as the cause where communication with it breaks off.

    Raises:
        TrainingError: Another process ended, or hangs for longer than the timeout.
    """
    try:
        yield
    except TrainingError:
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistBackendError | dist.DistNetworkError) and _TRANSPORT not in str(error):
            raise
        raise _unreachable(error) from error


def _unreachable(error: RuntimeError) -> TrainingError:
    return TrainingError(
        f"rank {os.environ.get('RANK', '0')} can't reach the other processes, one of which ended or hangs: {error}\n"
        "hint: see its error message; if it only needs longer, raise `training.process_timeout_s`"
    )


def is_shard(tensor: Tensor) -> bool:
    """Returns whether the tensor is this process's part of one that is spread over processes."""
    return hasattr(tensor, "full_tensor")


def is_sharded(model: nn.Module) -> bool:
    """Returns whether parameters of the model are spread over processes."""
    return any(map(is_shard, model.parameters()))


def whole(tensor: Tensor) -> Tensor:
    """Returns the tensor itself, or a sharded one put together, which all processes must do at once."""
    gather: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def _join_group(backend: str, timeout: timedelta) -> None:
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    # torchrun keeps one store for all starts of its processes, where addresses of dead ones would mislead the next.
    number = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own = dist.PrefixStore(f"start {number} of {world_size} processes", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=own, rank=rank, world_size=world_size, timeout=timeout)


def _device(name: str, local_rank: int, world_size: int) -> torch.device:
    device = resolve_device(name)
    if device.type == "cuda":
        device = torch.device("cuda", local_rank if world_size > 1 else device.index or 0)
        torch.cuda.set_device(device)
    return device
