"""The speaker guard (law 10): a reply ends where it would begin another speaker's line.

guard = SpeakerGuard(["Zhu Bajie", "bajie"])
guard.add("Ha!\\nZhu Ba")   # "Ha!"       what could become a name is held back
guard.add("jie: Oof")       # ""          and here the reply is over: guard.stopped is True
"""

from __future__ import annotations

import re
from collections.abc import Iterable


class SpeakerGuard:
    """Passes text on, and stops at a line that begins with another speaker's name and a colon."""

    def __init__(self, others: Iterable[str]) -> None:
        names = sorted({n for n in others if n.strip()}, key=len, reverse=True)
        either = "|".join(re.escape(n) for n in names)
        self._begins = re.compile(rf"(?:\A|\n)[ \t*]*(?:{either})[ \t*]*[:：]", re.IGNORECASE) if names else None
        self._names = [n.casefold() for n in names]
        self._text = ""
        self._given = 0
        self.stopped = False

    def add(self, text: str) -> str:
        """What of the text so far can be shown now."""
        if self.stopped:
            return ""
        self._text += text
        found = self._begins.search(self._text) if self._begins else None
        if found:
            self.stopped = True
            return self._give(found.start())
        return self._give(len(self._text) - self._held())

    def end(self) -> str:
        """The rest, when nothing more comes."""
        return "" if self.stopped else self._give(len(self._text))

    def _held(self) -> int:
        """How many last characters could still become a name at the start of a line."""
        start = self._text.rfind("\n")
        line = self._text[start + 1 :]
        begun = line.strip(" \t*").casefold()
        if any(name.startswith(begun) for name in self._names):
            return len(self._text) - max(start, 0)
        return 0

    def _give(self, end: int) -> str:
        end = max(end, self._given)
        new, self._given = self._text[self._given : end], end
        return new
