"""What a character's prompt holds beside what was said: lore that the last lines bring up, and a memory of old ones.

    recall = Recall(cast, lore_tokens=256, memory_tokens=128)
    prompt = recall.prompt(player, "wukong", view, len(turns), opening, keep)   # may first sum up what no longer fits
    recall.told("wukong", recall.used, len(turns))                              # once the reply was given

Chats (`conversation.py`) and scenes (`scene.py`) both come here, so what a prompt holds is decided once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from mrp.cast import Cast
from mrp.data.view import ASSISTANT, SYSTEM, Message
from mrp.dialogue import Turn
from mrp.play.lore import LORE_TOKENS, Lore, Used
from mrp.play.memory import (
    MEMORY_TOKENS,
    ContextTooSmall,
    Memory,
    fit,
    newest,
    of_first_turns,
    summarise,
    without_first_lines,
)
from mrp.play.reply import Player, Prompt

Keep = Callable[[str, str, int], None]
"""Takes a character, the new summary, and how many of its messages are no longer shown; ends in `remember`."""


class Recall:
    """The lore and the memories of everybody in one chat or scene; without a cast there is no lore.

    `memory_tokens` 0: what no longer fits goes in large blocks, and no summary is made of it; None: nothing is kept
    from one prompt to the next, and only as much goes as must (for callers who give the whole history each time).
    """

    def __init__(
        self,
        cast: Cast | None = None,
        lore_tokens: int = LORE_TOKENS,
        memory_tokens: int | None = MEMORY_TOKENS,
        seed: int | None = None,
    ) -> None:
        self.cast, self.lore_tokens, self.memory_tokens, self.seed = cast, lore_tokens, memory_tokens, seed
        self.memories: dict[str, list[Memory]] = {}  # of each character, the newest last
        self.used: list[Used] = []  # the lore in the last prompt
        self.fault = ""  # why the last summary is the one before
        self._lore: dict[str, Lore] = {}
        self._told: list[tuple[int, str, dict[str, str]]] = []  # turns there were then, character, entries and why
        self._turns: list[Turn] = []

    def prompt(
        self, player: Player, character: str, view: Callable[[int], list[Message]], turns: int, opening: str, keep: Keep
    ) -> Prompt:
        """What asks for the character's next line. What no longer fits is first summed up, and goes to `keep`.

        `view(k)`: what was said, from the character's side, without the first k of all `turns`. Raises `InputError`,
        with what to cut, where persona, memory, lore and the last turn do not fit.
        """
        messages = view(0)
        self.used = self.active(player, character, messages)
        known = self.lore(character).note(self.used)
        room = player.options.context_tokens - player.options.max_new_tokens

        def asked(shown: Sequence[Message], memory: Memory) -> Prompt:
            if self.memory_tokens is None:
                return newest(player, shown, room, known, opening)
            return fit(player, shown, memory, room, known, opening)

        try:
            while (prompt := asked(messages, self.memory(character))).dropped > self.memory(character).dropped:
                if self.memory_tokens is None:
                    return prompt
                self._fold(player, character, messages, prompt.dropped, keep)
            return prompt
        except ContextTooSmall:
            if not messages or messages[-1].role == ASSISTANT:
                raise

        def newest_turns() -> Prompt:
            memory = Memory(self.memory(character).summary)
            return without_first_lines(view, turns, lambda shown: asked(shown, memory))

        before = len(messages) - _head(messages) - 1
        prompt = newest_turns()
        if self.memory_tokens is not None and before > self.memory(character).dropped:
            self._fold(player, character, messages, before, keep)
            prompt = newest_turns()
        return replace(prompt, dropped=prompt.dropped + before)

    def need_room(self, player: Player, character: str, messages: Sequence[Message], opening: str) -> None:
        """Raises `ContextTooSmall` where the last of `messages` would leave no room for the character's notes."""
        room = player.options.context_tokens - player.options.max_new_tokens
        notes = min(self.memory_tokens or 0, room // 4)
        if self.lore(character).entries:
            notes += self.lore_budget(player)
        newest(player, messages, room - notes, opening=opening)

    def _fold(self, player: Player, character: str, messages: Sequence[Message], dropped: int, keep: Keep) -> None:
        """Sum up what of the first `dropped` messages is not in the memory yet."""
        memory, head = self.memory(character), _head(messages)
        folded, summary = messages[head + memory.dropped : head + dropped], memory.summary
        room = player.options.context_tokens - player.options.max_new_tokens
        if budget := min(self.memory_tokens or 0, room // 4):
            name = self.cast.display_name(character) if self.cast else character
            summary, self.fault = summarise(player, summary, folded, name, budget)
        keep(character, summary, dropped)

    # -- lore -----------------------------------------------------------------------------------------------------

    def active(self, player: Player, character: str, messages: Sequence[Message]) -> list[Used]:
        """The entries that the character's next prompt holds after `messages`, and why each."""
        ids = player.template.plain.ids
        lines = [line for message in messages[_head(messages) :] for line in message.text.split("\n")]
        return self.lore(character).choose(lines, lambda text: len(ids(text)), self.lore_budget(player), self.seed)

    def lore_budget(self, player: Player) -> int:
        """The most tokens of lore in a prompt: never over a quarter of it."""
        return min(self.lore_tokens, (player.options.context_tokens - player.options.max_new_tokens) // 4)

    def lore(self, character: str) -> Lore:
        """The character's entries; nobody but the characters of the cast has any."""
        if character not in self._lore:
            known = self.cast is not None and self.cast.get(character) is not None
            self._lore[character] = Lore.of(self.cast, character) if self.cast and known else Lore(character, "en", [])
        return self._lore[character]

    def told(self, character: str, used: Mapping[str, str] | Sequence[Used], turns: int = 0) -> None:
        """A reply was given with these entries (or their places and why), after which there were so many turns."""
        why = dict(used) if isinstance(used, Mapping) else {u.place: u.why for u in used}
        self._told.append((turns, character, why))
        self.lore(character).told(why)

    # -- memory ---------------------------------------------------------------------------------------------------

    def memory(self, character: str) -> Memory:
        """What the character remembers of what its prompt no longer shows."""
        found = self.memories.get(character)
        return found[-1] if found else Memory()

    def remember(self, character: str, memory: Memory) -> None:
        self.memories.setdefault(character, []).append(memory)

    def follow(self, turns: Sequence[Turn]) -> None:
        """Let go of what came of turns that were taken back since the last call."""
        pairs = zip(self._turns, turns, strict=False)
        same = next((k for k, (old, new) in enumerate(pairs) if old != new), min(len(self._turns), len(turns)))
        if same < len(self._turns):
            self.memories = of_first_turns(self.memories, same)
            told, self._told, self._lore = self._told, [], {}
            for at, character, why in told:
                if at <= same:
                    self.told(character, why, at)
        self._turns = list(turns)

    def restore(self, turns: Sequence[Turn], memories: Mapping[str, Sequence[Memory]]) -> None:
        """Begin anew after `turns`, with these memories of them. What is sticky in lore begins anew, too."""
        self._turns, self._told, self._lore = list(turns), [], {}
        self.memories = {who: list(known) for who, known in memories.items()}


def _head(messages: Sequence[Message]) -> int:
    return 1 if messages and messages[0].role == SYSTEM else 0
