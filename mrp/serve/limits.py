"""How much is done at once, and how much a client may ask: places in the engine, the queue before them, rates.

slots = Slots(max_running=4, max_waiting=64, wait_s=60)
release = await slots.take()       # ApiError 429 with Retry-After where the queue is full
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from mrp.serve.errors import ApiError

KNOWN_CLIENTS = 10_000  # whose rates are remembered


class Slots:
    """Places for replies, handed out in the order of asking. For one event loop."""

    def __init__(self, max_running: int, max_waiting: int, wait_s: float) -> None:
        self.max_running, self.max_waiting, self.wait_s = max_running, max_waiting, wait_s
        self.running = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._mean_s = 5.0  # how long a reply held its place, the last ones counting most

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def take(self) -> Callable[[], None]:
        """Wait for a place; returns what gives it back (once). Whoever stops waiting leaves the queue."""
        if self.running < self.max_running and not self._queue:
            self.running += 1
            return self._release()
        if self.waiting >= self.max_waiting:
            text = f"the server is busy: {self.running} replies run and {self.waiting} wait; try again later"
            raise ApiError(429, text, code="queue_full", retry_s=self.retry_s())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            async with asyncio.timeout(self.wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._next()  # the place came in the moment of leaving
            elif turn in self._queue:
                self._queue.remove(turn)
            if isinstance(error, TimeoutError):
                text = f"no place came free within {self.wait_s:g} s; try again later"
                raise ApiError(429, text, code="queue_timeout", retry_s=self.retry_s()) from None
            raise
        return self._release()

    def retry_s(self) -> int:
        """When a place should be free, for Retry-After."""
        return max(1, min(60, math.ceil(self._mean_s * (self.waiting + 1) / self.max_running)))

    def _release(self) -> Callable[[], None]:
        begun, over = time.monotonic(), False

        def release() -> None:
            nonlocal over
            if not over:
                over = True
                self._mean_s += 0.2 * (time.monotonic() - begun - self._mean_s)
                self._next()

        return release

    def _next(self) -> None:
        """Hand a place on to who waits longest, or keep it free."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1


class Rates:
    """A bucket of requests for each client: `per_minute` drip in, as many fit."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # of a client: requests, at what time

    def take(self, client: str) -> None:
        """Count a request; `ApiError` 429 where there were too many."""
        if not self.per_minute:
            return
        now = time.monotonic()
        left, then = self._left.pop(client, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - then) * self.per_minute / 60)
        self._left[client] = (max(left - 1, 0) if left >= 1 else left, now)
        if len(self._left) > KNOWN_CLIENTS:
            self._left.popitem(last=False)
        if left < 1:
            wait_s = math.ceil((1 - left) * 60 / self.per_minute)
            raise ApiError(429, f"more than {self.per_minute} requests a minute", code="rate_limit", retry_s=wait_s)
