"""Starts a command that trains in several processes of one machine."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from llm.errors import ConfigError

_OPTIONS = ("--nproc", "--max-restarts")
# Seconds for the last step and its checkpoint after a signal; `torchrun` kills all processes after 30 by itself.
_GRACE = "--shutdown-timeout=600"


def use_processes(verb: str, count: int | None, max_restarts: int) -> None:
    """Goes on in this process if `count` is None, else in `count` processes; `start_processes` does not return.

    Raises:
        ConfigError: Restarts of no processes, or `torchrun` started this process already.
    """
    if count is not None:
        start_processes(verb, count, sys.argv[1:], max_restarts)
    if max_restarts:
        raise ConfigError("`--max-restarts` needs `--nproc`\nhint: under torchrun, give `--max-restarts` to torchrun")


def start_processes(verb: str, count: int, arguments: Sequence[str], max_restarts: int = 0) -> NoReturn:
    """Becomes `torchrun`, which runs `llm VERB` in `count` processes, and exits as one process would.

    The processes share the cores, unless `OMP_NUM_THREADS` gives the number of threads of each. They have said what
    there is to say, so `torchrun`'s own account of their end is left out.

    Args:
        verb: The command.
        count: Number of processes.
        arguments: Arguments of this program, with or without the verb, with `--nproc`.
        max_restarts: How often all processes start again after one of them failed.

    Raises:
        ConfigError: `torchrun` started this process already.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("`--nproc` starts processes itself\nhint: leave it out under torchrun")
    words = _without_options(arguments)
    words = words[1:] if words[:1] == [verb] else words
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, main

    options = ["--standalone", f"--nproc-per-node={count}", f"--max-restarts={max_restarts}"]
    if _GRACE.partition("=")[0] in get_args_parser().format_help():
        options.append(_GRACE)
    try:
        main([*options, "-m", "llm", verb, *words])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        status = failure.exitcode
        if status < 0:
            print(f"error: process {rank} of {count} was killed by {signal.Signals(-status).name}", file=sys.stderr)
        sys.exit(status if status > 0 else 128 - status)
    except SignalException as stop:
        sys.exit(0 if stop.sigval == signal.SIGTERM else 128 + stop.sigval)
    sys.exit(0)


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
