"""Starts `llm train` in several processes of one machine."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from llm.errors import ConfigError

_OPTION = "--nproc"
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone")


def start_processes(count: int, arguments: Sequence[str]) -> NoReturn:
    """Replaces this process by `torchrun`, which runs `llm train` in `count` processes.

    The processes share the cores, unless `OMP_NUM_THREADS` gives the number of threads of each.

    Args:
        count: Number of processes.
        arguments: Arguments of this program, with or without the word `train`, with `--nproc`.

    Raises:
        ConfigError: `torchrun` started this process already.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("`--nproc` starts processes itself\nhint: leave it out under torchrun")
    words = _without_option(arguments)
    words = words[1:] if words[:1] == ["train"] else words
    command = [sys.executable, *_TORCHRUN, f"--nproc-per-node={count}", "-m", "llm", "train", *words]
    num_threads = max(1, (os.cpu_count() or 1) // count)
    os.execve(sys.executable, command, {"OMP_NUM_THREADS": str(num_threads)} | os.environ)  # noqa: S606


def _without_option(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments without `--nproc N` or `--nproc=N`."""
    kept = list(arguments)
    while _OPTION in kept:
        place = kept.index(_OPTION)
        del kept[place : place + 2]
    return [word for word in kept if not word.startswith(f"{_OPTION}=")]
