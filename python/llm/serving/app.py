"""The ASGI app: routes, access control and the life cycle of the engine.

A separate thread loads the model, so the port answers from the start: `/health` returns 503 until the engine is loaded.
An invalid request gets its 400 even while the model loads.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from llm.errors import LLMError
from llm.inference import AsyncEngine
from llm.serving import metrics as prometheus
from llm.serving.auth import Authenticator
from llm.serving.endpoints import CHAT, COMPLETIONS, Endpoint, generate
from llm.serving.errors import (
    APIError,
    from_llm_error,
    internal_error,
    method_not_allowed,
    unavailable,
    unknown_model,
    unknown_url,
)
from llm.serving.http import (
    CLIENT_CLOSED_REQUEST,
    ClientDisconnectedError,
    Exchange,
    Header,
    Message,
    Receive,
    Scope,
    Send,
)
from llm.serving.logging import log_access
from llm.serving.parsing import UnknownKeys, parse_request
from llm.serving.protocol import Health, Model, ModelList
from llm.settings.server import ServerConfig

logger = logging.getLogger(__name__)

Handler = Callable[["App", Exchange], Awaitable[None]]

MODEL_PATH_PREFIX = "/v1/models/"
MODEL_PATH = MODEL_PATH_PREFIX + "{id}"


class EngineHolder:
    """Loads the engine once, in a thread, and reports its state."""

    def __init__(self, load_engine: Callable[[], AsyncEngine]) -> None:
        self._load_engine = load_engine
        self._engine: AsyncEngine | None = None
        self.error: BaseException | None = None
        self.settled = asyncio.Event()

    def start(self) -> None:
        """Starts loading; `settled` is set once the engine is loaded or loading has failed."""
        loop = asyncio.get_running_loop()
        # A daemon thread, so that a load that hangs can't keep the process from exiting.
        threading.Thread(target=self._load, args=(loop,), name="llm-load", daemon=True).start()

    def _load(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            engine = self._load_engine()
            engine.start()
            self._engine = engine
        except BaseException as error:  # noqa: BLE001 - kept, and raised again by the server's runner
            self.error = error
        finally:
            loop.call_soon_threadsafe(self.settled.set)

    @property
    def health(self) -> Health:
        """Returns the body of `/health`."""
        if self.error is not None:
            return Health(status="failed", reason=str(self.error))
        if self._engine is None:
            return Health(status="loading")
        if not self._engine.is_healthy:
            return Health(status="failed", reason="the engine stopped")
        return Health(status="ok")

    def ready(self) -> AsyncEngine:
        """Returns the engine.

        Raises:
            APIError: 503 if the engine is still loading, failed or stopped.
        """
        health = self.health
        if self._engine is None or health.status != "ok":
            code = "model_loading" if health.status == "loading" else "engine_failed"
            raise unavailable(f"The model is unavailable: {health.reason or 'still loading'}", code)
        return self._engine

    def stats(self) -> Mapping[str, int]:
        """Returns the engine's statistics; empty until the engine is loaded."""
        return self._engine.stats() if self._engine is not None else {}

    async def shutdown(self) -> None:
        """Stops the engine if it is loaded; running requests end with an error."""
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)


