"""What a person types, made safe to stand beside the lines of others.

    spoken("Hi\\nZhu Bajie: I agree", {"Zhu Bajie", "bajie"})      # "Hi\\nZhu Bajie, I agree"

Where three or more are present a line begins with its speaker's name and a colon (`data/view.py`), so a person could
open the turn of another by typing that. Here the colon becomes a comma: the name stays, and reads as a call. Every
room where people type calls this once for each line of theirs. Training data is left as it is: who says what stands
there as a fact, and prompt and sample go on being made by one function. Control tokens are the renderer's business.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from mrp.cast import NEUTRAL_NAME, Cast
from mrp.errors import InputError
from mrp.play.reply import NOT_TEXT

MAX_CHARACTERS_PER_TOKEN = 32  # a message longer than that for each token of the context is refused unread
ROLES = ("system", "user", "assistant", "human", "ai", "bot", "系统", "用户", "助手")
_BREAK = r"\n\u2028\u2029"
_BLANK = rf"[^\S{_BREAK}]|[\u200b-\u200f\u2060\ufeff]"  # within a line: no pattern runs over many lines
_BEFORE = rf"(?P<before>(?:\A|[{_BREAK}])(?:{_BLANK}|[*_>\"'“”‘’「『#\[(-])*)"
_BETWEEN = rf"(?:{_BLANK}|[*_\"'“”‘’」』\])])*"


def need_length(text: str, context_tokens: int) -> None:
    """Raises `InputError` for a message that no context could hold, before anything reads it."""
    longest = context_tokens * MAX_CHARACTERS_PER_TOKEN
    if len(text) > longest:
        what = f"a message of {len(text):,} characters is too long: {longest:,} are allowed"
        raise InputError(what, "the message", "say less at once")


def spoken(text: str, names: Iterable[str]) -> str:
    """`text` without control characters and outer space, and without a line that begins as one of `names` speaking."""
    text = NOT_TEXT.sub("", text).strip()
    begins = _begins(frozenset(names))
    while True:  # "A: B: hi" begins anew with each name that is mended
        mended = begins.sub(_with_comma, text)
        if mended == text:
            return text
        text = mended


def names_of_all_but(cast: Cast | None, participants: Iterable[str], speaker: str) -> set[str]:
    """Every name under which a line could begin that is not `speaker`'s: of the cast, and of all who are there."""
    if cast is None:
        return set()
    names = {name for c in cast if c.id != speaker for name in c.names}
    names |= {cast.display_name(other) for other in participants if other != speaker}
    names |= {name for name in NEUTRAL_NAME.values() if name != cast.display_name(speaker)}
    return names


@functools.lru_cache(maxsize=64)
def _begins(names: frozenset[str]) -> re.Pattern[str]:
    either = "|".join(re.escape(n) for n in sorted({*names, *ROLES}, key=lambda n: (-len(n), n)) if n.strip())
    return re.compile(rf"{_BEFORE}(?P<name>{either})(?P<between>{_BETWEEN})(?P<mark>[:：﹕︰∶])", re.IGNORECASE)


def _with_comma(found: re.Match[str]) -> str:
    comma = "，" if found["mark"] in "：﹕︰" else ","
    return f"{found['before']}{found['name']}{found['between']}{comma}"
