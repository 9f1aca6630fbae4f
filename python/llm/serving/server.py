"""Runs the app under granian in this process, on a port that no other server shares.

**One process.** `granian.server.embed.Server` runs granian's Rust I/O on a separate thread and our coroutines on an
asyncio loop in this process. The alternative, `granian.Granian`, starts a worker process. With one worker that owns the
only engine, that means a supervisor with nothing to supervise, a model in a child that outlives a killed parent, and an
exit code that doesn't reflect the child's. In one process, signals reach the server directly, errors are raised to the
caller of `serve`, and no process can be orphaned.

**One port.** granian itself binds with `SO_REUSEPORT`, so two servers would share a port and each would get half of the
requests. We bind and listen first, without that option, so the kernel rejects any second server. granian gets the same
socket, so the port is never free in between.

**Stopping.** After the first SIGINT or SIGTERM, `/health` is 503. `drain_delay_s` seconds later, new requests get a 503
and running requests get `grace_s` seconds to finish. After that time, or on a second signal, the remaining requests end
with an error and the port closes. The engine stops last, and the exit code is 0.
"""

import asyncio
import contextlib
import errno
import gc
import ipaddress
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.net import SocketHolder  # type: ignore[attr-defined]
from granian.server.embed import Server as EmbeddedServer

from llm.checkpoint import given_name
from llm.errors import ConfigError, ServerError
from llm.inference import AsyncEngine, check_loadable, load_async_engine
from llm.serving.app import App, create_app
from llm.serving.kv_events import KVEventPublisher, check_kv_events, publish_kv_events
from llm.serving.logging import configure_logging, granian_logging
from llm.serving.startup import summary
from llm.settings.merge import validated
from llm.settings.server import ServerConfig

if sys.platform != "win32":
    import resource

logger = logging.getLogger(__name__)

_BACKLOG = 1024
_MAX_CONNECTIONS = 8192  # granian stops accepting beyond this; the engine's queue rejects requests long before
_MAX_OPEN_FILES = 2 * _MAX_CONNECTIONS
_MAX_HEADER_BYTES = 64 * 1024  # granian answers longer headers with 431; it holds this much for every connection
# A peer that vanished is noticed after two minutes: 60 s idle, then 4 probes; unread data may wait as long (in ms).
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 120_000}

# After the grace period every request has ended; this is for clients that don't read even that answer.
_LAST_WORDS_S = 3.0

_NATIVE_THREADS_END_S = 0.1  # the threads need microseconds but have to be scheduled first


class _BoundServer(EmbeddedServer):
    """A granian server that listens on a socket that is already bound."""

    def __init__(self, app: App, listener: socket.socket) -> None:
        config = app.services.config
        super().__init__(
            target=app,
            interface=Interfaces.ASGI,
            http=HTTPModes.http1,
            websockets=False,
            backlog=_BACKLOG,
            backpressure=_MAX_CONNECTIONS,
            http1_settings=HTTP1Settings(max_buffer_size=_MAX_HEADER_BYTES),
            ssl_cert=Path(config.tls_certificate) if config.tls_certificate else None,
            ssl_key=Path(config.tls_key) if config.tls_key else None,
            ssl_protocol_min=SSLProtocols.tls12,
            log_dictconfig=granian_logging(config.log_format),
            log_level=LogLevels.error,  # granian's lines on start and stop would only repeat ours
        )
        self._listener = listener

    def _init_shared_socket(self) -> None:
        """Replaces granian's own bind; from here on, granian owns the socket and closes it."""
        file_descriptor = self._listener.detach()
        by_platform = {"linux": (file_descriptor, False, _BACKLOG), "win32": (file_descriptor,)}
        self._ssp = None
        arguments = by_platform.get(sys.platform, (file_descriptor, False))
        self._shd = SocketHolder(*arguments)  # type: ignore[assignment]