class App:
    """An ASGI 3 application that implements OpenAI's API for one model."""

    def __init__(self, load_engine: Callable[[], AsyncEngine], model_name: str, config: ServerConfig) -> None:
        self.model = Model(id=model_name, created=int(time.time()))
        self.engine = EngineHolder(load_engine)
        self.metrics = prometheus.ServerMetrics(self.engine.stats)
        self.stopping = asyncio.Event()  # once set, running requests are ended
        self._config = config
        self._authenticator = Authenticator(config.api_keys)
        self._unknown_keys = UnknownKeys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection: the lifespan or an HTTP request."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._serve(Exchange(scope, receive, send))

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message: Message = await receive()
            if message["type"] == "lifespan.startup":
                self.engine.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.engine.shutdown()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _serve(self, exchange: Exchange) -> None:
        """Answers one exchange, with an error response if anything fails, then logs and counts it."""
        route = _route_of(exchange.path)
        status = None
        try:
            await self._answer(exchange, route)
        except ClientDisconnectedError:
            status = CLIENT_CLOSED_REQUEST
        except APIError as error:
            await exchange.send_error(error)
        except Exception:
            await exchange.send_error(internal_error())
            raise
        finally:
            status = status or exchange.status or CLIENT_CLOSED_REQUEST
            self.metrics.observe(route or "unknown", status, time.perf_counter() - exchange.started_at)
            log_access(exchange, status)

    async def _answer(self, exchange: Exchange, route: str | None) -> None:
        exchange.response_headers += _cors_headers(exchange, self._config.allowed_origins)
        if route is None:
            raise unknown_url(exchange.method, exchange.shown_path)
        handlers = ROUTES[route]
        if exchange.method == "OPTIONS":
            await exchange.send_bytes(b"", None, status=204, headers=((b"allow", ", ".join(_allowed(route)).encode()),))
            return
        handler = handlers.get("GET" if exchange.method == "HEAD" else exchange.method)
        if handler is None:
            raise method_not_allowed(exchange.method, exchange.shown_path, _allowed(route))
        if route not in OPEN_ROUTES:
            self._authenticator.check(exchange.headers)
        await handler(self, exchange)

    async def health(self, exchange: Exchange) -> None:
        """Handles `GET /health`: 200 if the model can answer requests, otherwise 503."""
        health = self.engine.health
        await exchange.send_json(health, status=200 if health.status == "ok" else 503)

    async def metrics_page(self, exchange: Exchange) -> None:
        """Handles `GET /metrics` in Prometheus format."""
        await exchange.send_bytes(self.metrics.exposition(), prometheus.CONTENT_TYPE)

    async def models(self, exchange: Exchange) -> None:
        """Handles `GET /v1/models`: lists the one model served."""
        await exchange.send_json(ModelList(data=[self.model]))

    async def one_model(self, exchange: Exchange) -> None:
        """Handles `GET /v1/models/{id}`; the id may contain slashes."""
        self._check_model(exchange.path.removeprefix(MODEL_PATH_PREFIX))
        await exchange.send_json(self.model)

    async def generate(self, exchange: Exchange, endpoint: Endpoint) -> None:
        """Handles `POST /v1/chat/completions` and `POST /v1/completions`."""
        body = await exchange.body(self._config.max_body_bytes)
        request = parse_request(body, endpoint.request_type, self._unknown_keys)
        self._check_model(request.model)
        work = generate(endpoint, request, exchange, self.engine.ready(), self.metrics)
        try:
            with self.metrics.in_flight.track_inprogress():
                await exchange.unless_abandoned(work, self.stopping)
        except LLMError as error:
            if from_llm_error(error).status >= 500:
                logger.exception("request %s failed", exchange.request_id)
            raise from_llm_error(error, prompt_param=endpoint.prompt_param) from error

    def _check_model(self, name: str) -> None:
        if name != self.model.id:
            raise unknown_model(name, self.model.id)


ROUTES: dict[str, dict[str, Handler]] = {
    "/health": {"GET": App.health},
    "/metrics": {"GET": App.metrics_page},
    "/v1/models": {"GET": App.models},
    MODEL_PATH: {"GET": App.one_model},
    "/v1/chat/completions": {"POST": partial(App.generate, endpoint=CHAT)},
    "/v1/completions": {"POST": partial(App.generate, endpoint=COMPLETIONS)},
}
OPEN_ROUTES = frozenset({"/health", "/metrics"})


def create_app(load_engine: Callable[[], AsyncEngine], *, model_name: str, config: ServerConfig | None = None) -> App:
    """Returns the app; the engine is loaded when the server starts the app's lifespan.

    Args:
        load_engine: Returns the engine; called once, in a separate thread.
        model_name: The model name that clients send.
        config: The server's settings; the address and port are not used here.
    """
    return App(load_engine, model_name, config or ServerConfig())


def _route_of(path: str) -> str | None:
    if path.startswith(MODEL_PATH_PREFIX):
        return MODEL_PATH
    return path if path in ROUTES else None


def _allowed(route: str) -> list[str]:
    methods = list(ROUTES[route])
    return [*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"]


def _cors_headers(exchange: Exchange, allowed_origins: tuple[str, ...]) -> list[Header]:
    """Returns the CORS headers that let web pages of an allowed origin call the server; none unless configured."""
    origin = exchange.headers.get("origin")
    if origin is None or not ({origin, "*"} & set(allowed_origins)):
        return []
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
        (b"access-control-allow-headers", b"authorization, content-type, x-api-key"),
        (b"vary", b"origin"),
    ]
