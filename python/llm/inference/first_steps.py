"""When requests leave the queue, for the metrics of a server."""

import time
from collections.abc import Iterable

import msgspec

from llm._rust import StepPlan
from llm.errors import LLMError
from llm.inference.outputs import Delta


class FirstSteps:
    """Notes the first step of each request and tells it with the request's first delta.

    A step in which no request waits for its first step or its first delta costs two looks at empty collections.
    """

    def __init__(self) -> None:
        self._waiting: set[int] = set()
        self._began_at: dict[int, float] = {}

    def add(self, request_id: int) -> None:
        """Adds a request that is queued."""
        self._waiting.add(request_id)

    def drop(self, request_id: int) -> None:
        """Forgets a request that ends early."""
        self._waiting.discard(request_id)
        self._began_at.pop(request_id, None)

    def note(self, plan: StepPlan) -> None:
        """Notes the requests that a plan is the first to hold."""
        if not self._waiting:
            return
        first = self._waiting.intersection(plan.request_ids.tolist())
        self._waiting -= first
        self._began_at.update(dict.fromkeys(first, time.perf_counter()))

    def stamped(self, events: list[tuple[int, Delta | LLMError]]) -> list[tuple[int, Delta | LLMError]]:
        """Returns the events of a step, with the time of the first step in each first delta."""
        return [self._stamped(*event) for event in events] if self._began_at else events

    def forget(self, request_ids: Iterable[int]) -> None:
        """Forgets requests that failed together."""
        for request_id in request_ids:
            self.drop(request_id)

    def _stamped(self, request_id: int, event: Delta | LLMError) -> tuple[int, Delta | LLMError]:
        began_at = self._began_at.pop(request_id, None)
        if began_at is None or isinstance(event, LLMError):
            return request_id, event
        return request_id, msgspec.structs.replace(event, scheduled_at=began_at)
