"""Several servers that hold the same model, as one engine.

    engine = FailoverEngine([OpenAIEngine("http://a:8000/v1"), OpenAIEngine("http://b:8000/v1")])

Each reply goes to the server with the fewest replies under way. One that fails is left aside for a while, and a reply
of which nothing was given out yet goes to the next. A reply that broke off in its middle is not begun again: the reader
gets the error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

from mrp.play.engine import Request, Token
from mrp.play.remote import OpenAIEngine, RemoteStream
from mrp.play.wire import RemoteError

ASIDE_S = 15.0  # that a server which failed is not asked, while there are others
MEANT_FOR_US = (400, 401, 403, 404, 413, 422)  # another server would answer the same

T = TypeVar("T")


class FailoverEngine:
    """`aside_s`: how long a server that failed is left aside."""

    def __init__(self, engines: Sequence[OpenAIEngine], aside_s: float = ASIDE_S) -> None:
        self.engines, self.aside_s = list(engines), aside_s
        self._running = dict.fromkeys(range(len(self.engines)), 0)
        self._aside = dict.fromkeys(range(len(self.engines)), 0.0)  # until when
        self._lock = threading.Lock()

    def stream(self, request: Request) -> FailoverStream:
        """The tokens of a reply. Its `cancel` may be called from any thread."""
        return FailoverStream(self, request)

    def score(
        self, ids: Sequence[int], continuations: Sequence[Sequence[int]], voice: str | None = None
    ) -> list[list[float]]:
        """As `Engine.score`, by the first server that can."""
        return self._with_one(lambda engine: engine.score(ids, continuations, voice))

    def check(self) -> None:
        """Raise `RemoteError` unless one of the servers answers now; those that do are asked again."""
        errors = []
        for number, engine in enumerate(self.engines):
            try:
                engine.check()
                self._aside[number] = 0.0
            except RemoteError as error:
                self.leave_aside(number)
                errors.append(error)
        if len(errors) == len(self.engines):
            raise errors[0]

    def close(self) -> None:
        for engine in self.engines:
            engine.close()

    # -- which one -----------------------------------------------------------------------------------------------------

    def take(self, tried: set[int]) -> int | None:
        """The server for the next reply: of those not tried, not aside, the least busy; one aside where no other is."""
        with self._lock:
            left = [k for k in range(len(self.engines)) if k not in tried]
            if not left:
                return None
            now = time.monotonic()
            chosen = min(left, key=lambda k: (max(self._aside[k] - now, 0.0), self._running[k], k))
            self._running[chosen] += 1
            return chosen

    def give_back(self, number: int) -> None:
        with self._lock:
            self._running[number] -= 1

    def leave_aside(self, number: int) -> None:
        with self._lock:
            self._aside[number] = time.monotonic() + self.aside_s

    def _with_one(self, ask: Callable[[OpenAIEngine], T]) -> T:
        tried: set[int] = set()
        failure: RemoteError | None = None
        while (number := self.take(tried)) is not None:
            tried.add(number)
            try:
                return ask(self.engines[number])
            except RemoteError as error:
                if error.status in MEANT_FOR_US:
                    raise
                self.leave_aside(number)
                failure = error
            finally:
                self.give_back(number)
        assert failure is not None
        raise failure


class FailoverStream:
    """The tokens of one reply, from the first server that gives one."""

    def __init__(self, engine: FailoverEngine, request: Request) -> None:
        self._engine, self._request = engine, request
        self._stream: RemoteStream | None = None
        self._cancelled = False
        self._tokens = self._read()

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        return next(self._tokens)

    def close(self) -> None:
        self._tokens.close()

    def cancel(self) -> None:
        self._cancelled = True
        if self._stream:
            self._stream.cancel()

    def _read(self) -> Generator[Token, None, None]:
        tried: set[int] = set()
        failure: RemoteError | None = None
        while (number := self._engine.take(tried)) is not None:
            tried.add(number)
            given = 0
            self._stream = stream = self._engine.engines[number].stream(self._request)
            if self._cancelled:
                stream.cancel()
            try:
                for token in stream:
                    given += 1
                    yield token
                return
            except RemoteError as error:
                if self._cancelled or error.status in MEANT_FOR_US:
                    raise
                self._engine.leave_aside(number)
                if given:
                    raise
                failure = error
            finally:
                stream.close()
                self._engine.give_back(number)
        assert failure is not None
        raise failure
