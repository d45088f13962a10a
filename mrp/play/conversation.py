"""A conversation: who is present, what was said, and the next reply of a character.

    chat = Conversation(player, ["wukong"], person="other")
    chat.say("Who are you?")
    for piece in chat.reply("wukong"): print(piece, end="")

The prompt of a reply comes from the same view and renderer as the training samples.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mrp.cast import OTHER, Cast
from mrp.config import ChatOptions
from mrp.data.view import ASSISTANT, USER, Message, opening_text, view_for_reply
from mrp.dialogue import Scene, Turn
from mrp.play.engine import Engine, Request, Sampling, TextStream
from mrp.play.guard import SpeakerGuard
from mrp.render import ChatTemplate

PLAIN = "model"  # who answers where there is no cast: the model itself
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


class Conversation:
    """A scene in the making."""

    def __init__(self, player: Player, characters: Sequence[str], person: str = OTHER) -> None:
        self.player, self.person = player, person
        self.participants = [*characters, person]
        self.turns: list[Turn] = []
        self.dropped = 0  # old messages that the last prompt had no room for
        self.cut = False  # whether the last reply ended because it was too long

    def join(self, speaker: str) -> None:
        """Count somebody as present from the start, so that the lines before carry names for them too."""
        if speaker not in self.participants:
            self.participants.insert(-1, speaker)

    def say(self, text: str, speaker: str | None = None) -> None:
        """A line of the person (or of `speaker`)."""
        self.turns.append(Turn(speaker or self.person, NOT_TEXT.sub("", text).strip()))

    def reply(self, character: str, sampling: Sampling | None = None) -> Generator[str, None, None]:
        """The character's next line, piece by piece; it is part of the conversation when the stream ends.

        If the stream is closed before its end (Ctrl-C), what was shown so far becomes the line. Outer blanks are
        never given out.
        """
        ids = self.prompt(character)
        sampling = sampling or Sampling.of(self.player.options)
        said = blanks = ""
        try:
            for piece in self._pieces(character, ids, sampling):
                text = blanks + NOT_TEXT.sub("", piece)
                text = text if said else text.lstrip()
                blanks = text[len(text.rstrip()) :]
                if shown := text.rstrip():
                    said += shown
                    yield shown
        finally:
            if said:
                self.turns.append(Turn(character, said))

    def _pieces(self, character: str, ids: list[int], sampling: Sampling) -> Iterator[str]:
        """What the engine answers, as text, up to where another speaker's line would begin."""
        stream, guard = TextStream(self.player.tokenizer), SpeakerGuard(self._names_of_others(character))
        self.cut = False
        request = Request(ids, sampling, self.player.stop_ids, character)
        for count, token in enumerate(self.player.engine.stream(request), 1):
            yield guard.add(stream.add(token))
            if guard.stopped:
                return
            self.cut = count == sampling.max_new_tokens
        yield guard.add(stream.end()) + guard.end()
        self.cut = self.cut and not guard.stopped

    def prompt(self, character: str) -> list[int]:
        """The ids that ask for the character's next line, within the context; counts what it dropped."""
        options = self.player.options
        budget = options.context_tokens - options.max_new_tokens
        cast = self.player.cast
        if cast is None:
            messages = [Message(USER if t.speaker == self.person else ASSISTANT, t.text) for t in self.turns]
            opening = ""
        else:
            messages = view_for_reply(self.turns, self.participants, character, cast)
            opening = opening_text(cast)
        ids, self.dropped = self.player.template.prompt_within(messages, budget, opening)
        return ids

    def take_back(self, speaker: str) -> bool:
        """Remove the last line if it is `speaker`'s; True if it was."""
        if self.turns and self.turns[-1].speaker == speaker:
            self.turns.pop()
            return True
        return False

    def scene(self, scene_id: str) -> Scene:
        """The conversation so far as a scene (the form that `mrp data build` reads)."""
        return Scene(scene_id, tuple(self.participants), tuple(self.turns))

    def _names_of_others(self, character: str) -> list[str]:
        cast = self.player.cast
        if cast is None:
            return []
        names = [name for c in cast if c.id != character for name in (c.name, c.id)]
        others = [cast.display_name(s) for s in self.participants if s != character]
        return [*names, *others]
