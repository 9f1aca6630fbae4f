"""The process group of a model that is split over ranks."""

import ctypes
import os
import socket
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from llm.errors import ConfigError
from llm.models.layers import collectives

# Ranks get a step at the same time and wait for each other within it only; one that ends is noticed at once.
_TIMEOUT = timedelta(seconds=120)
_INTERFACE = "GLOO_SOCKET_IFNAME"


def check_no_group() -> None:
    """Checks that this process is in no group yet; PyTorch has one per process.

    Raises:
        ConfigError: It is, for example because it has another such model, or was started by `torchrun`.
    """
    if dist.is_initialized():
        raise ConfigError(
            "`tensor_parallel_size` must be 1 in a process that is in a process group already, such as one with "
            "another model that is split, or one that torchrun started\nhint: `engine.close()` ends the other model"
        )


def join(store: Path | str, rank: int, size: int, device: torch.device) -> None:
    """Joins the ranks, which find each other through a file; over gloo on a CPU, over NCCL on GPUs.

    All ranks are on this machine, so gloo listens on the loopback interface only, and no port is open before.
    """
    collectives.begin()
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    given = os.environ.get(_INTERFACE)
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if given is None and loopback is not None:
        os.environ[_INTERFACE] = loopback
    try:
        shared = dist.FileStore(str(store), size)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=shared, rank=rank, world_size=size, timeout=_TIMEOUT)
    finally:
        if given is None:
            os.environ.pop(_INTERFACE, None)


def abort() -> None:
    """Ends an operation that waits for a rank that has ended."""
    collectives.give_up()
    if dist.is_initialized() and dist.get_backend() == "nccl":
        dist.distributed_c10d._abort_process_group()


def leave() -> None:
    """Leaves the process group, if this process is in one."""
    if not dist.is_initialized():
        return
    if collectives.has_given_up() and dist.get_backend() == "gloo":
        # The destructor waits for the operation that was given up, for as long as its time limit.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))
    dist.destroy_process_group()
