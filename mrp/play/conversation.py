"""A conversation: who is present, what was said, and the next reply of a character.

    chat = Conversation(player, ["wukong"], person="other")
    chat.say("Who are you?")
    for piece in chat.reply("wukong"): print(piece, end="")

The prompt of a reply comes from the same view and renderer as the training samples. `extra` is the one place where
more (lore, memory) enters a prompt: last, behind what was said, so that all before it is the same in the next prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from mrp.cast import NEUTRAL_NAME, OTHER, PLAIN, fill_user
from mrp.data.view import ASSISTANT, SYSTEM, USER, Message, opening_text, view_for_reply
from mrp.dialogue import Scene, Turn
from mrp.errors import InputError
from mrp.play.engine import Sampling
from mrp.play.reply import Player, Reply, names_of_others
from mrp.play.spoken import names_of_all_but, spoken

MAX_CHARACTERS_PER_TOKEN = 32  # a message longer than that for each token of the context is refused unread

Extra = Callable[[str, Sequence[Turn]], str]
"""What a character (its id) is told beside what was said (the turns): a text, "" for nothing."""


class Conversation:
    """A scene in the making. `scenario` "": the one of the first character's card, else the cast's."""

    def __init__(
        self,
        player: Player,
        characters: Sequence[str],
        person: str = OTHER,
        scenario: str = "",
        extra: Extra | None = None,
    ) -> None:
        self.player, self.person, self.extra = player, person, extra
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
        longest = self.player.options.context_tokens * MAX_CHARACTERS_PER_TOKEN
        if len(text) > longest:
            what = f"a message of {len(text):,} characters is too long: {longest:,} are allowed"
            raise InputError(what, "the message", "say less at once")
        names = names_of_all_but(self.player.cast, self.participants, who) if who == self.person else ()
        self.turns.append(Turn(who, spoken(text, names)))

    def reply(self, character: str, sampling: Sampling | None = None) -> Generator[str, None, None]:
        """The character's next line, piece by piece; it is part of the conversation when the stream ends.

        If the stream ends early (it is closed, or the engine fails), what was shown so far becomes the line.
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
        """The ids that ask for the character's next line, within the context; counts what it dropped.

        Persona, extra and the last message are never dropped: `InputError` says what to cut where they do not fit.
        """
        options, cast = self.player.options, self.player.cast
        budget = options.context_tokens - options.max_new_tokens
        opening = opening_text(cast, self.scenario, character) if cast else ""
        extra = self.told(character)
        messages = with_extra(self.messages(character), extra, opening)
        try:
            ids, self.dropped = self.player.template.prompt_within(messages, budget, opening)
        except InputError as error:
            raise self._too_small(messages, extra, budget, error) from None
        return ids

    def told(self, character: str) -> str:
        """The extra text that the character's next prompt holds."""
        return self.extra(character, self.turns).strip() if self.extra else ""

    def messages(self, character: str) -> list[Message]:
        """What was said, from the character's side; without a cast the person is the user and all others the model."""
        if self.player.cast is None:
            return [Message(USER if t.speaker == self.person else ASSISTANT, t.text) for t in self.turns]
        return view_for_reply(self.turns, self.participants, character, self.player.cast, self.scenario)

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

    def _too_small(self, messages: Sequence[Message], extra: str, budget: int, error: InputError) -> InputError:
        """Which of the parts that are never dropped take how much, and which to cut first."""
        last = messages[-1] if messages and messages[-1].role == USER else Message(USER, "")
        texts = {
            "the persona": messages[0].text if messages and messages[0].role == SYSTEM else "",
            "the lore": extra,
            "the last message": last.text.removesuffix(f"[{extra}]"),
        }
        counts = {what: len(self.player.template.plain.ids(text)) for what, text in texts.items() if text.strip()}
        if not counts:
            return error
        parts = ", ".join(f"{what} {count:,}" for what, count in counts.items())
        needed = f"{parts}: {sum(counts.values()):,} tokens and the template's, and only {budget:,} are allowed"
        fix = f"cut {max(counts, key=counts.__getitem__)}; or raise chat.context_tokens, or lower chat.max_new_tokens"
        return InputError(f"the context is too small for what they need: {needed}", error.where, fix)


def with_extra(messages: Sequence[Message], extra: str, opening: str = "") -> list[Message]:
    """`messages` with `extra` in brackets behind the last one, as a note in what the user says.

    Where nothing was said it stands behind `opening`. Where the character goes on with its own line there is no place
    for it: the note is left out.
    """
    if not extra or (messages and messages[-1].role == ASSISTANT):
        return list(messages)
    head, last = list(messages), Message(USER, opening)
    if head and head[-1].role == USER:
        last = head.pop()
    return [*head, Message(USER, f"{last.text}\n\n[{extra}]".strip())]
