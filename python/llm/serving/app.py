"""The ASGI app: access control, routing and the life cycle of the engine.

A separate thread loads the model, so the port answers from the start: `/health` returns 503 until the engine is loaded.
An invalid request gets its 400 even while the model loads.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from llm.inference import AsyncEngine
from llm.serving.auth import Authenticator
from llm.serving.errors import APIError, draining, internal_error, method_not_allowed, unknown_url
from llm.serving.guard import Guard
from llm.serving.http import (
    CLIENT_CLOSED_REQUEST,
    ClientDisconnectedError,
    Exchange,
    Message,
    Receive,
    Scope,
    Send,
)
from llm.serving.logging import log_access, log_refusal
from llm.serving.routes import OPEN_ROUTES, ROUTES, error_format_of, meant_path, route_of
from llm.serving.services import Services
from llm.serving.tracing import open_tracing
from llm.settings.server import ServerConfig

logger = logging.getLogger(__name__)


class App:
    """An ASGI 3 application that implements OpenAI's API for one model."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self._guard = Guard(services.config)
        self.authenticator = Authenticator(services.config.api_keys, services.config.api_key_file)
        self.tracing = open_tracing(services.config, services.model.id)
        self.idle = asyncio.Event()  # no request is in progress
        self.idle.set()
        self._num_active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection: the lifespan or an HTTP request."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            self._num_active += 1
            self.idle.clear()
            try:
                await self._serve(Exchange(scope, receive, send))
            finally:
                self._num_active -= 1
                if self._num_active == 0:
                    self.idle.set()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message: Message = await receive()
            if message["type"] == "lifespan.startup":
                await self.services.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.services.stop()
                if self.tracing is not None:
                    await asyncio.to_thread(self.tracing.shutdown)
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _serve(self, exchange: Exchange) -> None:
        """Answers one exchange, with an error response if anything fails, then logs and counts it."""
        route, exchange.path_parameters = route_of(exchange.path)
        exchange.error_format = error_format_of(exchange.path)
        status = None
        try:
            await self._answer(exchange, route)
        except ClientDisconnectedError:
            status = CLIENT_CLOSED_REQUEST
        except APIError as error:
            log_refusal(exchange, error)
            await exchange.send_error(error)
        except Exception as error:
            logger.error("request %s failed: %s", exchange.request_id, type(error).__name__)  # its trace follows
            await exchange.send_error(internal_error())
            raise
        finally:
            status = status or exchange.status or CLIENT_CLOSED_REQUEST
            self.services.metrics.observe(route or "unknown", status, time.perf_counter() - exchange.started_at)
            log_access(exchange, status, self.services.model.id)
            if self.tracing is not None and route not in OPEN_ROUTES:
                self.tracing.record(exchange, route, status)

    async def _answer(self, exchange: Exchange, route: str | None) -> None:
        exchange.response_headers += self._guard.cors_headers(exchange)
        if self.authenticator.is_open and route not in OPEN_ROUTES:
            self._guard.check(exchange)
        if route is None:
            raise unknown_url(exchange.method, exchange.shown_path, meant_path(exchange.path))
        handlers = ROUTES[route]
        if self.services.engine.is_draining and route not in OPEN_ROUTES:
            raise draining()
        if exchange.method == "OPTIONS":
            await exchange.send_bytes(b"", None, status=204, headers=((b"allow", ", ".join(_allowed(route)).encode()),))
            return
        handler = handlers.get("GET" if exchange.method == "HEAD" else exchange.method)
        if handler is None:
            raise method_not_allowed(exchange.method, exchange.shown_path, _allowed(route))
        usage = None if route in OPEN_ROUTES else self.authenticator.check(exchange.headers)
        if usage is not None:
            exchange.key_name = usage.name
        if usage is None or not usage.key.is_limited or exchange.method != "POST":
            await handler(self.services, exchange)
            return
        with usage.counted(exchange):
            await handler(self.services, exchange)


def create_app(load_engine: Callable[[], AsyncEngine], *, model_name: str, config: ServerConfig | None = None) -> App:
    """Returns the app; the engine is loaded when the server starts the app's lifespan.

    Args:
        load_engine: Returns the engine; called once, in a separate thread.
        model_name: The model name that clients send, unless the settings name others.
        config: The server's settings; the address and port are not used here.
    """
    return App(Services(load_engine, model_name, config or ServerConfig()))


def _allowed(route: str) -> list[str]:
    methods = list(ROUTES[route])
    return [*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"]
