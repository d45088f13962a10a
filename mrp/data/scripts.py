"""Simplified and traditional Chinese characters in one dialogue.

    mixed_scripts("我们說好了")        # ("们", "說"), one of each; None where only one script is used

Used by `lint.py`. Which characters belong to one script only is read from the standards that printed them: a character
of the first level of GB 2312 (the 3,755 commonest of simplified print) that Big5 does not have is simplified; one of
the first level of Big5 (the 5,401 commonest of traditional print) that GB 2312 does not have is traditional. Both come
with Python as codecs. What stands in both (后, 里, 只, 乾, 著) says nothing. Taken out by hand are characters at home
in both worlds all the same: rare ones and names that GB 2312 lacks, and forms that traditional print has beside its own
(着, 却, 温, 启).
"""

from __future__ import annotations

import re
from functools import cache

_NOT_TRADITIONAL = (
    "伋汍沍沘佺姅泜玥甽堉浬珪珮砠崁梂脩焜祇槃煖璟瑯琯僎嘐塭湣湲湩迺豭橾觼燸籥觔晞瞭瞋瘉炤玆琍甦昇妳勗彫訢"
)
_NOT_SIMPLIFIED = "尔从弃启礼碍着却强温卧脱悦税吴吕内黄户录册"
_KANA = re.compile("[ぁ-ヺ]")
_LEVELS = {  # codec -> first bytes of its first level, second bytes, characters in it
    "gb2312": (range(0xB0, 0xD8), range(0xA1, 0xFF), 3755),
    "big5": (range(0xA4, 0xC7), (*range(0x40, 0x7F), *range(0xA1, 0xFF)), 5401),
}


@cache
def simplified_only() -> frozenset[str]:
    """The common characters that only simplified text has (some 1,200)."""
    return frozenset(c for c in _level("gb2312") if not _has("big5", c)) - set(_NOT_SIMPLIFIED)


@cache
def traditional_only() -> frozenset[str]:
    """The common characters that only traditional text has (some 2,000)."""
    return frozenset(c for c in _level("big5") if not _has("gb2312", c)) - set(_NOT_TRADITIONAL)


@cache
def script_patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Patterns that find a character of simplified, and one of traditional script."""
    simplified, traditional = ("".join(sorted(s)) for s in (simplified_only(), traditional_only()))
    return re.compile(f"[{simplified}]"), re.compile(f"[{traditional}]")


def mixed_scripts(text: str) -> tuple[str, str] | None:
    """The distinct simplified and the distinct traditional characters of a text that has both, else None.

    Japanese text (with kana) has characters of both by right, and counts as neither.
    """
    simplified, traditional = script_patterns()
    if not traditional.search(text) or not simplified.search(text) or _KANA.search(text):
        return None
    return tuple("".join(dict.fromkeys(p.findall(text))) for p in (simplified, traditional))  # type: ignore[return-value]


def _level(codec: str) -> list[str]:
    leads, seconds, characters = _LEVELS[codec]
    pairs = [bytes((lead, second)).decode(codec, "ignore") for lead in leads for second in seconds]
    return [c for c in pairs if "\u4e00" <= c <= "\u9fff"][:characters]


def _has(codec: str, character: str) -> bool:
    return bool(character.encode(codec, "ignore"))
