"""How much a replica takes on: a bounded number of questions at once, a bounded queue, and a bound on a body's size."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator

from stasc_ray.serving.errors import ApiError


class Admission:
    """Lets `max_in_flight` in, lets `max_queue` wait in the order they came, and turns the rest away."""

    def __init__(self, max_in_flight: int, max_queue: int) -> None:
        self.max_in_flight, self.max_queue = max_in_flight, max_queue
        self.in_flight = 0
        self.queued = 0
        self._places = asyncio.Semaphore(max_in_flight)
        self._mean_s = 1.0

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it for the length of the block.

        Raises:
            ApiError: 429 with Retry-After, since the queue is full.
        """
        if self._places.locked() and self.queued >= self.max_queue:
            raise ApiError(
                429,
                "rate_limit_error",
                f"busy: {self.in_flight} questions in flight and {self.queued} waiting (serve.max_in_flight, serve.max_queue)",
                headers={"Retry-After": str(self.retry_after_s())},
            )
        self.queued += 1
        try:
            await self._places.acquire()
        finally:
            self.queued -= 1
        self.in_flight += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self._mean_s += 0.1 * (time.monotonic() - started - self._mean_s)
            self.in_flight -= 1
            self._places.release()

    def retry_after_s(self) -> int:
        """Seconds in which the queue is likely to have moved by a whole round, 1 to 60."""
        return min(60, max(1, math.ceil(self._mean_s * (self.queued + 1) / self.max_in_flight)))
