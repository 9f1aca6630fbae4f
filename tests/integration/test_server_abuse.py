"""Thousands of clients, clients that vanish and requests made to harm: `make test-abuse`, which prints its figures."""

import asyncio
import json
import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import httpx
import openai
import pytest

from llm.inference import EngineConfig
from llm.serving import ServerConfig, ServerHandle
from tests.integration.server_client import DEADLINE_S, complete, is_idle, metric, wait_until

pytestmark = pytest.mark.slow

LONG = {"model": "tiny", "prompt": "To be", "max_tokens": 7000, "stream": True, "ignore_eos": True}
SHORT = {"model": "tiny", "prompt": "To be", "max_tokens": 64, "ignore_eos": True}
HELD = SHORT | {"max_tokens": 300}  # keeps the queue full while others arrive
BODY_LIMIT = 2**20


@pytest.fixture(scope="module")
def server(checkpoint):
    engine = EngineConfig(max_waiting_requests=2000)
    with ServerHandle(checkpoint, ServerConfig(port=0, engine=engine, max_body_bytes=BODY_LIMIT)) as handle:
        yield handle


def slowdown():
    """How much longer things take because other programs use the machine too."""
    return max(1.0, os.getloadavg()[0] / os.cpu_count())


def port_of(server):
    return int(server.url.rsplit(":", 1)[1])


def resident_mib(server):
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def gauges(client):
    """The sum of the gauges that are zero when nothing runs, read at once and on an open connection."""
    page = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#"))
    held = float(page["llm_blocks_total"]) - float(page["llm_blocks_free"])
    running = (page[f"llm_requests_{name}"] for name in ("in_flight", "running", "waiting"))
    return held + sum(map(float, running))


def request(body, keep_alive=False):
    data = json.dumps(body).encode()
    connection = "keep-alive" if keep_alive else "close"
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\nContent-Length: {len(data)}"
    )
    return head.encode() + b"\r\n\r\n" + data


async def connect(server):
    return await asyncio.open_connection("127.0.0.1", port_of(server))


async def connect_many(server, number):
    """Connects in small groups, because the kernel drops what exceeds its queue of new connections."""
    found = []
    while len(found) < number:
        found += await asyncio.gather(*(connect(server) for _ in range(min(250, number - len(found)))))
    return found


def test_thousand_clients_that_vanish_leave_nothing_running(server):
    async def scenario():
        connections = await connect_many(server, 1000)
        for _, writer in connections:
            writer.write(request(LONG))
        await asyncio.to_thread(wait_until, lambda: metric(server, "llm_requests_in_flight") == 1000)
        with httpx.Client(base_url=server.url, trust_env=False, timeout=DEADLINE_S) as client:
            assert gauges(client) > 1000
            for _, writer in connections:
                writer.transport.abort()
            await asyncio.sleep(0)  # the sockets are closed
            began = time.perf_counter()
            await asyncio.to_thread(wait_until, lambda: gauges(client) == 0)
            return time.perf_counter() - began

    elapsed_s = asyncio.run(scenario())
    print(f"\n1,000 clients vanished: gauges at zero after {elapsed_s:.2f} s")
    assert metric(server, "llm_requests_waiting") == 0
    assert elapsed_s < 1.0 * slowdown()


async def ask(connection, delay_s):
    """The status of one answer, and the seconds until it came."""
    reader, writer = connection
    await asyncio.sleep(delay_s)
    began = time.perf_counter()
    writer.write(request(HELD))
    status = int((await reader.readline()).split()[1])
    elapsed_s = time.perf_counter() - began
    await reader.read()
    writer.close()
    return status, elapsed_s


