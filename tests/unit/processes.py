"""Processes of tests, forked by a server that has PyTorch loaded, which saves each of them an interpreter's start.

The server has no threads, so those that OpenMP starts in a test's own process can't be missing in a forked one.
"""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

_LIMIT_S = 240
_LOADED = (
    "llm.training.launch",
    "matplotlib.pyplot",
    "pytest",
    "rich.console",
    "tests.unit.training_samples",
    "torch.distributed.checkpoint.hf_storage",
    "torch.distributed.fsdp",
)


def in_processes(world_size: int, work: Callable[..., object], *args: object) -> None:
    """Runs `work` in processes that see what `torchrun` would set; fails with their errors.

    Args:
        world_size: Number of processes.
        work: A function that can be pickled, such as one of a module.
        *args: Its arguments, which can be pickled.
    """
    exit_codes, messages = ends_of(world_size, work, *args)
    assert not messages, "\n".join(messages)
    assert exit_codes == [0] * world_size


def ends_of(world_size: int, work: Callable[..., object], *args: object) -> tuple[list[int | None], list[str]]:
    """Does what `in_processes` does, but returns exit codes, negative for the signal that killed, and errors."""
    context = _context()
    errors = context.SimpleQueue()
    place = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    children = [
        context.Process(target=_run, args=(place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, errors, work, args))
        for rank in range(world_size)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(_LIMIT_S)
        child.kill()
        child.join()
    messages = []
    while not errors.empty():
        messages.append(errors.get())
    return [child.exitcode for child in children], messages


def _context() -> Any:
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload(list(_LOADED))
    return context


def _run(place: dict[str, str], errors: Any, work: Callable[..., object], args: tuple[object, ...]) -> None:
    os.environ |= place
    torch.set_num_threads(1)  # the processes share the cores, and tiny models are faster so
    try:
        work(*args)
    except BaseException:  # noqa: BLE001 - the parent raises it
        errors.put(f"rank {place['RANK']}:\n{traceback.format_exc()}")
        os._exit(1)
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
