"""One HTTP exchange over raw ASGI: reads the request, sends one answer and detects a client that disconnects."""

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from llm.inference import Usage
from llm.serving import bodies, sse
from llm.serving.errors import (
    APIError,
    ErrorResponse,
    body_timeout,
    body_too_large,
    incomplete_body,
    unavailable,
    with_request_id,
)
from llm.serving.protocol.common import encoder

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

CLIENT_CLOSED_REQUEST = 499  # nginx's status for this; only logs and metrics contain it

_TIMEOUT_S = 60.0

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:/+=@-]{1,128}")

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

# Reading past the limit lets a client finish writing and then read the 413 instead of getting a reset connection.
_DISCARDED_PER_LIMIT = 4

_MAX_QUERY_FIELDS = 100


class ErrorFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How an API reports errors, from the error and the id of the request: as a response and as an event."""

    payload: Callable[[APIError, str], msgspec.Struct]
    event: Callable[[APIError, str], bytes]


OPENAI_ERRORS = ErrorFormat(
    payload=lambda error, _: ErrorResponse(error=error.body),
    event=lambda error, _: sse.event(ErrorResponse(error=error.body)),
)


class ClientDisconnectedError(Exception):
    """The client disconnected before its answer was complete."""


class Exchange:
    """A request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.method: str = scope["method"]
        self.path: str = scope["path"].rstrip("/") or "/"
        self.path_parameters: dict[str, str] = {}
        self.query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), max_num_fields=_MAX_QUERY_FIELDS))
        self.background: asyncio.Task[None] | None = None  # work that outlives the answer
        self.shown_path = _shown_path(scope)
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self.request_id = _request_id(self.headers.get("x-request-id", ""))
        self.traceparent = _traceparent(self.headers.get("traceparent", ""))
        self.response_headers: list[Header] = [(b"x-request-id", self.request_id.encode())]
        self.started_at = time.perf_counter()
        self.status: int | None = None
        self.finished = False
        self._writing_since: float | None = None
        self.usage: Usage | None = None
        self.key_name: str | None = None
        self.first_token_s: float | None = None
        self.error_format = OPENAI_ERRORS

    @property
    def trace_id(self) -> str | None:
        """The trace that the client says the request belongs to."""
        return None if self.traceparent is None else self.traceparent.split("-")[1]

    async def body(self, limit_bytes: int, timeout_s: float = _TIMEOUT_S) -> bytes:
        """Reads the whole body and undoes its content encoding.

        Raises:
            APIError: 413 if the body is larger than the limit, 408 if it takes longer than the timeout, 400 if it is
                incomplete and 415 if its encoding is unknown.
        """
        is_encoded = bodies.is_encoded(self.headers.get("content-encoding", ""))
        try:
            async with asyncio.timeout(timeout_s):
                body = await self._read(limit_bytes)
        except TimeoutError:
            raise body_timeout(timeout_s) from None
        # Runs in a separate thread, because decompressing a large body must not delay other requests.
        return await asyncio.to_thread(bodies.gunzip, body, limit_bytes) if is_encoded else body

    async def _read(self, limit_bytes: int) -> bytes:
        chunks: list[bytes] = []
        size_bytes = 0
        more = True
        while more and size_bytes <= limit_bytes * _DISCARDED_PER_LIMIT:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise incomplete_body()
            size_bytes += len(message.get("body", b""))
            if size_bytes <= limit_bytes:
                chunks.append(message.get("body", b""))
            more = message.get("more_body", False)
        if size_bytes > limit_bytes:
            raise body_too_large(limit_bytes)
        return b"".join(chunks)

    async def send_json(self, payload: msgspec.Struct, *, status: int = 200, headers: tuple[Header, ...] = ()) -> None:
        """Sends a whole answer as JSON."""
        await self.send_bytes(encoder.encode(payload), b"application/json", status=status, headers=headers)

    async def send_bytes(
        self, body: bytes, content_type: bytes | None, *, status: int = 200, headers: tuple[Header, ...] = ()
    ) -> None:
        """Sends a whole answer; only the headers for HEAD."""
        described = [*headers, *self.response_headers]
        if content_type is not None:
            described += [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
        await self._start(status, described)
        await self._finish(b"" if self.method == "HEAD" else body)

    async def send_error(self, error: APIError) -> None:
        """Sends an error as a response, or as the last event if a stream has begun."""
        if self.finished:
            return
        if error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            error = with_request_id(error, self.request_id)
        if self.status is None:
            payload = self.error_format.payload(error, self.request_id)
            await self.send_json(payload, status=error.status, headers=error.headers)
            return
        await self._finish(self.error_format.event(error, self.request_id))

    async def send_events(self, events: bytes) -> None:
        """Sends framed events and waits for a client that reads slowly.

        The first call sends the status and headers too; a later error can't change the status any more.
        """
        if self.status is None:
            await self._start(200, [*sse.HEADERS, *self.response_headers])
        if events:
            self._writing_since = time.perf_counter()
            await self._send({"type": "http.response.body", "body": events, "more_body": True})
            self._writing_since = None

    async def finish_stream(self, last_event: bytes) -> None:
        """Sends the last event and `[DONE]`, and ends the answer."""
        await self.end_stream(last_event + sse.DONE)

    async def end_stream(self, last_events: bytes) -> None:
        """Sends the last events of an API that has no `[DONE]`, and ends the answer."""
        await self._finish(last_events)

    async def unless_abandoned(
        self, work: Coroutine[Any, Any, None], stopping: asyncio.Event, write_timeout_s: float = _TIMEOUT_S
    ) -> None:
        """Runs `work` and cancels it if the client disconnects or stops reading, or the server stops.

        Raises:
            ClientDisconnectedError: The client closed its connection, or has not read for `write_timeout_s`.
            APIError: 503 if the server stopped first.
        """
        task = asyncio.create_task(work)
        gone = asyncio.create_task(self._disconnected())
        stopped = asyncio.create_task(stopping.wait())
        try:
            waited = {task, gone, stopped}
            while not (await asyncio.wait(waited, timeout=write_timeout_s, return_when=asyncio.FIRST_COMPLETED))[0]:
                self._refuse_to_wait(write_timeout_s)
            if task.done() or self.finished:
                await task
                return
            if gone.done():
                raise ClientDisconnectedError
            raise unavailable("The server is stopping and ended this request", "server_stopping")
        finally:
            await _cancel(task, gone, stopped)

    def _refuse_to_wait(self, write_timeout_s: float) -> None:
        """Raises if one write has waited too long for the client; a timer for every write would cost more."""
        if self._writing_since is not None and time.perf_counter() - self._writing_since > write_timeout_s:
            raise ClientDisconnectedError

    async def _start(self, status: int, headers: list[Header]) -> None:
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _finish(self, body: bytes) -> None:
        self.finished = True
        self._writing_since = time.perf_counter()
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
        self._writing_since = None

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks that still run and waits for them to end, so that no task outlives its request."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _request_id(sent: str) -> str:
    """Returns the client's own id if it is short and can't forge a log line, otherwise a new one."""
    return sent if _REQUEST_ID.fullmatch(sent) else f"req_{uuid.uuid4().hex}"


def _traceparent(sent: str) -> str | None:
    """Returns a valid W3C `traceparent`, otherwise nothing; ids of zeros are invalid."""
    return sent if _TRACEPARENT.fullmatch(sent) else None


def _shown_path(scope: Scope) -> str:
    """Returns the path still percent-encoded, because a decoded newline could forge a log line."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode("unicode_escape")
    return raw.decode("latin-1")[:200]
