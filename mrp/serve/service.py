"""What all endpoints share: the player, the places in its engine, the threads, the counters; and how a reply is run.

async with aclosing(service.run(lines, notes)) as pieces:
    async for number, piece in pieces: ...
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mrp.play.conversation import Conversation
from mrp.play.engine import Sampling
from mrp.play.lore import Used
from mrp.play.reply import Player, Prompt, names_of_others
from mrp.play.route import Router
from mrp.serve.bridge import bridged
from mrp.serve.errors import ApiError
from mrp.serve.gate import GateOptions
from mrp.serve.generate import Line, Piece
from mrp.serve.limits import Slots
from mrp.serve.metrics import Metrics
from mrp.serve.prompt import prompt_of

NOBODY = "none"  # in the counters, where a reply failed before it was decided who speaks


@dataclass(frozen=True)
class ServeOptions:
    """How much the server takes on, and for whom."""

    gate: GateOptions = field(default_factory=GateOptions)
    allow_system: bool = False  # a client's system message replaces the persona
    max_running: int = 4  # replies at once
    max_waiting: int = 64  # requests that wait for a place
    wait_s: float = 60.0  # for a place
    timeout_s: float = 600.0  # of a whole request
    write_s: float = 30.0  # for a client to take a piece of a stream


class Speaking(Protocol):
    """Replies in the making: work for a thread (`bridge.py`), and what is counted of it."""

    @property
    def character(self) -> str:
        """Who speaks; "" where that is not decided yet."""
        ...

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def reply_tokens(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[int, Piece | None]]: ...

    def cancel(self) -> None: ...


class Lines:
    """Replies to one request, one after another. Gives (number, piece), and (number, None) where one ends."""

    def __init__(
        self, lines: Sequence[Line], character: str, prompt: Prompt, sampling: Sampling, lore: Sequence[Used] = ()
    ) -> None:
        self.lines, self.character, self.prompt, self.sampling = lines, character, prompt, sampling
        self.lore = {used.place: used.why for used in lore}  # in the prompt
        self.prompt_tokens = len(prompt.ids)

    def __iter__(self) -> Iterator[tuple[int, Piece | None]]:
        for number, line in enumerate(self.lines):
            for piece in line:
                yield number, piece
            yield number, None

    def cancel(self) -> None:
        for line in self.lines:
            line.cancel()

    @property
    def reply_tokens(self) -> int:
        return sum(line.token_count for line in self.lines)


class Service:
    def __init__(self, player: Player, options: ServeOptions, router: Router | None = None) -> None:
        self.player, self.options = player, options
        self.router = router or (Router(player.cast) if player.cast else None)
        self.slots = Slots(options.max_running, options.max_waiting, options.wait_s)
        self.metrics = Metrics(self.slots, player.engine)
        self.pool = ThreadPoolExecutor(options.max_running, thread_name_prefix="reply")
        self.created = int(time.time())

    def lines(
        self,
        chat: Conversation,
        character: str,
        scenario: str,
        sampling: Sampling,
        stops: Sequence[str] = (),
        count: int = 1,
    ) -> Lines:
        """`count` replies of `character` to the conversation, not begun yet. Renders the prompt: for a thread."""
        self.check_length(sampling.max_new_tokens)
        most, replaces = sampling.max_new_tokens, self.options.allow_system
        prompt, lore = prompt_of(chat, character, scenario, most, replaces, sampling.seed)
        there = dict.fromkeys([*chat.participants, *(turn.speaker for turn in chat.turns)])
        others = names_of_others(self.player.cast, there, character)
        seeds = [None if sampling.seed is None else sampling.seed + k for k in range(count)]
        asked = [replace(sampling, seed=seed) for seed in seeds]
        made = [Line(self.player, character, prompt, each, others, stops) for each in asked]
        return Lines(made, character, prompt, sampling, lore)

    def check_length(self, max_tokens: int) -> None:
        """`ApiError` where the reply alone could fill the context."""
        context = self.player.options.context_tokens
        if max_tokens >= context:
            text = f"max_tokens is {max_tokens}, and the whole context is {context} tokens: ask for less"
            raise ApiError(400, text, "max_tokens", "context_length_exceeded")

    async def run(self, lines: Speaking, notes: dict[str, Any]) -> AsyncGenerator[tuple[int, Piece | None], None]:
        """The pieces of `lines`, when a place in the engine is free; counts and notes what came of it."""
        asked, first_s = time.monotonic(), None
        release = await self.slots.take()
        begun = time.monotonic()
        work = bridged(self.pool, lines, release, self.options.timeout_s)
        try:
            async with aclosing(work) as pieces:
                async for number, piece in pieces:
                    if first_s is None and piece is not None:
                        first_s = time.monotonic() - asked  # as a client sees it: the wait for a place is part of it
                        notes["first_s"] = round(first_s, 4)
                    yield number, piece
        except TimeoutError:
            self.metrics.failures.labels(lines.character or NOBODY, "timeout").inc()
            text = f"the reply took longer than {self.options.timeout_s:g} s"
            raise ApiError(504, text, code="timeout") from None
        except (GeneratorExit, asyncio.CancelledError):
            self.metrics.failures.labels(lines.character or NOBODY, "client_gone").inc()
            raise
        except Exception as error:
            self.metrics.failures.labels(lines.character or NOBODY, type(error).__name__).inc()
            notes["error"] = type(error).__name__
            raise
        finally:
            counts = {"prompt_tokens": lines.prompt_tokens, "reply_tokens": lines.reply_tokens}
            notes |= {"character": lines.character, **counts}
            if lines.character:
                seconds = time.monotonic() - begun
                self.metrics.reply(lines.character, **counts, first_s=first_s, seconds=seconds)

    def close(self) -> None:
        """End what still runs."""
        self.player.engine.close()
        self.pool.shutdown(wait=False, cancel_futures=True)


def user_hash(user: str) -> str:
    """What is logged of OpenAI's `user`: tells users apart, and does not tell who they are."""
    return hashlib.sha256(user.encode()).hexdigest()[:12]