@pytest.mark.parametrize("arrive_within_s", [0.0, 10.0])
def test_five_thousand_connections_are_answered_or_refused(checkpoint, arrive_within_s):
    engine = EngineConfig(max_running_requests=16, max_waiting_requests=64)

    async def scenario(server):
        connections = await connect_many(server, 5000)
        asked = [ask(connection, arrive_within_s * idx / 5000) for idx, connection in enumerate(connections)]
        return await asyncio.gather(*asked)

    with ServerHandle(checkpoint, ServerConfig(port=0, engine=engine, log_level="error")) as server:
        answers = asyncio.run(scenario(server))
        wait_until(lambda: is_idle(server))
    counts = Counter(status for status, _ in answers)
    refused = sorted(elapsed_s for status, elapsed_s in answers if status == 503)
    p50, p99 = (refused[int(len(refused) * share)] if refused else 0.0 for share in (0.5, 0.99))
    print(f"\n5,000 connections, requests within {arrive_within_s:g} s: {dict(counts)}, ", end="")
    print(f"refused after p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms")
    assert set(counts) <= {200, 429, 503}
    assert counts[200] >= 64
    if arrive_within_s:
        assert p99 <= 0.1 * slowdown()


def test_half_open_connections_delay_nobody_and_are_closed(server):
    async def scenario():
        silent = await connect_many(server, 300)
        halves = await connect_many(server, 300)
        for _, writer in halves:
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: loc")
        began = time.perf_counter()
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=DEADLINE_S) as client:
            answered = await client.post("/v1/completions", json=SHORT)
        elapsed_s = time.perf_counter() - began
        closed = await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in silent + halves)), 60)
        return answered.status_code, elapsed_s, set(closed)

    status, elapsed_s, closed = asyncio.run(scenario())
    print(f"\n600 half-open connections: a request beside them took {elapsed_s:.2f} s")
    assert (status, closed) == (200, {b""})


@pytest.mark.parametrize("is_chunked", [False, True])
def test_bodies_of_a_hundred_megabytes_take_no_memory(server, is_chunked):
    before_mib = resident_mib(server)
    piece = b"x" * 2**20

    async def send():
        reader, writer = await connect(server)
        length = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {100 * 2**20}"
        writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n".encode())
        answer = asyncio.create_task(reader.readline())
        try:
            for _ in range(100):
                writer.write(b"100000\r\n" + piece + b"\r\n" if is_chunked else piece)
                await writer.drain()
        except ConnectionError:
            pass  # the server has read enough
        try:
            return int((await answer).split()[1])
        except (ConnectionError, IndexError):
            return None

    async def scenario():
        return await asyncio.gather(*(send() for _ in range(8)))

    statuses = set(asyncio.run(scenario()))
    growth_mib = resident_mib(server) - before_mib
    print(f"\n8 bodies of 100 MiB: {statuses}, resident memory grew by {growth_mib:.0f} MiB")
    assert statuses <= {413, None}  # None: the answer was lost, because the client went on writing
    assert growth_mib < 64


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "tiny", "prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"model": "tiny", "prompt": "\xff\xfe"}',
        b'{"model": "tiny", "prompt": "\\ud800"}',
        b"\x00" * 1000,
        b"",
    ],
)
def test_body_made_to_harm_is_400(server, body):
    response = httpx.post(f"{server.base_url}/completions", content=body, trust_env=False, timeout=DEADLINE_S)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_port_is_free_again_after_kill_nine(checkpoint):
    with ServerHandle(checkpoint) as first:
        port = port_of(first)
        client = openai.OpenAI(base_url=first.base_url, api_key="any", max_retries=0)
        streams = [complete(client, stream=True, max_tokens=7000) for _ in range(8)]
        for stream in streams:
            next(iter(stream))
        os.kill(first.process.pid, signal.SIGKILL)
        assert first.process.wait(DEADLINE_S) == -signal.SIGKILL
        began = time.perf_counter()
        with ServerHandle(checkpoint, ServerConfig(port=port)) as second:
            print(f"\nkilled and answering again on port {port} after {time.perf_counter() - began:.1f} s")
            again = openai.OpenAI(base_url=second.base_url, api_key="any", max_retries=0)
            assert complete(again).usage.completion_tokens == 24


def test_all_gauges_are_zero_at_the_end(server):
    wait_until(lambda: is_idle(server))
    client = openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0)
    assert complete(client).usage.completion_tokens == 24
    with socket.create_connection(("127.0.0.1", port_of(server))):
        assert metric(server, "llm_requests_in_flight") == 0
