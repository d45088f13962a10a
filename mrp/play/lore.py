"""Which lore enters a prompt: what the last lines bring up, within a budget of tokens.

    lore = Lore.of(cast, "wukong")
    used = lore.choose(lines, count=tokens_of, budget_tokens=256, seed=1)
    lore.note(used)                       # the text that `data/view.py` puts behind what was said
    lore.told(used)                       # once the reply was given: what is sticky, what rests

Order of precedence where the budget is short: constant entries, then by `order`, higher first. Not done: recursion
(entries bringing up entries), as one fact too many costs a small model more than one too few.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mrp.cast import NEUTRAL_NAME, Cast, fill_user
from mrp.lore import SCANNED, LoreEntry

LORE_TOKENS = 256  # for all entries of one prompt together
HEAD = {"en": "Known to {name}: ", "zh": "{name}所知："}
CONSTANT, STICKY = "always", "sticky"


class Used(NamedTuple):
    """An entry that entered a prompt."""

    place: str  # "wukong.lore[0]", or "cast.lore[2]"
    why: str  # the key that brought it up, "always" or "sticky"
    entry: LoreEntry


@dataclass
class Lore:
    """The lore of one character, and when which of it came up."""

    name: str
    language: str
    entries: list[tuple[str, LoreEntry]]
    replies: int = 0  # of the character so far
    came_up: dict[str, int] = field(default_factory=dict)  # by a key: at which reply, last
    left_out: list[str] = field(default_factory=list)  # by the last choice, for want of budget

    @classmethod
    def of(cls, cast: Cast, character: str) -> Lore:
        """The character's own entries, then those of the cast."""
        own = [(f"{character}.lore[{k}]", entry) for k, entry in enumerate(cast[character].lore)]
        shared = [(f"cast.lore[{k}]", entry) for k, entry in enumerate(cast.lore)]
        return cls(cast.display_name(character), cast.language, own + shared)

    def choose(
        self,
        lines: Sequence[str],
        count: Callable[[str], int],
        budget_tokens: int = LORE_TOKENS,
        seed: int | None = None,
    ) -> list[Used]:
        """The entries for the next reply, lower `order` first. `lines` are those that the character saw.

        `count` tells the tokens of a text. Equal seeds, equal lines, equal choice.
        """
        found = [used for place, entry in self.entries if (used := self._brought_up(place, entry, lines, seed))]
        found.sort(key=lambda used: (used.why != CONSTANT, -used.entry.order))
        taken: list[Used] = []
        self.left_out = []
        for used in found:
            if count(self.note([*taken, used])) <= budget_tokens:
                taken.append(used)
            else:
                self.left_out.append(used.place)
        return sorted(taken, key=lambda used: used.entry.order)

    def _brought_up(self, place: str, entry: LoreEntry, lines: Sequence[str], seed: int | None) -> Used | None:
        if entry.constant:
            return Used(place, CONSTANT, entry)
        since = self.replies - self.came_up[place] if place in self.came_up else None
        if since is not None and since <= entry.sticky:
            return Used(place, STICKY, entry)
        if since is not None and since <= entry.sticky + entry.cooldown:
            return None
        text = "\n".join(line[-SCANNED:] for line in lines[-entry.scan_depth :])
        key = entry.found_in(text)
        draw = random.Random(f"{seed}/{self.replies}/{place}").random() * 100
        return Used(place, key, entry) if key and draw < entry.probability else None

    def note(self, used: Sequence[Used]) -> str:
        """The entries as one text; "" where there are none."""
        if not used:
            return ""
        neutral = NEUTRAL_NAME["zh" if self.language == "zh" else "en"]
        return HEAD[self.language].format(name=self.name) + "\n".join(fill_user(u.entry.text, neutral) for u in used)

    def told(self, used: dict[str, str] | Sequence[Used]) -> None:
        """A reply was given with these entries (or, of a file: their places and why)."""
        why = used if isinstance(used, dict) else {u.place: u.why for u in used}
        for place, reason in why.items():
            if reason not in (CONSTANT, STICKY):
                self.came_up[place] = self.replies
        self.replies += 1
