"""The server in a process of its own; once it has stopped, the engine's integrity is checked.

Usage: python -m tests.soak.served PATH --fd DESCRIPTOR, as `python -m llm.serving`.
"""

import sys

from llm.serving import __main__ as command
from llm.serving import server

ENGINES = []
CLEAN = "the engine's integrity is clean"


def kept(load):
    """Wraps a loader so that the engine can be reached after the server."""

    def loaded(*arguments):
        ENGINES.append(load(*arguments))
        return ENGINES[-1]

    return loaded


if __name__ == "__main__":
    server._load = kept(server._load)
    code = command.main()
    ENGINES[0].session.engine.core.check_integrity()
    sys.stderr.write(f"\n{CLEAN}\n")
    server.end_process(code)
