"""How alike texts and names are: the same but for signs, or one slip apart.

    is_same_text("Where are you, Sun Wukong, my lord?", "where are you sun wukong my lord")    # True
    near_name("Sun Wukng", {"sun wukong": "wukong"})                                           # "sun wukong"

Used by `lint.py`. `near.py` finds near-duplicates among millions of scenes; this looks at two texts of one scene.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from mrp.data.tokens import estimated_tokens

MIN_SAME = 8  # estimated tokens of a reply from which on it may not repeat the prompt: people do return a greeting
_OTHERS = (  # what tells people apart whose names are alike else
    re.compile(r"[0-9０-９一二三四五六七八九十甲乙丙丁]+|(?<![a-z])[ivx]+(?![a-z])"),
    re.compile(r"[aeious]$"),
)
_NOT_LETTERS = re.compile(r"[\W_]+")


def is_same_text(first: str, second: str) -> bool:
    """True if both are the same but for case, width, blanks and punctuation, and too long for a greeting."""
    if first != second:
        ends = (
            _first_letter(first) == _first_letter(second),
            _first_letter(first[::-1]) == _first_letter(second[::-1]),
        )
        if not all(ends) or _letters(first) != _letters(second):  # the ends are soon compared, and mostly differ
            return False
    return estimated_tokens(_letters(second)) >= MIN_SAME


def near_name(name: str, known: Mapping[str, str]) -> str:
    """The one of `known` names that `name` is one slip away from, or "".

    A slip is a letter too many, too few, wrong, or changed places with the next; in names of at least five letters
    (three of Chinese) that begin alike. Other digits or Roman numbers are other people, and so are other endings
    (Claudio and Claudia, Helen and Helena, a guard and the guards).
    """
    plain = plain_name(name)
    letters = _letters(plain)
    for other in known:
        theirs = _letters(other)
        if letters and letters == theirs:
            return other  # only dots, hyphens or blanks differ
        wide = not theirs.isascii()
        if len(theirs) < (3 if wide else 5) or letters[:1] != theirs[:1] or abs(len(letters) - len(theirs)) > 1:
            continue
        if _one_slip(letters, theirs) and all(
            _letters(p.sub("", plain)) != _letters(p.sub("", other)) for p in _OTHERS
        ):
            return other
    return ""


def plain_name(name: str) -> str:
    """A name as it is compared: without blanks around it, in small letters."""
    return name.strip().casefold()


def _letters(text: str) -> str:
    """`text` in one width and case, without blanks and punctuation."""
    return _NOT_LETTERS.sub("", text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()


def _first_letter(text: str) -> str:
    """What the first letter of `text` becomes in `_letters`."""
    for char in text:
        if char.isalnum():
            return _letters(char)
    return ""


def _one_slip(a: str, b: str) -> bool:
    """True if one letter more, fewer, another, or two neighbours in other order make `b` of `a`."""
    if len(a) != len(b):
        short, long = sorted((a, b), key=len)
        return any(long[:i] + long[i + 1 :] == short for i in range(len(long)))
    differ = [i for i in range(len(a)) if a[i] != b[i]]
    if len(differ) == 1:
        return True
    return (
        len(differ) == 2
        and differ[1] == differ[0] + 1
        and a[differ[0]] == b[differ[1]]
        and a[differ[1]] == b[differ[0]]
    )
