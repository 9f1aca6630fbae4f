"""A small HTTP/1.1 client for server-sent events, whose own time hardly counts in what it measures."""

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator
from urllib.parse import urlsplit

import msgspec

from llm.errors import ServerError

_MAX_HEADER_BYTES = 64 * 2**10
_SHOWN_BYTES = 300

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class HttpError(Exception):
    """A response with a status other than 200, or one that ended too early."""


class _Response(msgspec.Struct):
    status: int
    headers: dict[str, str]
    connection: Connection

    @property
    def keeps_alive(self) -> bool:
        return self.headers.get("connection", "").lower() != "close"


class Client:
    """Sends requests to one server over connections that it keeps open.

    Args:
        url: The server's address; a path in it comes before the path of every request.
        api_key: The key to send, if there is one.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._ssl else 80)
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        key = f"authorization: Bearer {api_key}\r\n" if api_key else ""
        self._headers = f"host: {parts.netloc}\r\ncontent-type: application/json\r\n{key}"
        self._idle: list[Connection] = []

    async def get(self, path: str) -> bytes:
        """Returns the body of a response.

        Raises:
            ServerError: The server can't be reached, or its status is another than 200.
        """
        try:
            response = await self._request("GET", path, b"")
            body = b"".join([part async for part in self._body(response)])
        except OSError as error:
            raise ServerError(f"the server at {self._host}:{self._port} can't be reached: {error}") from error
        if response.status != 200:
            raise ServerError(f"{path} answers with status {response.status}: {_shown(body)}")
        return body

    async def events(self, path: str, body: bytes) -> AsyncGenerator[tuple[float, bytes], None]:
        """Yields the data of each server-sent event of a response, with the time at which it arrived.

        Raises:
            HttpError: The status is another than 200.
            OSError: The connection failed.
        """
        response = await self._request("POST", path, body)
        if response.status != 200:
            message = b"".join([part async for part in self._body(response)])
            raise HttpError(f"status {response.status}: {_shown(message)}")
        rest = b""
        async for part in self._body(response):
            now = time.perf_counter()
            *events, rest = (rest + part).replace(b"\r\n", b"\n").split(b"\n\n")
            for event in events:
                for line in event.split(b"\n"):
                    if line.startswith(b"data:"):
                        yield now, line[5:].lstrip()

    async def close(self) -> None:
        """Closes all connections."""
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()

    async def _request(self, method: str, path: str, body: bytes) -> _Response:
        """Sends a request and reads the head of its response; an idle connection may have been closed meanwhile."""
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._headers}content-length: {len(body)}\r\n\r\n"
        while self._idle:
            try:
                return await self._exchange(self._idle.pop(), head.encode() + body)
            except (ConnectionError, asyncio.IncompleteReadError):
                continue
        opened = await asyncio.open_connection(self._host, self._port, ssl=self._ssl, limit=_MAX_HEADER_BYTES)
        try:
            return await self._exchange(opened, head.encode() + body)
        except asyncio.IncompleteReadError as error:
            raise HttpError("the server closed the connection without an answer") from error

    async def _exchange(self, connection: Connection, request: bytes) -> _Response:
        reader, writer = connection
        writer.write(request)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        return _Response(status=int(head[0].split(" ")[1]), headers=headers, connection=connection)

    async def _body(self, response: _Response) -> AsyncIterator[bytes]:
        """Yields the parts of a body; a connection is reused only after a whole body."""
        reader, writer = response.connection
        is_whole = False
        try:
            if "content-length" in response.headers:
                yield await reader.readexactly(int(response.headers["content-length"]))
            elif response.headers.get("transfer-encoding", "").lower() == "chunked":
                while size := int((await reader.readline()).split(b";")[0], 16):
                    yield (await reader.readexactly(size + 2))[:-2]
                await reader.readline()
            else:
                yield await reader.read()
            is_whole = True
        except (asyncio.IncompleteReadError, ValueError) as error:
            raise HttpError("the connection ended before the answer did") from error
        finally:
            if is_whole and response.keeps_alive:
                self._idle.append(response.connection)
            else:
                writer.close()


def _shown(body: bytes) -> str:
    return body[:_SHOWN_BYTES].decode("utf-8", "replace")
