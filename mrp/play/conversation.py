"""A conversation: who is present, what was said, and the next reply of a character.

    chat = Conversation(player, ["wukong"], person="other")
    chat.say("Who are you?")
    for piece in chat.reply("wukong"): print(piece, end="")

The prompt of a reply comes from the same view and renderer as the training samples.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from mrp.cast import OTHER
from mrp.data.view import ASSISTANT, USER, Message, opening_text, view_for_reply
from mrp.dialogue import Scene, Turn
from mrp.play.engine import Sampling
from mrp.play.reply import NOT_TEXT, Player, Reply, names_of_others

PLAIN = "model"  # who answers where there is no cast: the model itself


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

        If the stream is closed before its end (Ctrl-C), what was shown so far becomes the line.
        """
        sampling = sampling or Sampling.of(self.player.options)
        others = names_of_others(self.player.cast, self.participants, character)
        reply = Reply(self.player, character, self.prompt(character), sampling, others)
        self.cut = False
        try:
            yield from reply
            self.cut = reply.cut
        finally:
            if reply.text:
                self.turns.append(Turn(character, reply.text))

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
