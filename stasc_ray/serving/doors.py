"""How much is let in: a bounded number of samples at once, a bounded queue, so much a minute."""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator

from stasc_ray.serving.errors import ApiError

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
"""Names of this machine that nobody on a network reaches it by."""


class Admission:
    """Lets questions with `max_in_flight` samples in, lets `max_queue` questions wait in order, and turns the
    rest away.
    """

    def __init__(self, max_in_flight: int, max_queue: int) -> None:
        self.max_in_flight, self.max_queue = max_in_flight, max_queue
        self.in_flight = 0
        self._free = max_in_flight
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._mean_s = 1.0

    @property
    def queued(self) -> int:
        """Questions that wait."""
        return sum(not future.done() for _, future in self._waiting)

    @contextlib.asynccontextmanager
    async def place(self, samples: int = 1) -> AsyncIterator[None]:
        """Wait for room, and hold it for the length of the block; one question never takes more than all.

        Raises:
            ApiError: 429 with Retry-After, the queue is full.
        """
        weight = min(samples, self.max_in_flight)
        await self._enter(weight)
        self.in_flight += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self._mean_s += 0.1 * (time.monotonic() - started - self._mean_s)
            self.in_flight -= 1
            self._leave(weight)

    async def _enter(self, weight: int) -> None:
        if not self._waiting and self._free >= weight:
            self._free -= weight
            return
        if self.queued >= self.max_queue:
            raise ApiError(
                429,
                "rate_limit_error",
                f"busy: {self.in_flight} questions in flight and {self.queued} waiting "
                "(serve.max_in_flight, serve.max_queue)",
                headers={"Retry-After": str(self.retry_after_s())},
            )
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((weight, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # let in at the very moment when it left
                self._leave(weight)
            self._let_in()
            raise

    def _leave(self, weight: int) -> None:
        self._free += weight
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and (self._waiting[0][1].done() or self._free >= self._waiting[0][0]):
            weight, future = self._waiting.popleft()
            if not future.done():
                self._free -= weight
                future.set_result(None)

    def retry_after_s(self) -> int:
        """Seconds in which the queue is likely to have moved by a whole round, 1 to 60."""
        return min(60, max(1, math.ceil(self._mean_s * (self.queued + 1) / self.max_in_flight)))


class Bucket:
    """So much a minute, of which a minute's worth may be taken at once."""

    def __init__(self, per_minute: float) -> None:
        self.per_minute = per_minute
        self._level, self._then = max(per_minute, 1.0), time.monotonic()

    def take(self, amount: float) -> float:
        """Take an amount, at most all; returns 0, or the seconds after which it will be there: then nothing
        was taken.
        """
        now, full = time.monotonic(), max(self.per_minute, 1.0)
        self._level = min(full, self._level + (now - self._then) * self.per_minute / 60)
        self._then = now
        amount = min(amount, full)
        if self._level < amount:
            return (amount - self._level) * 60 / self.per_minute
        self._level -= amount
        return 0.0

    def give(self, amount: float) -> None:
        """Give back what was taken and not used."""
        self._level += amount
