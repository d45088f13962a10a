"""Whom a message names outright: `@name`, or a name at the edge of a sentence, in Chinese and English.

    addressed("Pigsy, are you hungry?", cast, ["wukong", "bajie"])    # Address("bajie", "pigsy", ...)
    addressed("八戒的钉耙在哪里？", cast, ["bajie"])                    # None: spoken of, not spoken to

First step of the router (`route.py`). Of several who are named, the one in the last sentence is meant.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from mrp.cast import Cast

CJK = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
NO_NAMES = {"the", "and", "of", "von", "van", "de", "la", "le", "der", "mr", "mrs", "miss", "sir", "lord", "lady"}
EDGE = 2000  # characters of a long message that are looked at, at its beginning and at its end
GREETINGS = (
    r"hey|hi|hello|hiya|yo|greetings|thanks|thank you|dear|excuse me|good (?:morning|day|evening|night)|welcome"
    r"|你好|您好|喂|嘿|嗨|多谢|谢谢"
)
LEAD_INS = (
    r"oh|o|ah|and|so|well|but|now|please|say|listen|look|tell me|come|yes|no|ok|okay"
    r"|请问|敢问|啊|哎|唉|我说|那|对了|好"
)
REQUESTS = (  # what may follow a name without a comma when it is spoken to: "Wukong tell me", "悟空你"
    r"you|tell|what|where|who|why|how|when|which|please|come|look|help|listen"
    r"|(?:can|could|do|did|are|have|will|would|may|should) (?:you|i|we)"
)


class Address(NamedTuple):
    """Somebody who is named in a message: the id, the name as it stands there (case folded), and how."""

    character: str
    name: str
    how: str


def addressed(text: str, cast: Cast, candidates: Iterable[str]) -> Address | None:
    """The candidate (an id of the cast) whom `text` is said to, or None."""
    calls = call_names(cast, candidates)
    if not calls:
        return None
    if len(text) > 2 * EDGE:
        text = f"{text[:EDGE]}\n{text[-EDGE:]}"
    plain = unicodedata.normalize("NFKC", text).casefold()  # full-width "，：！？@" become ",:!?@"
    plain = "\n".join(" ".join(line.split()) for line in plain.splitlines() if line.strip())
    found = [
        (len(_SENTENCE_END.findall(plain, 0, match.start("name"))), rank, match.start("name"), how, match["name"])
        for rank, (how, pattern) in enumerate(_patterns(calls))
        for match in pattern.finditer(plain)
    ]
    ats = [item for item in found if item[1] == 0]
    if not found:
        return None
    last = max(sentence for sentence, *_ in ats or found)
    _, _, _, how, name = min(item for item in ats or found if item[0] == last)
    return Address(calls[name], name, how)


def call_names(cast: Cast, candidates: Iterable[str]) -> dict[str, str]:
    """What each candidate can be called, case folded: id, name, aliases, and words of the name that no other has."""
    chosen = [cast[character_id] for character_id in candidates]
    calls = {_fold(name): c.id for c in chosen for name in c.names}
    taken = {_fold(name) for c in cast for name in c.names}
    words = [(word, c.id) for c in cast for word in set(_fold(c.name).split()) - NO_NAMES if len(word) > 2]
    ids = {c.id for c in chosen}
    for word, owner in words:
        if owner in ids and word not in taken and [w for w, _ in words].count(word) == 1:
            calls[word] = owner
    return calls


def _fold(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


_SENTENCE_END = re.compile(r"[.!?。…\n]+")


def _patterns(calls: dict[str, str]) -> list[tuple[str, re.Pattern[str]]]:
    name = "|".join(_bounded(n) for n in sorted(calls, key=lambda n: (-len(n), n)))
    begin = r"(?:\A|(?<=[.!?。…\n]))[\s\"“”‘’'(*]*"
    lead = rf"(?:(?:{LEAD_INS}|{GREETINGS})(?![^\W{CJK}])[\s,!]*){{0,2}}"
    spoken_to = rf"(?=\s*(?:[,:;!?.。…~\n—–]|\Z)|\s+-|\s+(?:{REQUESTS})(?![^\W{CJK}])|\s*[你您]|[呀啊呐哟])"
    forms = {
        "named with @": rf"(?<![^\W{CJK}])@(?P<name>{name})",
        "called at the start": rf"{begin}{lead}(?P<name>{name}){spoken_to}",
        "greeted": rf"{begin}(?:{GREETINGS})[\s,!]*(?P<name>{name})(?!['’]s|的)",
        "called at the end": rf"[,、]\s*(?P<name>{name})(?=[\s~\"”’')*]*(?:\Z|[.!?。…\n]))",
    }
    return [(how, re.compile(form)) for how, form in forms.items()]


def _bounded(name: str) -> str:
    """A pattern for a name that is no part of a longer word (Chinese writes no spaces between words)."""
    letter = rf"[^\W{CJK}]"
    before = rf"(?<!{letter})" if re.match(letter, name) else ""
    after = rf"(?!{letter})" if re.match(letter, name[-1]) else ""
    return f"{before}{re.escape(name)}{after}"
