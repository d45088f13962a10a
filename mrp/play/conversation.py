"""A conversation: who is present, what was said, and the next reply of a character.

    chat = Conversation(player, ["wukong"], person="other")
    chat.say("Who are you?")
    for piece in chat.reply("wukong"): print(piece, end="")

The prompt of a reply comes from the same view and renderer as the training samples. A `recall` adds lore, and a memory
of what no longer fits (`recall.py`); without one a prompt holds what was said, as much of it as fits.
"""

from __future__ import annotations

import bisect
from collections.abc import Generator, Sequence

from mrp.cast import NEUTRAL_NAME, OTHER, PLAIN, fill_user
from mrp.data.view import ASSISTANT, SYSTEM, USER, Message, opening_text, view_for_reply
from mrp.dialogue import Scene, Turn
from mrp.errors import InputError
from mrp.play.engine import Sampling
from mrp.play.lore import Used
from mrp.play.memory import Memory
from mrp.play.recall import Recall
from mrp.play.reply import NOT_TEXT, Player, Prompt, Reply, names_of_others
from mrp.play.spoken import names_of_all_but, need_length, spoken


class Conversation:
    """A scene in the making. `scenario` "": the one of the first character's card, else the cast's."""

    def __init__(
        self,
        player: Player,
        characters: Sequence[str],
        person: str = OTHER,
        scenario: str = "",
        recall: Recall | None = None,
    ) -> None:
        self.player, self.person = player, person
        self.recall = recall or Recall(memory_tokens=None)
        self.participants = [*characters, person]
        self.scenario = scenario or self._scenario_of(characters)
        self.turns: list[Turn] = []
        self.dropped = 0  # old messages that the last prompt had no room for
        self.cut = False  # whether the last reply ended because it was too long

    def join(self, speaker: str) -> None:
        """Count somebody as present from the start, so that the lines before carry names for them too."""
        if speaker not in self.participants:
            self.participants.insert(-1, speaker)

    def say(self, text: str, speaker: str | None = None) -> None:
        """A line of the person (or of `speaker`); of the person it opens nobody else's turn (`spoken.py`).

        Raises `InputError` for a message that no context could hold.
        """
        who = speaker or self.person
        need_length(text, self.player.options.context_tokens)
        names = names_of_all_but(self.player.cast, self.participants, who) if who == self.person else ()
        self.turns.append(Turn(who, spoken(text, names)))

    def reply(self, character: str, sampling: Sampling | None = None) -> Generator[str, None, None]:
        """The character's next line, piece by piece; it is part of the conversation when the stream ends.

        If the stream ends early (it is closed, or the engine fails), what was shown so far becomes the line.
        """
        sampling = sampling or Sampling.of(self.player.options)
        others = names_of_others(self.player.cast, self.participants, character)
        prompt = self.asked(character)
        used = self.recall.used
        reply = Reply(self.player, character, prompt.ids, sampling, others, prompt.messages)
        self.cut = False
        try:
            yield from reply
            self.cut = reply.cut
        finally:
            if reply.text:
                self.turns.append(Turn(character, reply.text))
                self.recall.follow(self.turns)
                self.recall.told(character, used, len(self.turns))

    def prompt(self, character: str) -> list[int]:
        """The ids that ask for the character's next line: those of `asked`."""
        return self.asked(character).ids

    def asked(self, character: str) -> Prompt:
        """What asks for the character's next line, within the context; counts what it dropped.

        With a memory, what no longer fits may first be summed up. Persona, memory, lore and the last message are never
        dropped: `InputError` says what to cut where they do not fit.
        """
        cast = self.player.cast
        opening = opening_text(cast, self.scenario, character) if cast else ""

        def view(since: int) -> list[Message]:
            return self.messages(character, since)

        self.recall.follow(self.turns)
        prompt = self.recall.prompt(self.player, character, view, len(self.turns), opening, self._keep)
        self.dropped = prompt.dropped
        return prompt

    def lore(self, character: str) -> list[Used]:
        """The lore that the character's next prompt would hold after what was said so far."""
        self.recall.follow(self.turns)
        return self.recall.active(self.player, character, self.messages(character))

    def memory(self, character: str) -> Memory:
        """What the character remembers of what its prompt no longer shows."""
        self.recall.follow(self.turns)
        return self.recall.memory(character)

    def memories(self) -> dict[str, list[Memory]]:
        """Of each character, the newest last."""
        self.recall.follow(self.turns)
        return self.recall.memories

    def remember(self, character: str, summary: str) -> None:
        """A person's words for it; raises `InputError` while the character still sees everything."""
        memory = self.memory(character)
        if not memory.dropped:
            who = self.player.cast.display_name(character) if self.player.cast else "the model"
            raise InputError(f"{who} still sees everything it heard", "/memory", "wait until old lines are dropped")
        clean = " ".join(NOT_TEXT.sub("", summary).split())
        self.recall.remember(character, Memory(clean, memory.dropped, memory.turns))

    def _keep(self, character: str, summary: str, dropped: int) -> None:
        """Remember it, and of how many turns these messages are made: if one of them is taken back, it is gone."""

        def said(count: int) -> int:
            found = self.messages(character, until=count)
            return len(found) - (1 if found and found[0].role == SYSTEM else 0)

        turns = bisect.bisect_right(range(len(self.turns) + 1), dropped, key=said) - 1
        self.recall.remember(character, Memory(summary, dropped, turns))

    def messages(self, character: str, since: int = 0, until: int | None = None) -> list[Message]:
        """What was said, from the character's side; nothing of the turns before `since`, or from `until` on.

        Without a cast the person is the user and all others the model.
        """
        turns = self.turns[:until]
        if self.player.cast is None:
            said = [t for t in turns[since:] if t.is_line]
            return [Message(USER if t.speaker == self.person else ASSISTANT, t.text) for t in said]
        return view_for_reply(turns, self.participants, character, self.player.cast, self.scenario, since)

    def take_back(self, speaker: str) -> bool:
        """Remove the last line if it is `speaker`'s; True if it was."""
        if self.turns and self.turns[-1].speaker == speaker:
            self.turns.pop()
            return True
        return False

    def last_said(self, speaker: str) -> int | None:
        """The place of the speaker's last line among the turns, None if there is none."""
        places = [k for k, turn in enumerate(self.turns) if turn.speaker == speaker and turn.text]
        return places[-1] if places else None

    def scene(self, scene_id: str) -> Scene:
        """The conversation so far as a scene (the form that `mrp data build` reads)."""
        return Scene(scene_id, tuple(self.participants), tuple(self.turns), self.scenario)

    def _scenario_of(self, characters: Sequence[str]) -> str:
        cast = self.player.cast
        if cast is None or not characters or characters[0] == PLAIN:
            return ""
        return fill_user(cast[characters[0]].scenario, NEUTRAL_NAME[cast.language]).strip()
