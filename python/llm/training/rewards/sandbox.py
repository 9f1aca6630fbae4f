"""Runs code that a model wrote, and searches that may never end, in processes with limits.

The process of code has limits on time, memory, files and further processes, an empty environment, an empty directory,
and no network where the system allows a process to give it up. It is no protection from code that wants to do harm: it
can read what the user can read, and a kernel's faults are open to it. Where answers may be hostile, run training in a
container or virtual machine.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

SEARCH_SECONDS = 5
_SECONDS = 5
_MEMORY_BYTES = 512 * 2**20
_FILE_BYTES = 2**20
_MAX_CODE_BYTES = 2**20

# The child's limits can't be raised again. Its answer is a word, since code that ends the process early must not pass.
_CHILD = """
import ctypes, os, resource, sys
seconds, memory, file_bytes = map(int, sys.argv[1:4])
def unshare():
    libc = ctypes.CDLL(None, use_errno=True)
    return getattr(libc, "unshare", lambda flags: -1)(0x10000000 | 0x40000000)  # a user and a network of its own
unshare()
limits = {"CPU": seconds, "AS": memory, "FSIZE": file_bytes, "NOFILE": 32, "CORE": 0, "NPROC": 0}
source, tests, word = (sys.stdin.buffer.read(int(sys.stdin.buffer.readline())).decode() for _ in range(3))
out = os.dup(1)
sink = os.open(os.devnull, os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(sink, number)
for name, limit in limits.items():
    if hasattr(resource, "RLIMIT_" + name):
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
names = {"__name__": "__main__"}
exec(compile(source, "answer", "exec"), names)
exec(compile(tests, "tests", "exec"), names)
os.write(out, word.encode())
"""

# The alarm's default action ends the process within a search as well, also where nobody waits for it any more.
_SEARCHER = """
import json, re, signal, sys
pattern, texts, seconds = json.load(sys.stdin)
getattr(signal, "alarm", lambda seconds: None)(seconds)
print(json.dumps([re.search(pattern, text) is not None for text in texts]))
"""


def passes_tests(source: str, tests: str, *, seconds: int = _SECONDS) -> bool:
    """Returns whether `source` and then `tests` run to their end, in a Python process with limits.

    Args:
        source: Python code.
        tests: Python code that raises where `source` is wrong.
        seconds: Time limit; processor time and time on the clock.
    """
    if len(source.encode(errors="replace")) > _MAX_CODE_BYTES:
        return False
    word = secrets.token_hex(16)
    texts = [text.encode(errors="replace") for text in (source, tests, word)]
    given = b"".join(b"%d\n%b" % (len(text), text) for text in texts)
    numbers = [str(number) for number in (seconds, _MEMORY_BYTES, _FILE_BYTES)]
    with tempfile.TemporaryDirectory(prefix="llm-code-") as folder:
        process = subprocess.Popen(  # noqa: S603 (running it is the purpose)
            [sys.executable, "-I", "-S", "-c", _CHILD, *numbers],
            cwd=folder,
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(given, timeout=seconds + 1)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(process)
    return said == word.encode()


def matches(pattern: str, texts: Sequence[str], *, seconds: int = SEARCH_SECONDS) -> list[bool] | None:
    """Returns in which texts a regular expression is found; None if that takes longer than `seconds`."""
    try:
        done = subprocess.run(  # noqa: S603 (fixed code)
            [sys.executable, "-I", "-S", "-c", _SEARCHER],
            input=json.dumps([pattern, list(texts), seconds + 1]),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return None
    found: list[bool] = json.loads(done.stdout)
    return found


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process with all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
