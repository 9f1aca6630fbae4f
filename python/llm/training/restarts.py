"""Runs whose processes `torchrun` starts again after one of them failed."""

import os
import socket
from typing import Any

from llm.checkpoint import Run


def launcher_facts() -> dict[str, Any]:
    """Returns facts from which a restarted process knows its own run; empty without `torchrun`."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id is None:
        return {}
    return {"launcher": f"{run_id} {socket.gethostname()} {os.getppid()}", "process": os.getpid()}


def was_begun_before(run: Run) -> bool:
    """Returns whether earlier processes of this process's own `torchrun` started or resumed the run last.

    A settings file or options then say nothing new, because `torchrun` repeats its command.
    """
    now = launcher_facts()
    if not now or not run.exists:
        return False
    before = run.last_facts()
    is_same = before.get("launcher") == now["launcher"]
    return bool(is_same and before.get("process") != now["process"])
