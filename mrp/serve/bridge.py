"""From engine threads to the event loop: an iterator that blocks, as an asynchronous one.

    async with aclosing(bridged(pool, line, release, timeout_s=600)) as pieces:
        async for piece in pieces: ...

The thread goes on at the engine's pace, however slowly the client reads: a slow client holds no slot. When the reader
goes away, the work is cancelled; its slot is free when the thread has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol


class Work(Protocol):
    """What runs in a thread: an iterable that can be cancelled from outside."""

    def __iter__(self) -> Any: ...

    def cancel(self) -> None: ...


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


async def bridged(
    pool: ThreadPoolExecutor, work: Work, when_over: Callable[[], None], timeout_s: float
) -> AsyncGenerator[Any, None]:
    """What `work` gives, as it comes; `when_over` is called in the event loop when its thread has ended.

    Raises `TimeoutError` where the whole takes longer than `timeout_s`.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Any] = asyncio.Queue()

    def tell(item: Any) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, item)

    def run() -> None:
        try:
            for item in work:
                tell(item)
        except BaseException as error:
            tell(_End(error))
        else:
            tell(_End(None))

    future = loop.run_in_executor(pool, run)
    future.add_done_callback(lambda _: when_over())
    end = loop.time() + timeout_s
    try:
        while True:
            async with asyncio.timeout_at(end):  # not `wait_for`, which can swallow a cancellation (Python 3.11)
                item = await queue.get()
            if isinstance(item, _End):
                break
            if loop.time() > end:  # where the next item is always there already, nothing waits and nothing times out
                raise TimeoutError
            yield item
        if item.error is not None:
            raise item.error
    finally:
        work.cancel()
