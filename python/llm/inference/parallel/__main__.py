"""A rank but the first, `python -m llm.inference.parallel`: rank 0 starts it and sends its work through a pipe.

It ends when the pipe does, so it never outlives rank 0, whatever ends that.
"""

import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import torch

from llm.checkpoint import Checkpoint
from llm.errors import LLMError
from llm.inference.kv_cache import KVCache, cache_dtype, free_memory
from llm.inference.parallel import group
from llm.inference.parallel.messages import Failed, Job, Join, Joined, Loaded, Message, Pass, read, write
from llm.inference.runners.torch import TorchModelRunner
from llm.models import DecoderModel
from llm.models.tensor_parallel import Shard
from llm.settings.engine import EngineConfig

_LAST_PASS_S = 3.0  # a pass in which rank 0 ended waits for it


def main() -> int:
    """Loads, joins and computes until rank 0 closes the pipe; returns the exit code."""
    # Whoever stops the server sends signals to all of its processes; this one is needed until rank 0 has finished.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not get among the reports
    messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(messages,), daemon=True).start()
    try:
        _work(messages, reports)
    except LLMError as error:
        write(reports, Failed(message=str(error)))
        return 2
    except BaseException as error:
        write(reports, Failed(message=f"{type(error).__name__}: {error}"))
        raise
    return 0


def _receive(messages: "queue.SimpleQueue[Message | None]") -> None:
    while True:
        message = read(sys.stdin.buffer, Message)
        messages.put(message)
        if message is None:
            time.sleep(_LAST_PASS_S)
            os._exit(1)


def _work(messages: "queue.SimpleQueue[Message | None]", reports: BinaryIO) -> None:
    job = messages.get()
    if not isinstance(job, Job):
        return
    torch.set_num_threads(job.torch_threads)
    device = torch.device(job.device)
    model = Checkpoint(Path(job.path)).shard(Shard(job.rank, job.size), job.dtype, device)
    weights_bytes = sum(parameter.nbytes for parameter in model.parameters())
    write(reports, Loaded(weights_bytes=weights_bytes, free_bytes=free_memory(device)))
    order = messages.get()
    if not isinstance(order, Join):
        return
    runner = TorchModelRunner(model, _cache(model, order.num_blocks, job.limits))
    write(reports, Joined())
    group.join(job.store, job.rank, job.size, device)
    while isinstance(message := messages.get(), Pass):
        runner.run(message.step())
    group.leave()


def _cache(model: DecoderModel, num_blocks: int, limits: EngineConfig) -> KVCache:
    dtype = cache_dtype(limits.kv_cache_dtype, model.dtype)
    return KVCache.allocate(model.config, num_blocks, limits.block_size, dtype, model.device)


if __name__ == "__main__":
    sys.exit(main())
