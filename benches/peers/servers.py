"""Servers to measure: how each is started, waited for, weighed and stopped again."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import environments
from figures import LoadError
from load import Load, as_json, http_request

NAME = "model"
HOST = "127.0.0.1"
CONTEXT = 4096
# Tokens that a client of llama.cpp may hold: a prompt and its answer.
SLOT_CONTEXT = 512
POLL_S = 0.05
STOP_S = 30.0
LOG_TAIL_LINES = 15


class ServerFailedError(Exception):
    """A server that could not be started or went away."""


@dataclass(frozen=True)
class Peer:
    """One way to serve the model; `{python}`, `{bin}`, `{model}`, `{dtype}` and `{port}` are filled in."""

    label: str
    command: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)


def ours(label: str = "ours", *options: str, model: Path | None = None) -> Peer:
    """Our server, as users start it; `model` replaces the weights of the others."""
    program = str(Path(sys.executable).with_name("llm"))
    names = ("--port", "{port}", "--served-model-name", NAME, "--dtype", "{dtype}")
    return Peer(label, (program, "serve", "{model}" if model is None else str(model), *names, *options))


def llama_server(clients: int) -> Peer:
    """llama.cpp's server on all cores, with a slot for each client."""
    program = str(environments.directory().resolve() / "llama-server" / "bin" / "llama-server")
    cores = str(os.cpu_count() or 1)
    names = ("--port", "{port}", "--host", HOST, "--alias", NAME, "--threads", cores, "--threads-batch", cores)
    context = str(clients * SLOT_CONTEXT)
    slots = ("--parallel", str(clients), "--ctx-size", context, "--jinja", "--log-disable", "--no-slots")
    return Peer("llama.cpp", (program, "--model", "{model}", *names, *slots))


def vllm(cores: str, model: Path | None = None) -> Peer:
    """vLLM's build for CPUs, its threads on these cores; `model` replaces the weights of the others."""
    program = str(environments.directory() / "vllm" / "bin" / "vllm")
    names = ("--port", "{port}", "--host", HOST, "--served-model-name", NAME, "--dtype", "{dtype}")
    return Peer(
        f"vllm, cores {cores}",
        (program, "serve", "{model}" if model is None else str(model), *names, "--max-model-len", str(CONTEXT)),
        vllm_variables(cores),
    )


def vllm_variables(cores: str) -> dict[str, str]:
    """What vLLM reads from its environment; nothing is fetched or reported, and what it compiles stays with it."""
    environment = environments.directory().resolve() / "vllm"
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_CACHE_ROOT": str(environment / "cache"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    # Its documentation asks for this library to be loaded first; it is one of its requirements.
    if (openmp := environment / "lib" / "libiomp5.so").is_file():
        variables["LD_PRELOAD"] = str(openmp)
    return variables


def environment_of(variables: dict[str, str]) -> dict[str, str]:
    """What a server starts with: ours as users have it, so without the number of threads that make sets for tests."""
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | variables


def core_choices() -> list[str]:
    """All cores, and all but the last: that one is then free for HTTP and the clients."""
    cores = os.cpu_count() or 1
    return ["0" if last == 0 else f"0-{last}" for last in (cores - 1, cores - 2) if last >= 0]


def has_option(option: str) -> bool:
    """Whether our `llm serve` knows it."""
    program = Path(sys.executable).with_name("llm")
    wide = os.environ | {"COLUMNS": "200"}
    done = subprocess.run([program, "serve", "--help"], capture_output=True, text=True, check=True, env=wide)
    return option in done.stdout


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class Server:
    """A peer's process while it runs, a session of its own, so that what it started can be stopped with it."""

    def __init__(self, peer: Peer, model: Path, dtype: str, log: Path) -> None:
        self.peer, self.log, self.port = peer, log, free_port()
        values = {"model": str(model), "dtype": dtype, "port": str(self.port)}
        command = [word.format_map(values) for word in peer.command]
        self.started = time.perf_counter()
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                command, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, start_new_session=True,
                env=environment_of(peer.variables),
            )  # fmt: skip

    def first_token(self, load: Load, timeout_s: float) -> float:
        """Seconds from the start of the process to the first token of an answer.

        Raises:
            ServerFailedError: It ended, or gave no answer in time.
        """
        request = http_request(load, load.conversations[0])
        while time.perf_counter() - self.started < timeout_s:
            if self.process.poll() is not None:
                raise self.failed(f"ended with exit code {self.process.returncode} before it answered")
            if self._answers(request, timeout_s):
                return time.perf_counter() - self.started
            time.sleep(POLL_S)
        raise self.failed(f"gave no token in {timeout_s:.0f} s")

    def _answers(self, request: bytes, timeout_s: float) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=timeout_s) as connection:
                connection.sendall(request)
                return _streams_text(connection.makefile("rb"))
        except OSError:
            return False

    def failed(self, what: str) -> ServerFailedError:
        """An error with the end of the log."""
        return ServerFailedError(f"{self.peer.label} {what}; the end of {self.log}:{end_of(self.log)}")

    def stop(self) -> None:
        """SIGTERM to the process; what is left of its session after a while, or at a second Ctrl-C, is killed."""
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(STOP_S)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def end_of(log: Path) -> str:
    """The last lines of a log, indented."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "".join(f"\n    {line}" for line in lines)


def _streams_text(stream: IO[bytes]) -> bool:
    """Whether a 200 comes, and then a piece of text; the rest is left unread."""
    with stream:
        if b" 200 " not in stream.readline():
            return False
        compact = (line.replace(b'": ', b'":') for line in stream)
        return any(b'"content":"' in line and b'"content":""' not in line for line in compact)


def resident_bytes(pid: int) -> int:
    """Memory of a process and its children, what they share counted once; 0 where the system doesn't say."""
    return sum(_proportional_bytes(each) for each in _with_children(pid))


def _with_children(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                yield from _with_children(int(child))


def _proportional_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def running(peer: Peer, model: Path, dtype: str, log: Path) -> Iterator[Server]:
    """A server that is stopped at the end, whatever happens."""
    server = Server(peer, model, dtype, log)
    try:
        yield server
    finally:
        server.stop()


def driven(server: Server, load: Load) -> tuple[float, list[dict[str, object]]]:
    """Runs a load in a process of its own; its seconds and answers.

    Raises:
        LoadError: A request failed.
    """
    script = Path(__file__).with_name("load.py")
    done = subprocess.run([sys.executable, script], input=as_json(load), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LoadError(f"{server.peer.label}: {done.stderr.strip().splitlines()[-1]}")
    answer = json.loads(done.stdout)
    return answer["seconds"], answer["answers"]
