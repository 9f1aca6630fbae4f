"""Runs the app under granian, in this process, on a port that is ours alone.

**One process.** `granian.server.embed.Server` runs granian's Rust I/O on a thread of its own and our coroutines on an
asyncio loop here. The other way, `granian.Granian`, starts a worker process: for one worker that owns the only engine
that is a supervisor with nothing to supervise, a model loaded in a child that outlives a killed parent, and an exit
code that says nothing of the child's. Here a signal reaches the one process there is, errors are raised to the caller
of `serve`, and nothing can be orphaned.

**One port.** granian itself binds with `SO_REUSEPORT`, so two servers would share a port and each get half of the
requests. We bind and listen first, without that option: the kernel then refuses the second server, whoever it is. The
same socket is handed to granian, so the port is never free in between.

**Stopping.** On the first SIGINT or SIGTERM granian stops accepting, and running requests get `grace_s` to finish;
then, or on a second signal, they are ended with an error. The engine stops last, and the exit code is 0.
"""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels
from granian.net import SocketHolder  # type: ignore[attr-defined]
from granian.server.embed import Server as EmbeddedServer

from llm.errors import ServerError
from llm.inference import AsyncEngine, load_async_engine
from llm.serving.app import App, create_app
from llm.serving.logging import configure_logging, granian_logging
from llm.settings.merge import validated
from llm.settings.server import ServerConfig

logger = logging.getLogger(__name__)

_BACKLOG = 1024
_MAX_CONNECTIONS = 8192  # granian stops accepting past this; the engine's queue says no long before

# Past the grace period every request has been ended; this is for connections that don't even take that.
_LAST_WORDS_S = 3.0

_NATIVE_THREADS_END_S = 0.1  # they need microseconds, but have to be scheduled first


class _BoundServer(EmbeddedServer):
    """granian, listening on a socket that is bound already."""

    def __init__(self, app: App, listener: socket.socket) -> None:
        super().__init__(
            target=app,
            interface=Interfaces.ASGI,
            http=HTTPModes.http1,
            websockets=False,
            backlog=_BACKLOG,
            backpressure=_MAX_CONNECTIONS,
            log_dictconfig=granian_logging(),
            log_level=LogLevels.error,  # its start and stop would only say again what our own lines say
        )
        self._listener = listener

    def _init_shared_socket(self) -> None:
        """Replaces granian's own bind; from here the socket is granian's to close."""
        file_descriptor = self._listener.detach()
        by_platform = {"linux": (file_descriptor, False, _BACKLOG), "win32": (file_descriptor,)}
        self._ssp = None
        arguments = by_platform.get(sys.platform, (file_descriptor, False))
        self._shd = SocketHolder(*arguments)  # type: ignore[assignment]


def serve(path: str | Path, config: ServerConfig | None = None, *, listener: socket.socket | None = None) -> None:
    """Serves a checkpoint until a signal stops the server.

    Args:
        path: A checkpoint or run directory.
        config: The server's settings.
        listener: A socket that listens already, instead of the config's host and port.

    Raises:
        ConfigError: A setting is out of range.
        ServerError: The address can't be used.
        LLMError: The checkpoint can't be loaded.
    """
    config = validated(config or ServerConfig())
    configure_logging(config.log_level)
    listener = listener or bind(config.host, config.port)
    model_name = config.served_model_name or Path(path).resolve().name
    app = create_app(lambda: _load(path, config), model_name=model_name, config=config)
    try:
        with contextlib.closing(listener):
            asyncio.run(_run_until_signal(app, listener, config))
    finally:
        _let_native_threads_end()


def end_process(exit_code: int) -> NoReturn:
    """Ends a process that has served, at once: for a program's last line.

    A native thread of granian's that comes back for the interpreter lock while the interpreter shuts down aborts the
    process, and granian joins none of them; a load that was interrupted is such a thread too. Whoever sees the exit
    code is told nothing but ours.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)


def _let_native_threads_end() -> None:
    """For processes that end the usual way: drops what keeps granian's threads alive, and lets them run out."""
    gc.unfreeze()
    gc.collect()
    time.sleep(_NATIVE_THREADS_END_S)


