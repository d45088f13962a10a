"""One reply of a character, as text: what the engine answers, cleaned and guarded, piece by piece.

    reply = Reply(player, "wukong", ids, sampling, names_of_others)
    for piece in reply: print(piece, end="")
    reply.text, reply.cut

Every room that lets a character speak (chat, scene, server, evaluation) comes through here.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mrp.cast import Cast
from mrp.config import ChatOptions
from mrp.data.view import Message
from mrp.play.engine import Engine, Request, Sampling, TextStream, Token
from mrp.play.guard import SpeakerGuard
from mrp.render import ChatTemplate

# Not for a terminal, and not for a dialogue file: controls but tab and line feed, halves of surrogate pairs.
NOT_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Player:
    """All that is needed to play: an engine, the template of its tokenizer, and the cast (None: the plain model)."""

    engine: Engine
    template: ChatTemplate
    cast: Cast | None
    stop_ids: list[int]
    options: ChatOptions = field(default_factory=ChatOptions)

    @property
    def tokenizer(self) -> Any:
        return self.template.tokenizer


@dataclass(frozen=True)
class Prompt:
    """What asks for a reply: ids, and the same as messages, for a server that renders them itself."""

    ids: list[int]
    messages: list[Message]
    dropped: int  # old messages without room


class Reply:
    """A reply in the making: iterate to get its pieces. Outer blanks are never given out.

    If the stream is closed before its end (Ctrl-C), `text` is what was given out so far.
    """

    def __init__(
        self,
        player: Player,
        character: str,
        ids: Sequence[int],
        sampling: Sampling,
        others: Iterable[str] = (),
        messages: Sequence[Message] | None = None,
    ) -> None:
        self.player = player
        self.request = Request(ids, sampling, player.stop_ids, character, messages)
        self.text = ""
        self.tokens: list[Token] = []  # as the engine gave them, those behind a stop of the guard included
        self.cut = False  # whether it ended because it was too long
        self.guarded = False  # whether it ended where another speaker's line would begin (law 10)
        self._guard = SpeakerGuard(others)

    def __iter__(self) -> Generator[str, None, None]:
        blanks = ""
        for piece in self._pieces():
            text = blanks + piece
            text = text if self.text else text.lstrip()
            blanks = text[len(text.rstrip()) :]
            if shown := text.rstrip():
                self.text += shown
                yield shown

    def _pieces(self) -> Iterator[str]:
        """What the engine answers, as text, up to where another speaker's line would begin."""
        stream, guard = TextStream(self.player.tokenizer), self._guard
        for token in self.player.engine.stream(self.request):
            self.tokens.append(token)
            yield guard.add(NOT_TEXT.sub("", stream.add(token)))  # first, so that none hides a name
            if guard.stopped:
                self.guarded, self.cut = True, False
                return
            self.cut = len(self.tokens) == self.request.sampling.max_new_tokens
        yield guard.add(NOT_TEXT.sub("", stream.end())) + guard.end()
        self.guarded = guard.stopped
        self.cut = self.cut and not guard.stopped


def names_of_others(cast: Cast | None, participants: Iterable[str], character: str) -> list[str]:
    """Names at which a reply of `character` stops: of the rest of the cast, and of everybody else who is there.

    Aliases count as names do, but for those that the character bears itself: its own line is nobody else's.
    """
    if cast is None:
        return []
    names = [name for c in cast if c.id != character for name in c.names]
    names += [cast.display_name(s) for s in participants if s != character]
    me = cast.get(character)
    own = {name.casefold() for name in me.names} if me else {character.casefold()}
    return [name for name in dict.fromkeys(names) if name.casefold() not in own]
