"""The limits of an API key: requests and tokens per minute, and requests at once.

A rate is a bucket that holds one minute's worth, starts full and fills up steadily. Tokens are taken when an answer
ends, because their number is unknown before: a bucket can go into debt, and the key waits until the debt is paid.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llm.serving.errors import APIError, rate_limited
from llm.serving.http import Exchange, Header
from llm.settings.keys import ApiKey

_MINUTE_S = 60.0
_CONCURRENT_RETRY_AFTER_S = 1


class Bucket:
    """A limit per minute."""

    def __init__(self, kind: str, per_minute: int, clock: Callable[[], float]) -> None:
        self.kind = kind
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._filled_at_s = clock()

    def level(self) -> float:
        """Returns how much may be taken now; negative while in debt."""
        now_s = self._clock()
        refill = (now_s - self._filled_at_s) * self.per_minute / _MINUTE_S
        self._level = min(float(self.per_minute), self._level + refill)
        self._filled_at_s = now_s
        return self._level

    def take(self, amount: int) -> None:
        """Takes from the bucket, into debt if need be."""
        self._level = self.level() - amount

    def check(self) -> None:
        """Checks that at least one may be taken.

        Raises:
            APIError: 429 with the time until then.
        """
        missing = 1 - self.level()
        if missing > 0:
            wait_s = max(1, math.ceil(missing * _MINUTE_S / self.per_minute))
            message = (
                f"The API key has reached its limit of {self.per_minute} {self.kind} per minute\n"
                f"hint: try again in {wait_s} s"
            )
            raise rate_limited(message, self.kind, wait_s)

    def headers(self) -> list[Header]:
        """Returns the headers in which OpenAI's API reports a limit."""
        level = self.level()
        full_in_s = (self.per_minute - level) * _MINUTE_S / self.per_minute
        kind = self.kind.encode()
        return [
            (b"x-ratelimit-limit-" + kind, str(self.per_minute).encode()),
            (b"x-ratelimit-remaining-" + kind, str(max(0, math.floor(level))).encode()),
            (b"x-ratelimit-reset-" + kind, f"{full_in_s:.3f}s".encode()),
        ]


class KeyUsage:
    """An API key with what it has used of its limits.

    Args:
        name: The key's name in logs.
        key: The key's limits.
        clock: Returns seconds that never go back.
    """

    def __init__(self, name: str, key: ApiKey, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.key = key
        self._running = 0
        self._requests = key.requests_per_minute and Bucket("requests", key.requests_per_minute, clock)
        self._tokens = key.tokens_per_minute and Bucket("tokens", key.tokens_per_minute, clock)

    @contextmanager
    def counted(self, exchange: Exchange) -> Iterator[None]:
        """Counts a request while it or its work in the background runs, and its tokens when that ends.

        Raises:
            APIError: 429 if the key has reached a limit.
        """
        self._admit(exchange)
        try:
            yield
        finally:
            if exchange.background is None:
                self._release(exchange)
            else:
                exchange.background.add_done_callback(lambda _: self._release(exchange))

    def _release(self, exchange: Exchange) -> None:
        self._running -= 1
        if self._tokens and exchange.usage is not None:
            self._tokens.take(exchange.usage.total_tokens)

    def _admit(self, exchange: Exchange) -> None:
        buckets = [bucket for bucket in (self._requests, self._tokens) if bucket]
        try:
            self._check_running()
            for bucket in buckets:
                bucket.check()
            if self._requests:
                self._requests.take(1)
        finally:
            for bucket in buckets:
                exchange.response_headers += bucket.headers()
        self._running += 1

    def _check_running(self) -> None:
        limit = self.key.concurrent_requests
        if limit is not None and self._running >= limit:
            raise _too_many_at_once(limit)


def _too_many_at_once(limit: int) -> APIError:
    message = (
        f"The API key has reached its limit of {limit} requests at once\nhint: try again when one of them has ended"
    )
    return rate_limited(message, "requests", _CONCURRENT_RETRY_AFTER_S)
