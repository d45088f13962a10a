"""The pieces of a reply for asyncio, read in a thread so that the event loop goes on.

async for piece in in_thread(chat.reply("wukong")): print(piece, end="")
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Generator


async def in_thread(pieces: Generator[str, None, None]) -> AsyncIterator[str]:
    """The pieces as they come. A task that is cancelled closes `pieces`, which stops the engine at its next token."""
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, pieces, None))
            try:
                piece = await asyncio.shield(step)
            except asyncio.CancelledError:
                with contextlib.suppress(Exception):
                    await step  # a generator cannot be closed while it runs
                raise
            if piece is None:
                return
            yield piece
    finally:
        pieces.close()
