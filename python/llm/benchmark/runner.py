"""Runs a load against a server and measures every answer."""

import asyncio
import itertools
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import msgspec
from rich.progress import MofNCompleteColumn

from llm.benchmark.client import Client, HttpError
from llm.benchmark.load import Planned, planned
from llm.benchmark.report import Measured, Report, summarized
from llm.errors import ServerError
from llm.progress import progress_bar
from llm.settings.benchmark import ServingBenchmark
from llm.settings.merge import validated

_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_DONE = b"[DONE]"
_WARMUP = -1


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    text: str = ""

    @property
    def has_text(self) -> bool:
        delta = self.delta
        return bool(self.text or delta.content or delta.reasoning or delta.reasoning_content or delta.tool_calls)


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(_Chunk)


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def run_benchmark(benchmark: ServingBenchmark, *, progress: bool | None = None) -> Report:
    """Sends the load to the server, as often as it asks for repeats.

    Args:
        benchmark: The server, the load and the limits of a good answer.
        progress: Show a bar; None shows one on a terminal.

    Raises:
        ConfigError: A setting is out of range.
        DataError: The trace or the prompts can't be read.
        ServerError: The server can't be reached, or no request succeeded.
    """
    benchmark = validated(benchmark)
    with progress_bar(MofNCompleteColumn(), wanted=progress) as bar:
        task = bar.add_task("Requests", total=None)

        def advance(total: int) -> None:
            bar.update(task, total=total, advance=1)

        return asyncio.run(_run(benchmark, advance))


async def _run(benchmark: ServingBenchmark, advance: Callable[[int], None]) -> Report:
    client = Client(benchmark.url, benchmark.api_key)
    try:
        model = benchmark.model or await _first_model(client)
        runner = _Runner(client, benchmark, advance)
        warmup = msgspec.structs.replace(benchmark, requests=max(1, benchmark.warmup), rate=None, trace=None)
        if benchmark.warmup:
            await runner.repeat(planned(warmup, model, _WARMUP))
        repeats = []
        for repeat in range(benchmark.repeats):
            load = planned(benchmark, model, repeat)
            runner.total = len(load) * benchmark.repeats
            requests, duration_s = await runner.repeat(load)
            repeats.append(summarized(requests, duration_s, benchmark))
    finally:
        await client.close()
    _check_some_succeeded(repeats[-1].errors, len(repeats[-1].requests))
    settings = msgspec.to_builtins(msgspec.structs.replace(benchmark, api_key=None))
    settings.pop("api_key")
    return Report(model=model, settings=settings, repeats=repeats)


async def _first_model(client: Client) -> str:
    body = await client.get("/v1/models")
    try:
        return msgspec.json.decode(body, type=_Models).data[0].id
    except (msgspec.DecodeError, IndexError) as error:
        raise ServerError("/v1/models names no model\nhint: set `model`") from error


def _check_some_succeeded(errors: dict[str, int], num_requests: int) -> None:
    if sum(errors.values()) == num_requests:
        raise ServerError(f"all {num_requests} requests failed, the first with: {next(iter(errors))}")


class _Runner:
    def __init__(self, client: Client, benchmark: ServingBenchmark, advance: Callable[[int], None]) -> None:
        self._client = client
        self._path = _PATHS[benchmark.endpoint]
        self._clients = benchmark.clients
        self._timeout_s = benchmark.timeout_s
        self._advance = advance
        self.total = 0

    async def repeat(self, load: list[Planned]) -> tuple[list[Measured], float]:
        """Sends all requests; returns their measurements and the seconds that it took."""
        began = time.perf_counter()
        if load[0].arrival_s is None:
            requests = await self._closed_loop(load)
        else:
            requests = await self._open_loop(load, began)
        return requests, time.perf_counter() - began

    async def _closed_loop(self, load: list[Planned]) -> list[Measured]:
        waiting = iter(load)
        measured: list[Measured] = []

        async def client() -> None:
            for request in waiting:
                measured.append(await self._measure(request, time.perf_counter()))

        await asyncio.gather(*(client() for _ in range(min(self._clients, len(load)))))
        return measured

    async def _open_loop(self, load: list[Planned], began: float) -> list[Measured]:
        """Sends each request at its arrival, however many wait for their answers."""
        tasks = []
        for request in load:
            arrival = began + (request.arrival_s or 0.0)
            await asyncio.sleep(max(0.0, arrival - time.perf_counter()))
            tasks.append(asyncio.create_task(self._measure(request, arrival)))
        return await asyncio.gather(*tasks)

    async def _measure(self, request: Planned, arrival: float) -> Measured:
        lag_s = time.perf_counter() - arrival
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._answer(request, arrival, lag_s)
        except TimeoutError:
            return Measured(lag_s=lag_s, error=f"no whole answer after {self._timeout_s:g} s")
        except (HttpError, OSError, msgspec.DecodeError) as error:
            return Measured(lag_s=lag_s, error=str(error))
        finally:
            if self.total:
                self._advance(self.total)

    async def _answer(self, request: Planned, arrival: float, lag_s: float) -> Measured:
        """Reads a stream; the last event with text ends the answer, so that the usage chunk adds no time."""
        usage, last = None, 0.0
        times: list[float] = []
        async with aclosing(self._client.events(self._path, request.body)) as events:
            async for now, data in events:
                if data == _DONE:
                    continue
                chunk = _decoder.decode(data)
                if chunk.error is not None:
                    raise HttpError(str(chunk.error.get("message")))
                usage = chunk.usage or usage
                last = now if chunk.choices else last
                if any(choice.has_text for choice in chunk.choices):
                    times.append(now)
        if usage is None or not last:
            raise HttpError("the stream has no usage or no choice")
        times = times or [last]  # tokens without text, such as bytes of no character
        return Measured(
            lag_s=lag_s,
            ttft_s=times[0] - arrival,
            e2e_s=times[-1] - arrival,
            gaps_s=[after - before for before, after in itertools.pairwise(times)],
            prompt_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
        )
