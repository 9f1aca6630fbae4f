"""The thread that owns a session, with an asyncio interface."""

import asyncio
import concurrent.futures
import contextlib
import math
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from typing import TypeVar

from llm.errors import EngineError, LLMError, ProcessLostError, QueueFullError
from llm.inference.adapters import ServedAdapter
from llm.inference.embedding import Pooling, Vectors, check_sequences, embedding_passes, reward_passes
from llm.inference.outputs import ChoiceDelta
from llm.inference.prompt import Prompt
from llm.inference.runners.base import SharedRunner
from llm.inference.session import Session, Stream

AnswerT = TypeVar("AnswerT")

_MAX_JOBS = 256
_HUNG_AFTER_S = 180.0  # one step; the longest prefill of a small model on one core takes seconds


class _LoopStream(Stream):
    """A stream that wakes the coroutine waiting for it on an event loop."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        super().__init__(prompts)
        self.loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._has_ticked = False
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self) -> None:
        """Waits until `take` has deltas or an error, the stream has ended or a tick has come."""
        while self.is_open and not self.is_ready and not self._has_ticked:
            self._waiter = self.loop.create_future()
            await self._waiter

    def wake(self) -> None:
        """Ends `wait`; must run on the event loop."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def start_ticking(self, tick_s: float) -> None:
        """Ends `wait` every `tick_s` seconds."""
        # One timer that repeats: a new one for every wait would cost each delta a microsecond.
        self._timer = self.loop.call_later(tick_s, self._tick, tick_s)

    def take_tick(self) -> bool:
        """Returns whether a tick has come since the last call."""
        has_ticked, self._has_ticked = self._has_ticked, False
        return has_ticked

    def stop_ticking(self) -> None:
        """Ends the ticks."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self, tick_s: float) -> None:
        self._has_ticked = True
        self.wake()
        self.start_ticking(tick_s)


class _Job:
    """Work in passes for one call of `embed`, which waits on an event loop."""

    def __init__(self, passes: Generator[None, None, Vectors]) -> None:
        self._passes = passes
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Vectors] = self._loop.create_future()

    def advance(self) -> bool:
        """Runs one pass; returns whether the work has ended, failed or is no longer wanted."""
        if self.future.cancelled():
            self._passes.close()
            return True
        try:
            next(self._passes)
        except StopIteration as end:
            vectors: Vectors = end.value
            self._settle(lambda: self.future.set_result(vectors))
        except LLMError as error:
            self.fail(error)
        except RuntimeError as error:
            self.fail(EngineError(f"the model failed: {error}"))
        else:
            return False
        return True

    def fail(self, error: LLMError) -> None:
        """Ends the call with an error."""
        self._settle(lambda: self.future.set_exception(error))

    def _settle(self, settle: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, so no coroutine waits
            self._loop.call_soon_threadsafe(lambda: None if self.future.done() else settle())


class AsyncEngine:
    """Runs a session's engine on its own thread; other threads use the engine only through commands to that thread.

    Args:
        session: The session, from now on reserved for this object except for creating prompts.

    Attributes:
        lost: Done once the engine has failed for good because a process of its model ended, with that error.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._engine = session.engine
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._jobs: deque[_Job] = deque()
        self.lost: concurrent.futures.Future[LLMError] = concurrent.futures.Future()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._closed = False
        self._step_began: float | None = None
        self._lock = threading.Lock()
        self.on_shutdown: Callable[[], None] | None = None

    def start(self) -> None:
        """Starts the thread."""
        if isinstance(self._engine.runner, SharedRunner):
            self._engine.runner.watch(self._lose)
        self._thread = threading.Thread(target=self._work, name="llm-engine", daemon=True)
        self._thread.start()

    def shutdown(self) -> None:
        """Ends running requests with an error, stops the thread and the model's processes, then calls `on_shutdown`."""
        self._stopping = True
        self._commands.put(None)  # wakes the thread
        if self._thread is not None:
            self._thread.join()
        self._engine.close()
        if self.on_shutdown is not None:
            self.on_shutdown()

    def _lose(self, error: LLMError) -> None:
        """Fails the engine because a process of its model ended, also while no request runs; from any thread."""

        def fail() -> None:
            if self._failure is None:
                raise error

        self._commands.put(fail)

    @property
    def is_healthy(self) -> bool:
        """Returns whether the thread runs and its current step, if any, has taken less than 3 minutes."""
        if self._thread is None or not self._thread.is_alive() or self._failure is not None:
            return False
        return time.monotonic() - (self._step_began or math.inf) < _HUNG_AFTER_S

    def stats(self) -> dict[str, int]:
        """Returns counts of requests, blocks and tokens, empty once the engine failed; callable from any thread."""
        return {} if self._failure is not None else self._engine.stats()

    async def generate(
        self, prompts: Sequence[Prompt], *, tick_s: float | None = None
    ) -> AsyncGenerator[list[ChoiceDelta], None]:
        """Runs prompts together and yields lists of their deltas, each with all that arrived since the previous list.

        Answers are numbered across prompts: first the `n` answers to the first prompt, then those to the second.
        Closing or cancelling the iterator frees the blocks of all of them.

        Args:
            prompts: The prompts.
            tick_s: Seconds after which, again and again, a list is yielded even if it is empty; None for never.

        Raises:
            ContextLengthError: A prompt and its new tokens exceed the context (before the first delta).
            CapacityError: A request can never fit the cache (before the first delta).
            QueueFullError: Too many requests or tokens are waiting (before the first delta).
            InvalidArgumentError: A prompt is empty or contains an unknown token id (before the first delta).
            EngineError: The model failed or the engine was shut down; an error in one answer ends all of them.
        """
        stream = _LoopStream(prompts)
        self._submit(lambda: self._admit(prompts, stream))
        try:
            if tick_s is not None:
                stream.start_ticking(tick_s)
            while stream.is_open:
                await stream.wait()
                if (deltas := stream.take()) or stream.take_tick():
                    yield deltas
        finally:
            stream.stop_ticking()
            if stream.num_running:
                self._commands.put(lambda: self.session.abort(stream))

    async def embed(self, sequences: Sequence[Sequence[int]], pooling: Pooling) -> Vectors:
        """Returns one vector of unit length per sequence, fp32 `[N, C]`; see `embedding_passes`.

        The engine's thread computes one pass between two steps, of at most as many tokens as a step; a running stream
        therefore waits for one pass per token. Calls are served in order, so at most one has memory for a long
        sequence. Cancelling the call ends its work after the current pass.

        Raises:
            InvalidArgumentError: A sequence is empty or holds an unknown token id.
            ContextLengthError: A sequence is longer than the model's context.
            QueueFullError: Too many calls wait.
            EngineError: The model failed or the engine was shut down.
        """
        engine = self._engine
        passes = embedding_passes(engine.whole_model, sequences, pooling, engine.max_pass_tokens)
        return await self._finished(passes, sequences)

    async def rewards(self, sequences: Sequence[Sequence[int]]) -> Vectors:
        """Returns the reward of each sequence, fp32 `[N]`; see `reward_passes`, and `embed` for when it is computed.

        Raises:
            LLMError: The same errors as in `embed`, or the model gives no rewards.
        """
        engine = self._engine
        passes = reward_passes(engine.whole_model, sequences, engine.max_pass_tokens)
        return await self._finished(passes, sequences)

    async def _finished(self, passes: Generator[None, None, Vectors], sequences: Sequence[Sequence[int]]) -> Vectors:
        if len(self._jobs) >= _MAX_JOBS:
            raise QueueFullError(f"the queue is full: {_MAX_JOBS} embedding requests wait\nhint: try again later")
        engine = self._engine
        check_sequences(sequences, engine.max_model_len, engine.runner.model.config.vocab_size)
        job = _Job(passes)
        self._submit(lambda: self._jobs.append(job))
        return await job.future

    async def load_adapter(self, name: str, path: str) -> ServedAdapter:
        """Reads an adapter on another thread and serves it from the next step on; see `ServedAdapters`.

        Raises:
            CheckpointError: There is no adapter, it is damaged or another base's, or of a kind that can't be served.
            InvalidArgumentError: The name is taken.
            EngineError: The engine was shut down.
        """
        adapters = self._engine.adapters
        prepared = await asyncio.to_thread(adapters.prepared, path)
        return await self._asked(lambda: adapters.add(name, prepared))

    async def unload_adapter(self, name: str) -> None:
        """Ends the service of an adapter; requests that already run with it go on.

        Raises:
            InvalidArgumentError: No adapter has this name.
            EngineError: The engine was shut down.
        """
        await self._asked(lambda: self._engine.adapters.remove(name))

    async def _asked(self, work: Callable[[], AnswerT]) -> AnswerT:
        """Runs work on the engine's thread and returns what it returns or raises."""
        answer: concurrent.futures.Future[AnswerT] = concurrent.futures.Future()

        def command() -> None:
            try:
                answer.set_result(work())
            except LLMError as error:
                answer.set_exception(error)

        self._submit(command)
        return await asyncio.wrap_future(answer)

    def _submit(self, command: Callable[[], None]) -> None:
        """Queues a command for the thread; raises EngineError if the thread no longer runs commands."""
        with self._lock:
            if self._thread is None or self._closed:
                raise EngineError("the engine is not running")
            self._commands.put(command)

    def _work(self) -> None:
        """Runs the thread: executes queued commands, then a step if any request runs, and repeats."""
        try:
            is_busy = False
            while not self._stopping:
                self._obey(wait=not is_busy)
                if self._engine.has_unfinished():
                    self._step_began = time.monotonic()
                    _wake(self.session.step())
                    self._step_began = None
                if self._jobs:
                    self._step_began = time.monotonic()
                    self._advance(self._jobs[0])
                    self._step_began = None
                is_busy = bool(self._jobs) or self._engine.has_unfinished()
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._fail_all()

    def _obey(self, wait: bool) -> None:
        """Executes all queued commands; if `wait` is set, waits for the first one."""
        while wait or not self._commands.empty():  # no other thread takes from the queue
            command = self._commands.get()
            if command is None:
                return
            command()
            wait = False

    def _advance(self, job: "_Job") -> None:
        """Runs one pass of the first job and drops the job once it has ended."""
        if job.advance():
            self._jobs.popleft()

    def _admit(self, prompts: Sequence[Prompt], stream: Stream) -> None:
        try:
            self.session.admit(prompts, stream)
        except LLMError as error:
            stream.error = error
            _wake([stream])

    def _fail_all(self) -> None:
        """Ends every request with an error, including commands still in the queue."""
        reason = f"the engine failed: {self._failure}" if self._failure else "the engine was shut down"
        with self._lock:
            self._closed = True
        self._obey_rest()
        while self._jobs:
            self._jobs.popleft().fail(EngineError(reason))
        _wake(self.session.fail(EngineError(reason)))
        if isinstance(self._failure, ProcessLostError):
            self.lost.set_result(self._failure)

    def _obey_rest(self) -> None:
        while not self._commands.empty():
            command = self._commands.get()
            if command is not None:
                command()


def _wake(streams: Iterable[Stream]) -> None:
    """Wakes the coroutines that wait for streams, with one call into each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_LoopStream]] = {}
    for stream in streams:
        if isinstance(stream, _LoopStream):
            by_loop.setdefault(stream.loop, []).append(stream)
    for loop, woken in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed, so no coroutine waits
            loop.call_soon_threadsafe(_wake_all, woken)


def _wake_all(streams: list[_LoopStream]) -> None:
    for stream in streams:
        stream.wake()
