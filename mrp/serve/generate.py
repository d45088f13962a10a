"""One reply for a client: the engine's stream, cleaned, guarded and cut at the client's stops, in pieces.

    line = Line(player, "wukong", prompt, sampling, others, stops=["\\n"])
    for piece in line: piece.text, piece.tokens
    line.finish_reason

It runs in a thread (`bridge.py`); `cancel` may be called from any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mrp.play.engine import Engine, Request, Sampling, TextStream, Token
from mrp.play.reply import Player, Prompt, Reply
from mrp.serve.stops import StopTexts


class CancelledError(Exception):
    """Nobody waits for the reply any more."""


@dataclass(frozen=True)
class Piece:
    """Text to show now, and the tokens since the last piece (those that begin in the text shown so far)."""

    text: str
    tokens: list[Token]


class Cancellable:
    """An engine for one reply, which can be told from any thread that nobody waits for it any more.

    A stream that has a `cancel` of its own is told at once, another one stops at its next token.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stream: Any = None
        self.cancelled = False

    def stream(self, request: Request) -> Iterator[Token]:
        if self.cancelled:
            raise CancelledError
        self._stream = stream = self._engine.stream(request)
        try:
            for token in stream:
                if self.cancelled:
                    raise CancelledError
                yield token
        finally:
            if close := getattr(stream, "close", None):
                close()

    def cancel(self) -> None:
        self.cancelled = True
        if cancel := getattr(self._stream, "cancel", None):
            cancel()

    def score(
        self, ids: Sequence[int], continuations: Sequence[Sequence[int]], voice: str | None = None
    ) -> list[list[float]]:
        return self._engine.score(ids, continuations, voice)

    def close(self) -> None:
        """The engine is not ours to close."""


class Line:
    """A reply in the making, for a client."""

    def __init__(
        self,
        player: Player,
        character: str,
        prompt: Prompt,
        sampling: Sampling,
        others: Iterable[str],
        stops: Sequence[str] = (),
    ) -> None:
        self._engine = Cancellable(player.engine)
        watched = replace(player, engine=self._engine)
        self._reply = Reply(watched, character, prompt.ids, sampling, others, prompt.messages)
        self._stops = StopTexts(stops)
        self._begins: list[int] = []  # of each token: where its text begins, leading blanks left out
        self._decoder = TextStream(player.tokenizer)
        self._decoded = ""
        self.text = ""
        self.tokens: list[Token] = []  # those that were given out

    def cancel(self) -> None:
        self._engine.cancel()

    def __iter__(self) -> Iterator[Piece]:
        pieces = iter(self._reply)
        try:
            for text in pieces:
                if shown := self._stops.add(text):
                    yield self._piece(shown)
                if self._stops.stopped:
                    return
            if shown := self._stops.end():
                yield self._piece(shown)
        finally:
            pieces.close()

    @property
    def finish_reason(self) -> Literal["stop", "length"]:
        return "length" if self._reply.cut and not self._stops.stopped else "stop"

    @property
    def guarded(self) -> bool:
        """Whether it ended where another speaker's line would begin."""
        return self._reply.guarded

    @property
    def token_count(self) -> int:
        """The tokens that the engine gave, those behind a stop included: they were computed."""
        return len(self._reply.tokens)

    def _piece(self, shown: str) -> Piece:
        self.text += shown
        for token in self._reply.tokens[len(self._begins) :]:
            self._begins.append(len(self._decoded.lstrip()))
            self._decoded += self._decoder.add(token)
        first = len(self.tokens)
        end = next((k for k in range(first, len(self._begins)) if self._begins[k] >= len(self.text)), len(self._begins))
        new = self._reply.tokens[first:end]
        self.tokens += new
        return Piece(shown, new)
