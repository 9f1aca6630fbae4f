"""A closed loop of clients on an OpenAI-compatible server, streamed; a process of its own.

Reads a `Load` as JSON from standard input and writes `{"seconds", "answers"}`. All servers are driven by this same
code. It shares the machine with the server, so while the clock runs it only keeps packets and their times: HTTP/1.1 by
hand, one connection a request, everything parsed afterwards. Tokens are counted by the server, in `usage`.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from figures import Answer, LoadError, Packet, check_status, plain, read_answer

Message = dict[str, str]


@dataclass(frozen=True)
class Load:
    """One request a conversation, `clients` of them at a time."""

    port: int
    model: str
    clients: int
    conversations: list[list[Message]]
    output_tokens: int
    host: str = "127.0.0.1"
    timeout_s: float = 900.0
    extra: dict[str, Any] = field(default_factory=dict)  # more fields of each request


class _Exchange(asyncio.Protocol):
    """Sends a request and keeps what comes until the server closes."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.packets: list[Packet] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.packets.append((time.perf_counter(), data))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - what is missing shows in the packets
        if not self.closed.done():
            self.closed.set_result(None)


def http_request(load: Load, messages: list[Message]) -> bytes:
    """The bytes that ask for a greedy answer of exactly `output_tokens`."""
    body: dict[str, Any] = {
        "model": load.model,
        "messages": messages,
        "max_tokens": load.output_tokens,
        "min_tokens": load.output_tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    } | load.extra
    text = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {load.host}:{load.port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    return head.encode() + text


async def ask(load: Load, messages: list[Message]) -> tuple[list[Packet], float]:
    """What came back, and when it was asked for."""
    request, started = http_request(load, messages), time.perf_counter()
    loop = asyncio.get_running_loop()
    transport, exchange = await loop.create_connection(lambda: _Exchange(request), load.host, load.port)
    try:
        await asyncio.wait_for(exchange.closed, load.timeout_s)
    except TimeoutError:
        raise LoadError(f"an answer took longer than {load.timeout_s:.0f} s") from None
    finally:
        transport.close()
    check_status(exchange.packets)
    return exchange.packets, started


async def drive(load: Load) -> tuple[float, list[Answer]]:
    """The seconds that the whole load took, and its answers in the order of the conversations.

    Raises:
        LoadError: A request failed, or an answer is not as long as asked for.
        OSError: The server can't be reached.
    """
    waiting = list(enumerate(load.conversations))[::-1]
    received: dict[int, tuple[list[Packet], float]] = {}

    async def client() -> None:
        while waiting:
            idx, messages = waiting.pop()
            received[idx] = await ask(load, messages)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(load.clients):
            group.create_task(client())
    seconds = time.perf_counter() - started
    answers = [read_answer(*received[idx]) for idx in range(len(load.conversations))]
    for answer in answers:
        if answer.output_tokens != load.output_tokens:
            raise LoadError(f"{load.output_tokens} tokens were asked for, {answer.output_tokens} came")
    return seconds, answers


def as_json(load: Load) -> str:
    """What this program reads."""
    return json.dumps(asdict(load))


def main() -> None:
    load = Load(**json.load(sys.stdin))
    try:
        seconds, answers = asyncio.run(drive(load))
    except* (LoadError, OSError) as errors:
        sys.exit(f"error: {errors.exceptions[0]}")
    json.dump({"seconds": seconds, "answers": plain(answers)}, sys.stdout)


if __name__ == "__main__":
    main()
