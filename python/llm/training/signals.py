"""Handles Ctrl-C and SIGTERM as requests to stop after the current step."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_INTERRUPT_WEIGHT = 2**16  # more than there are processes, so a sum of votes tells both signals apart


class Interrupted(KeyboardInterrupt):
    """A signal ended the run early.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopRequest:
    """A context manager that records the first signal; a second signal interrupts immediately.

    Outside the main thread, where Python allows no signal handlers, it records nothing.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def received(self) -> bool:
        """Whether a signal arrived."""
        return self.number is not None

    @property
    def vote(self) -> int:
        """A number to sum over all processes: 0 without a signal; `signal_of` reads the sum."""
        return 0 if self.number is None else _INTERRUPT_WEIGHT if self.number == signal.SIGINT else 1

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.received:
            raise Interrupted(number)
        self.number = number


def signal_of(votes: float) -> int:
    """The signal that stops all processes: SIGINT if any of them received it, otherwise SIGTERM."""
    return signal.SIGINT if votes >= _INTERRUPT_WEIGHT else signal.SIGTERM


@contextlib.contextmanager
def interrupts_at_once() -> Iterator[None]:
    """Raises `Interrupted` at the first signal, so that what is being prepared can be cleared away.

    Outside the main thread, it changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, _raise) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise Interrupted(number)