def serve(
    path: str | os.PathLike[str], config: ServerConfig | None = None, *, listener: socket.socket | None = None
) -> None:
    """Serves a checkpoint until a signal stops the server.

    Args:
        path: A `Checkpoint`, or the directory of a checkpoint or run.
        config: The server's settings.
        listener: A listening socket to use instead of the config's host and port.

    Raises:
        ConfigError: A setting is out of range, or a file of keys or certificates can't be used.
        ServerError: The address can't be used.
        LLMError: The checkpoint can't be loaded.
    """
    config = validated(config or ServerConfig())
    _check_tls(config)
    _allow_open_files()
    check_kv_events(config.kv_events_config)
    check_loadable(path, dtype=config.dtype, config=config.engine)
    configure_logging(config.log_level, config.log_format)
    app = create_app(lambda: load_engine(path, config), model_name=given_name(path), config=config)
    listener = listener or bind(config.host, config.port)
    if app.authenticator.is_open and not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        logger.warning("no API key is set: everyone who reaches %s may use the model; hint: --api-key", config.host)
    try:
        with contextlib.closing(listener):
            asyncio.run(_run_until_signal(app, listener, config))
    finally:
        _let_native_threads_end()


def end_process(exit_code: int) -> NoReturn:
    """Ends a process that has served immediately; call it as a program's last statement.

    granian doesn't join its native threads, and one that requests the interpreter lock while the interpreter shuts down
    aborts the process; so does the thread of an interrupted load. Ending immediately keeps the exit code the given one.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)


def _check_tls(config: ServerConfig) -> None:
    """Checks the certificate before the port is bound."""
    if config.tls_certificate is None or config.tls_key is None:
        return
    for name in ("tls_certificate", "tls_key"):
        if not Path(getattr(config, name)).is_file():
            raise ConfigError(f"`{name}` must be a PEM file, got {getattr(config, name)!r}, which is none")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(config.tls_certificate, config.tls_key, password=lambda: b"")  # never asks a terminal
    except (ssl.SSLError, OSError) as error:
        problem = f"`tls_certificate` and `tls_key` can't be used together: {error.strerror or error}"
        raise ConfigError(
            f"{problem}\nhint: both must be PEM, the key without a password, of the certificate"
        ) from error


def _allow_open_files() -> None:
    """Raises the limit on open files, often 1,024 by default, to what the connections need."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(_MAX_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _let_native_threads_end() -> None:
    """Drops the references that keep granian's threads alive and lets them end, for a normal process exit."""
    gc.unfreeze()
    gc.collect()
    time.sleep(_NATIVE_THREADS_END_S)


def load_engine(path: str | os.PathLike[str], config: ServerConfig) -> AsyncEngine:
    """Loads the engine that serves a checkpoint, which stays as long as the process.

    Raises:
        LLMError: The checkpoint or an adapter can't be loaded, the cache doesn't fit into memory, or the address of
            events can't be used.
    """
    publisher = KVEventPublisher(config.kv_events_config) if config.kv_events_config.is_on else None
    engine = load_async_engine(path, dtype=config.dtype, config=config.engine, adapters=config.adapter_paths)
    if publisher is not None:
        publish_kv_events(engine, publisher)
    session = engine.session
    session.default_max_tokens = config.default_max_tokens
    session.tool_parser, session.reasoning_parser = config.tool_parser, config.reasoning_parser
    # All objects alive now stay as long as the server; collecting garbage among them would only delay answers.
    gc.collect()
    gc.freeze()
    return engine


