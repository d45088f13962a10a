"""Answers that end with their client: nothing goes on for one who has left.

result = await while_there(request, work())
return EventStream(events, write_s=30)
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mrp.serve.errors import ApiError, as_api_error

LOG = logging.getLogger("mrp.serve")
T = TypeVar("T")
Events = AsyncGenerator[dict[str, Any] | str, None]


class ClientGone(ApiError):
    """The client closed the connection; nobody sees this answer."""

    def __init__(self) -> None:
        super().__init__(499, "the client closed the connection")


async def gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; where the client leaves first, it is cancelled and `ClientGone` raised."""
    doing, leaving = asyncio.create_task(work), asyncio.create_task(gone(request.receive))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientGone
        return doing.result()
    finally:
        doing.cancel()
        leaving.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


class EventStream(Response):
    """Server-sent events. A failure in the middle becomes an error event, after which nothing comes, not even the end
    mark: a client cannot take it for a whole reply."""

    media_type = "text/event-stream"

    def __init__(self, events: Events, write_s: float) -> None:
        super().__init__()
        self.events, self.write_s = events, write_s
        del self.headers["content-length"]
        self.headers["x-accel-buffering"] = "no"  # proxies should pass each piece on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        writing = asyncio.create_task(self._write(send))
        leaving = asyncio.create_task(gone(receive))
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            writing.cancel()
            leaving.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)
            await self.events.aclose()

    async def _write(self, send: Send) -> None:
        async def push(data: bytes, more: bool = True) -> None:
            async with asyncio.timeout(self.write_s):  # not `wait_for`, which can swallow a cancellation (Python 3.11)
                await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            async for event in self.events:
                await push(event_bytes(event))
        except asyncio.CancelledError:
            raise
        except TimeoutError:
            raise  # the client takes nothing any more: the connection is dropped
        except Exception as error:
            told = as_api_error(error)
            if told.status >= 500:
                LOG.error("a reply broke off: %s", told.message, exc_info=error if told.status == 500 else None)
            await push(event_bytes(told.body()))
        await push(b"", False)


def event_bytes(event: dict[str, Any] | str) -> bytes:
    """One event. A dictionary with a `type` (the Responses API) is named by it."""
    if isinstance(event, str):
        return f"data: {event}\n\n".encode()
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def begun(request: Request, events: Events) -> Events:
    """`events`, the first of which has come: what fails before it is an answer with its own status."""
    try:
        first = await while_there(request, anext(events))  # type: ignore[arg-type]
    except BaseException:
        await events.aclose()
        raise

    async def all_of_them() -> Events:
        try:
            yield first
            async for event in events:
                yield event
        finally:
            await events.aclose()

    return all_of_them()
