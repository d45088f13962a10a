"""The speaker guard (law 10): a reply ends where it would begin another speaker's line.

guard = SpeakerGuard(["Zhu Bajie", "bajie"])
guard.add("Ha!\\nZhu Ba")   # "Ha!"       what could become a name is held back
guard.add("jie: Oof")       # ""          and here the reply is over: guard.stopped is True

A name may stand in stars, quotes or brackets ("*Tang*:", "[Tang]:"); "[Tang]" and "【Tang】" need no colon. Within a
line a name ends nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

BREAKS = "\n\u2028\u2029"
# What may stand around a name: blanks that show or not (no break of a line), stars, quotes, brackets, a bullet.
_AROUND = " \t\u00a0\u3000\u200b\u200c\u200d\u200e\u200f\u2060\ufeff*_>#-\"'“”‘’「」『』[]()（）【】"
RULES = 2  # raised when other text is passed on: replies that were kept under earlier rules are then made anew
COLONS = ":：﹕︰∶"


class SpeakerGuard:
    """Passes text on, and stops at a line that begins as another speaker's: a name and a colon, or a name in [ ]."""

    def __init__(self, others: Iterable[str]) -> None:
        names = sorted({n for n in others if n.strip()}, key=len, reverse=True)
        either = "|".join(re.escape(n) for n in names)
        around = f"[{re.escape(_AROUND)}]*"
        line = rf"(?:\A|[{BREAKS}]){around}(?:(?:{either}){around}[{COLONS}]|(?<=[\[【])(?:{either})[\]】])"
        self._begins = re.compile(line, re.IGNORECASE) if names else None
        self._names = [n.strip(_AROUND).casefold() for n in names]
        self._text = ""
        self._line = 0  # where its last line starts, with the break before it: all before is decided
        self._given = 0
        self.stopped = False

    def add(self, text: str) -> str:
        """What of the text so far can be shown now."""
        if self.stopped:
            return ""
        self._text += text
        found = self._begins.search(self._text, self._line) if self._begins else None
        if found:
            self.stopped = True
            return self._give(found.start())
        return self._give(len(self._text) - self._held())

    def end(self) -> str:
        """The rest, when nothing more comes."""
        return "" if self.stopped else self._give(len(self._text))

    def _held(self) -> int:
        """How many last characters could still become a name at the start of a line."""
        self._line = max(self._line, *(self._text.rfind(mark, self._line) for mark in BREAKS))
        begun = self._text[self._line :].lstrip(BREAKS).strip(_AROUND).casefold()
        return len(self._text) - self._line if any(name.startswith(begun) for name in self._names) else 0

    def _give(self, end: int) -> str:
        end = max(end, self._given)
        new, self._given = self._text[self._given : end], end
        return new
