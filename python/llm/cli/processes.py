"""Starts `llm train` in several processes of one machine."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from llm.errors import ConfigError

_OPTIONS = ("--nproc", "--max-restarts")
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone")


def start_processes(count: int, arguments: Sequence[str], max_restarts: int = 0) -> NoReturn:
    """Replaces this process by `torchrun`, which runs `llm train` in `count` processes.

    The processes share the cores, unless `OMP_NUM_THREADS` gives the number of threads of each.

    Args:
        count: Number of processes.
        arguments: Arguments of this program, with or without the word `train`, with `--nproc`.
        max_restarts: How often all processes start again after one of them failed.

    Raises:
        ConfigError: `torchrun` started this process already.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("`--nproc` starts processes itself\nhint: leave it out under torchrun")
    words = _without_options(arguments)
    words = words[1:] if words[:1] == ["train"] else words
    options = [f"--nproc-per-node={count}", f"--max-restarts={max_restarts}"]
    command = [sys.executable, *_TORCHRUN, *options, "-m", "llm", "train", *words]
    num_threads = max(1, (os.cpu_count() or 1) // count)
    os.execve(sys.executable, command, {"OMP_NUM_THREADS": str(num_threads)} | os.environ)  # noqa: S606


def _without_options(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments without those for `torchrun`, written as `--nproc N` or `--nproc=N`."""
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in _OPTIONS:
            next(words, None)
        elif word.partition("=")[0] not in _OPTIONS:
            kept.append(word)
    return kept
