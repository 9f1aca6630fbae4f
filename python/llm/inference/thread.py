"""The engine in a thread of its own, spoken to from asyncio."""

import asyncio
import contextlib
import math
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from llm.errors import EngineError, LLMError
from llm.inference.engine import Engine
from llm.inference.outputs import Delta
from llm.settings.sampling import SamplingParams
from llm.tokenization import BaseTokenizer

_Event = tuple[int, Delta | LLMError]  # choice, and what came for it
_HUNG_AFTER_S = 180.0  # one step; the longest prefill of a small model on one core takes seconds


@dataclass(eq=False)
class _Stream:
    """One request's way back to its event loop."""

    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[_Event] = field(default_factory=asyncio.Queue)
    ids: range = range(0)


class AsyncEngine:
    """Owns an engine's thread: everything that touches the engine is a command to it.

    Args:
        engine: Not used by anyone else from here on.
        default_params: Sampling values for requests that name none.
    """

    def __init__(self, engine: Engine, default_params: dict[str, float] | None = None) -> None:
        self.tokenizer: BaseTokenizer = engine.tokenizer
        self.max_model_len = engine.max_model_len
        self.default_params = default_params or {}
        self._engine = engine
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[int, _Stream] = {}
        self._stats = engine.stats()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._closed = False
        self._step_began: float | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Starts the engine's thread."""
        self._thread = threading.Thread(target=self._work, name="llm-engine", daemon=True)
        self._thread.start()

    def shutdown(self) -> None:
        """Fails what still runs, ends the thread and waits for it."""
        self._stopping = True
        self._commands.put(None)  # wakes the thread
        if self._thread is not None:
            self._thread.join()

    @property
    def is_healthy(self) -> bool:
        """Whether the engine's thread runs and its step, if one is under way, hasn't taken minutes."""
        if self._thread is None or not self._thread.is_alive() or self._failure is not None:
            return False
        return time.monotonic() - (self._step_began or math.inf) < _HUNG_AFTER_S

    def stats(self) -> dict[str, int]:
        """Counts of requests, blocks and tokens as of the last step."""
        return dict(self._stats)

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, choice_index: int = 0, priority: int = 0
    ) -> AsyncGenerator[Delta, None]:
        """Runs a request for one answer and yields its deltas; closing or cancelling the iterator frees its slot.

        Args:
            prompt_ids: At least one token.
            params: How to sample.
            choice_index: Another stream of random numbers of the same seed.
            priority: Lower runs first.

        Raises:
            ContextLengthError: Prompt and new tokens exceed the context (before the first delta).
            CapacityError: The request can never fit (before the first delta).
            QueueFullError: Too many requests or tokens wait (before the first delta).
            InvalidArgumentError: An empty prompt or a value out of range (before the first delta).
            EngineError: The engine failed or was shut down.
        """

        def add() -> range:
            request_id = self._engine.add_request(prompt_ids, params, choice_index=choice_index, priority=priority)
            return range(request_id, request_id + 1)

        async with contextlib.aclosing(self._stream(add, 1)) as events:
            async for _, delta in events:
                yield delta

    async def generate_choices(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, priority: int = 0
    ) -> AsyncGenerator[tuple[int, Delta], None]:
        """Like `generate` for `params.n` answers: yields (choice, delta) as they come.

        Raises:
            LLMError: As `generate`; an error of one choice ends them all.
        """
        add = partial(self._engine.add_choices, prompt_ids, params, priority=priority)
        async with contextlib.aclosing(self._stream(add, max(params.n, 1))) as events:
            async for event in events:
                yield event

    async def _stream(self, add: Callable[[], range], num_choices: int) -> AsyncGenerator[tuple[int, Delta], None]:
        stream = _Stream(asyncio.get_running_loop())
        self._submit(lambda: self._admit(stream, add))
        num_running = num_choices
        try:
            while num_running:
                choice, event = await stream.events.get()
                if isinstance(event, LLMError):
                    raise event
                num_running -= event.finish_reason is not None
                yield choice, event
        finally:
            if num_running:
                self._commands.put(lambda: self._abort(stream))

    def _submit(self, command: Callable[[], None]) -> None:
        """Hands a command to the thread, unless it will obey no more."""
        with self._lock:
            if self._thread is None or self._closed:
                raise EngineError("the engine is not running")
            self._commands.put(command)

    def _work(self) -> None:
        """The thread: commands first, then a step while anything runs."""
        try:
            while not self._stopping:
                self._obey(wait=not self._engine.has_unfinished())
                if self._engine.has_unfinished():
                    self._step_began = time.monotonic()
                    self._deliver(self._engine.step())
                    self._step_began = None
                self._stats = self._engine.stats()
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._fail_all()

    def _obey(self, wait: bool) -> None:
        """Runs every command that is there; waits for the first where there is nothing else to do."""
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return
            if command is None:
                return
            command()
            wait = False

    def _admit(self, stream: _Stream, add: Callable[[], range]) -> None:
        try:
            stream.ids = add()
        except LLMError as error:
            _send([(stream, (0, error))])
            return
        self._streams.update(dict.fromkeys(stream.ids, stream))

    def _abort(self, stream: _Stream) -> None:
        for request_id in stream.ids:
            if self._streams.pop(request_id, None) is not None:
                self._engine.abort(request_id)

    def _deliver(self, events: list[tuple[int, Delta | LLMError]]) -> None:
        ready: list[tuple[_Stream, _Event]] = []
        for request_id, event in events:
            stream = self._streams[request_id]
            ready.append((stream, (request_id - stream.ids.start, event)))
            if isinstance(event, LLMError) or event.finish_reason is not None:
                del self._streams[request_id]
        _send(ready)

    def _fail_all(self) -> None:
        """Tells every request, queued commands included, that nothing more will come."""
        reason = f"the engine failed: {self._failure}" if self._failure else "the engine was shut down"
        with self._lock:
            self._closed = True
        self._obey_rest()
        _send([(stream, (0, EngineError(reason))) for stream in set(self._streams.values())])
        self._streams.clear()

    def _obey_rest(self) -> None:
        while not self._commands.empty():
            command = self._commands.get()
            if command is not None:
                command()


def _send(events: list[tuple[_Stream, _Event]]) -> None:
    """Hands events to their event loops, one wake-up a loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, _Event]]] = {}
    for stream, event in events:
        by_loop.setdefault(stream.loop, []).append((stream, event))
    for loop, batch in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to listen
            loop.call_soon_threadsafe(_put_all, batch)


def _put_all(batch: list[tuple[_Stream, _Event]]) -> None:
    for stream, event in batch:
        stream.events.put_nowait(event)
