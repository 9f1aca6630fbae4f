"""Responses that are generated while no request waits for them."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import msgspec

from llm.errors import LLMError
from llm.serving import sse
from llm.serving.answers.responses import ResponseAnswer
from llm.serving.errors import APIError, from_llm_error, internal_error, unavailable
from llm.serving.protocol.common import encoder
from llm.serving.protocol.responses import Response, ResponseError
from llm.serving.store import ResponseStore

logger = logging.getLogger(__name__)

Events = list[msgspec.Struct]
_STOPPED = "The server stopped before the response was complete"


class BackgroundRun:
    """Generates one response and, if it is streamed, keeps its events, so that clients can come and go.

    Args:
        answer: Builds the response.
        owner: Name of the API key that created it; only that key finds it.
        is_streamed: Whether clients may follow its events.
    """

    def __init__(self, answer: ResponseAnswer, owner: str, *, is_streamed: bool) -> None:
        self.answer = answer
        self.owner = owner
        self.is_streamed = is_streamed
        self._frames: list[bytes] = []
        self._is_done = False
        self._changed = asyncio.Event()
        self._ends_with: APIError | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, arrivals: AsyncGenerator[Events, None], keep: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Starts to generate, and returns the task.

        Args:
            arrivals: The events as they come.
            keep: Stores the response as it is; called if the events end early.
        """
        self._task = asyncio.create_task(self._work(arrivals, keep))
        return self._task

    async def wait(self) -> None:
        """Waits until the response has ended."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def cancel(self, error: APIError | None = None) -> None:
        """Ends the response as cancelled, or as failed with an error, and waits until it is stored."""
        self._ends_with = error
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def follow(self, start: int) -> AsyncIterator[bytes]:
        """Yields framed events from a sequence number on, as they come, until the response has ended."""
        while True:
            if start < len(self._frames):
                frames = b"".join(self._frames[start:])
                start = len(self._frames)
                yield frames
            elif self._is_done:
                return
            else:
                await self._changed.wait()

    async def _work(self, arrivals: AsyncGenerator[Events, None], keep: Callable[[], Awaitable[None]]) -> None:
        try:
            async with aclosing(arrivals):
                async for events in arrivals:
                    self._add(events)
        except asyncio.CancelledError:
            await self._fail(self._ends_with, keep)
        except APIError as error:
            await self._fail(error, keep)
        except LLMError as error:
            logger.warning("response %s failed: %s", self.answer.id, error)
            await self._fail(from_llm_error(error, prompt_param="input"), keep)
        except Exception:
            logger.exception("response %s failed", self.answer.id)
            await self._fail(internal_error(), keep)
            raise
        finally:
            self._is_done = True
            self._changed.set()

    async def _fail(self, error: APIError | None, keep: Callable[[], Awaitable[None]]) -> None:
        if error is None:
            self.answer.cancel()
        else:
            self._add(list(self.answer.failed(error)))
        await keep()

    def _add(self, events: Events) -> None:
        if self.is_streamed:
            self._frames += map(sse.named_event, events)
        self._changed.set()
        self._changed = asyncio.Event()


def stopped_error() -> APIError:
    """Returns the error of responses that were incomplete when the server stopped."""
    return unavailable(_STOPPED, "server_stopping")


async def fail_interrupted(store: ResponseStore) -> None:
    """Marks the responses as failed that a server which is gone was generating."""
    for record in await store.running():
        response = msgspec.json.decode(record.response, type=Response)
        error = ResponseError(code="server_error", message=_STOPPED)
        failed = encoder.encode(msgspec.structs.replace(response, status="failed", error=error))
        await store.put(msgspec.structs.replace(record, response=failed, is_running=False))
