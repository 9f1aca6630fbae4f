"""Processes of a distributed run, forked from the test's own, which saves each of them an interpreter's start."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch

_LIMIT_S = 240


def in_processes(world_size: int, work: Callable[[], object]) -> None:
    """Runs `work` in processes that see what `torchrun` would set; fails with their errors.

    OpenMP's threads don't survive a fork, and a product that waits for them would wait for ever, so these tests need
    `OMP_NUM_THREADS=1`; `make test-python` runs them apart.
    """
    if torch.get_num_threads() > 1:
        pytest.skip("forked processes need OMP_NUM_THREADS=1")
    context = multiprocessing.get_context("fork")
    errors = context.SimpleQueue()
    port = _free_port()
    children = [context.Process(target=_run, args=(rank, world_size, port, work, errors)) for rank in range(world_size)]
    for child in children:
        child.start()
    for child in children:
        child.join(_LIMIT_S)
        child.kill()
    messages = []
    while not errors.empty():
        messages.append(errors.get())
    assert not messages, "\n".join(messages)
    assert [child.exitcode for child in children] == [0] * world_size


def _run(rank: int, world_size: int, port: int, work: Callable[[], object], errors: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        work()
    except BaseException:  # noqa: BLE001 - the parent raises it
        errors.put(f"rank {rank}:\n{traceback.format_exc()}")
        os._exit(1)
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