def _load(path: str | Path, config: ServerConfig) -> AsyncEngine:
    engine = load_async_engine(path, dtype=config.dtype, config=config.engine)
    # What is here now stays as long as the server: looking through it for garbage would hold up answers for nothing.
    gc.collect()
    gc.freeze()
    return engine


def bind(host: str, port: int) -> socket.socket:
    """Takes a port for ourselves alone; port 0 takes a free one.

    Raises:
        ServerError: The port is taken, or host and port can't be bound.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ServerError(f"host {host!r} can't be resolved: {error.strerror}\nhint: try 127.0.0.1") from error
    # `localhost` may name ::1 too, but clients that are told 127.0.0.1 must get through.
    family, _, _, _, address = min(addresses, key=lambda found: found[0] != socket.AF_INET)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        _listen(listener, address)
    except OSError as error:
        listener.close()
        raise ServerError(_bind_problem(error, host, port)) from error
    return listener


def _listen(listener: socket.socket, address: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]) -> None:
    if sys.platform == "win32":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        # Only past connections in TIME_WAIT may be ignored; a socket that listens still refuses us.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it; a token is a small packet that must not wait for the next.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(address)
    listener.listen(_BACKLOG)


def _bind_problem(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is already in use\nhint: stop the other server or choose another port (0: any)"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs more rights\nhint: choose a port from 1024 on"
    return f"port {port} on {host} can't be used: {error.strerror}"


def url_of(listener: socket.socket) -> str:
    """The URL under which a socket can be reached from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - shown, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def run(app: App, listener: socket.socket, *, stop: asyncio.Event, grace_s: float = 10.0) -> None:
    """Serves an app on this event loop until `stop` is set.

    Args:
        app: Its engine is loaded here, and shut down at the end.
        listener: Closed at the end.
        stop: Set it to stop; set `app.stopping` too, and running requests aren't waited for.
        grace_s: How long running requests may take once the server stops.

    Raises:
        LLMError: The engine can't be loaded.
        ServerError: The HTTP server stopped by itself.
    """
    url = url_of(listener)
    logger.info("listening url=%s model=%s", url, app.model.id)
    server = _BoundServer(app, listener)
    serving = asyncio.create_task(server.serve())
    stopped = asyncio.create_task(stop.wait())
    loaded = asyncio.create_task(app.engine.settled.wait())
    await asyncio.wait({serving, stopped, loaded}, return_when=asyncio.FIRST_COMPLETED)
    if loaded.done() and app.engine.error is None:
        sys.stdout.write(f"Serving {app.model.id} at {url} (base URL for OpenAI clients: {url}/v1)\n")
        sys.stdout.flush()
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    await _drain(server, serving, app, grace_s)
    if app.engine.error is not None:
        raise app.engine.error


async def _run_until_signal(app: App, listener: socket.socket, config: ServerConfig) -> None:
    stop = asyncio.Event()
    with _signals(stop, app):
        await run(app, listener, stop=stop, grace_s=config.grace_s)


async def _drain(server: _BoundServer, serving: asyncio.Task[None], app: App, grace_s: float) -> None:
    """Stops accepting, waits for what runs, and ends what takes too long.

    Raises:
        ServerError: granian stopped by itself.
    """
    if serving.done() and not serving.cancelled() and (error := serving.exception()) is not None:
        raise ServerError(f"the HTTP server stopped: {error}") from error
    logger.info("stopping grace_s=%g", grace_s)
    server.stop()  # type: ignore[no-untyped-call]
    impatient = asyncio.create_task(app.stopping.wait())
    await asyncio.wait({serving, impatient}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
    app.stopping.set()
    await asyncio.wait({serving}, timeout=_LAST_WORDS_S)
    await app.engine.shutdown()


@contextlib.contextmanager
def _signals(stop: asyncio.Event, app: App) -> Iterator[None]:
    """SIGINT and SIGTERM stop the server; once more, and running requests aren't waited for."""
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield  # signals belong to the main thread, and asyncio takes none on Windows: Ctrl-C raises there
        return
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (app.stopping if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
