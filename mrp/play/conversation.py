"""A conversation: who is present, what was said, and the next reply of a character.

    chat = Conversation(player, ["wukong"], person="other")
    chat.say("Who are you?")
    for piece in chat.reply("wukong"): print(piece, end="")

The prompt of a reply comes from the same view and renderer as the training samples.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mrp.cast import OTHER, Cast
from mrp.config import ChatOptions
from mrp.data.view import Message, opening_text, view_for_reply
from mrp.dialogue import Scene, Turn
from mrp.play.engine import Engine, Sampling, TextStream
from mrp.play.guard import SpeakerGuard
from mrp.render import ChatTemplate

PLAIN = "model"  # who answers where there is no cast: the model itself


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

    def enter(self, speaker: str) -> None:
        """Somebody comes in (no effect if present already)."""
        if speaker not in self.present():
            self.turns.append(Turn(speaker, enters=True))

    def present(self) -> list[str]:
        return [*self.participants, *(t.speaker for t in self.turns if t.enters)]

    def say(self, text: str, speaker: str | None = None) -> None:
        """A line of the person (or of `speaker`)."""
        self.turns.append(Turn(speaker or self.person, text.strip()))

    def reply(self, character: str, sampling: Sampling | None = None) -> Generator[str, None, None]:
        """The character's next line, piece by piece; it is part of the conversation when the stream ends.

        If the stream is closed before its end (Ctrl-C), what was shown so far becomes the line.
        """
        ids = self.prompt(character)
        player, stream = self.player, TextStream(self.player.tokenizer)
        guard = SpeakerGuard(self._names_of_others(character))
        said = ""
        tokens = player.engine.stream(ids, sampling or Sampling.of(player.options), player.stop_ids)
        try:
            for token in tokens:
                piece = guard.add(stream.add(token))
                if not said:
                    piece = piece.lstrip()
                said += piece
                if piece:
                    yield piece
                if guard.stopped:
                    break
            else:
                piece = guard.add(stream.end()) + guard.end()
                said += piece
                if piece:
                    yield piece
        finally:
            if said.strip():
                self.turns.append(Turn(character, said.strip()))

    def prompt(self, character: str) -> list[int]:
        """The ids that ask for the character's next line, within the context; counts what it dropped."""
        options = self.player.options
        budget = options.context_tokens - options.max_new_tokens
        cast = self.player.cast
        if cast is None:
            messages, opening = [Message(_plain_role(t, self.person), t.text) for t in self.turns], ""
        else:
            messages = view_for_reply(self.turns, self.participants, character, cast)
            opening = opening_text(cast)
        ids, self.dropped = self.player.template.prompt_within(messages, budget, opening)
        return ids

    def take_back(self, speaker: str) -> bool:
        """Remove the last line if it is `speaker`'s; True if it was."""
        if self.turns and self.turns[-1].speaker == speaker and not self.turns[-1].enters:
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
        others = [cast.display_name(s) for s in self.present() if s != character]
        return [*names, *others]


def _plain_role(turn: Turn, person: str) -> Any:
    from mrp.data.view import ASSISTANT, USER

    return USER if turn.speaker == person else ASSISTANT