def bind(host: str, port: int) -> socket.socket:
    """Returns a listening socket on a port that no other server shares; port 0 chooses a free port.

    Raises:
        ServerError: The port is in use, or the host and port can't be bound.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ServerError(f"host {host!r} can't be resolved: {error.strerror}\nhint: try 127.0.0.1") from error
    # `localhost` may resolve to ::1 too, but clients that use 127.0.0.1 must be able to connect.
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
        # Ignores only past connections in TIME_WAIT; binding still fails while another socket listens.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit these options: a token is a small packet that must be sent without waiting for the next, and a
    # peer that lost its power or its network never closes its connection.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    listener.bind(address)
    listener.listen(_BACKLOG)


def _bind_problem(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is already in use\nhint: stop the other server or choose another port (0: any)"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs elevated privileges\nhint: choose a port of at least 1024"
    return f"port {port} on {host} can't be used: {error.strerror}"


def url_of(listener: socket.socket, config: ServerConfig) -> str:
    """Returns the URL at which this machine can reach a listening socket."""
    scheme = "http" if config.tls_certificate is None else "https"
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - shown, not bound
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def run(app: App, listener: socket.socket, *, stop: asyncio.Event, grace_s: float = 10.0) -> None:
    """Serves an app on this event loop until `stop` is set.

    Args:
        app: The app to serve; its engine is loaded here and shut down at the end.
        listener: The listening socket; closed at the end.
        stop: Stops the server once set; if `app.services.stopping` is set too, running requests get no time to finish.
        grace_s: Seconds that running requests get to finish once the server stops.

    Raises:
        LLMError: The engine can't be loaded.
        ProcessLostError: A process that holds a part of the model ended.
        ServerError: The HTTP server stopped unexpectedly.
    """
    url = url_of(listener, app.services.config)
    logger.info("listening url=%s model=%s", url, app.services.model.id)
    server = _BoundServer(app, listener)
    serving = asyncio.create_task(server.serve())
    stopped = asyncio.create_task(stop.wait())
    loaded = asyncio.create_task(app.services.engine.settled.wait())
    await asyncio.wait({serving, stopped, loaded}, return_when=asyncio.FIRST_COMPLETED)
    if loaded.done() and app.services.engine.error is None:
        engine = app.services.engine.ready()
        sys.stdout.write(summary(engine.session.engine, app.services.config, name=app.services.model.id, url=url))
        sys.stdout.flush()
        lost = asyncio.wrap_future(engine.lost)
        await asyncio.wait({serving, stopped, lost}, return_when=asyncio.FIRST_COMPLETED)
        if lost.done():
            await _drain(server, serving, app, _LAST_WORDS_S)
            raise lost.result()
    if stop.is_set():
        await _leave(serving, app)
    await _drain(server, serving, app, grace_s)
    if app.services.engine.error is not None:
        raise app.services.engine.error


async def _run_until_signal(app: App, listener: socket.socket, config: ServerConfig) -> None:
    stop = asyncio.Event()
    with _signals(stop, app):
        await run(app, listener, stop=stop, grace_s=config.grace_s)


async def _leave(serving: asyncio.Task[None], app: App) -> None:
    """Takes requests for `drain_delay_s` seconds more, in which balancers learn from `/health` to send none."""
    app.services.engine.is_leaving = True
    impatient = asyncio.create_task(app.services.stopping.wait())
    delay_s = app.services.config.drain_delay_s
    await asyncio.wait({serving, impatient}, timeout=delay_s, return_when=asyncio.FIRST_COMPLETED)


async def _drain(server: _BoundServer, serving: asyncio.Task[None], app: App, grace_s: float) -> None:
    """Refuses new requests, waits up to `grace_s` seconds for running ones, ends the rest and closes the port.

    The port stays open meanwhile, so that new requests get a 503 and balancers and probes see the server leave.

    Raises:
        ServerError: granian stopped unexpectedly.
    """
    if serving.done() and not serving.cancelled() and (error := serving.exception()) is not None:
        raise ServerError(f"the HTTP server stopped: {error}") from error
    logger.info("stopping grace_s=%g", grace_s)
    app.services.engine.is_leaving = app.services.engine.is_draining = True
    impatient = asyncio.create_task(app.services.stopping.wait())
    idle = asyncio.create_task(_idle(app))
    await asyncio.wait({serving, impatient, idle}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
    app.services.stopping.set()
    server.stop()  # type: ignore[no-untyped-call]
    await asyncio.wait({serving}, timeout=_LAST_WORDS_S)
    await app.services.engine.shutdown()


async def _idle(app: App) -> None:
    """Waits until no request is in progress and no response is generated in the background."""
    await app.idle.wait()
    while runs := [*app.services.background_runs.values()]:
        await asyncio.gather(*(run.wait() for run in runs))
        await asyncio.sleep(0)  # a run leaves the table when the callbacks of its task run


@contextlib.contextmanager
def _signals(stop: asyncio.Event, app: App) -> Iterator[None]:
    """Stops the server on SIGINT or SIGTERM; a second signal ends running requests without waiting.

    SIGHUP reads the key file again. Without a key file it keeps its usual effect: the process ends with its terminal.
    """
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield  # only the main thread handles signals, and on Windows asyncio has none: Ctrl-C raises there
        return
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (app.services.stopping if stop.is_set() else stop).set()

    handlers: dict[int, Callable[[], None]] = {signal.SIGINT: on_signal, signal.SIGTERM: on_signal}
    if app.services.config.api_key_file is not None:
        handlers[signal.SIGHUP] = app.authenticator.reload
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
