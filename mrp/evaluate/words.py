"""Words of any language for counting: Latin words in lower case, and each Chinese character for itself.

    words("Old Monkey, 老孙来也!")        # ["old", "monkey", "老", "孙", "来", "也"]

Also names masked out of texts, and the words that mark a character against the rest of the cast.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from mrp.cast import Cast

MASK = "▁"  # stands for what was masked; no text has it
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\d_\u3400-\u9fff]+(?:['’][^\W\d_\u3400-\u9fff]+)?|\d+")
_HAN = re.compile(r"[\u3400-\u9fff]")


def words(text: str) -> list[str]:
    return [word.replace("’", "'") for word in _WORD.findall(text.casefold())]


def first_words(text: str, count: int) -> str:
    """`text` up to the end of its first `count` words."""
    found = list(_WORD.finditer(text))
    return text if len(found) <= count else text[: found[count - 1].end()]


def terms(text: str) -> list[str]:
    """What can mark a character: its words, and of Chinese each two and three characters that stand together."""
    found = words(text)
    singles = [word for word in found if not _HAN.match(word)]
    grams = [
        "".join(found[k : k + n])
        for n in (2, 3)
        for k in range(len(found) - n + 1)
        if all(_HAN.match(word) for word in found[k : k + n])
    ]
    return singles + grams


def signature_words(texts: Mapping[str, Sequence[str]], most: int = 10, z: float = 2.0) -> dict[str, list[str]]:
    """For each character the terms that mark its texts against all others', the strongest first.

    Log-odds with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008, "Fightin' Words"), those with a
    z-score of at least `z`, in at least three of its texts, and used by it more than by all others together.
    """
    counts = {who: Counter(term for text in own for term in terms(text)) for who, own in texts.items()}
    spread = {who: Counter(term for text in own for term in set(terms(text))) for who, own in texts.items()}
    everything = sum(counts.values(), Counter[str]())
    whole = everything.total()
    weight = min(500.0, whole / 10)  # of the prior, in words
    found = {}
    for who, own in counts.items():
        own_total, rest_total = own.total(), whole - own.total()
        scored = []
        for term, count in own.items():
            if spread[who][term] < 3 or not rest_total or 2 * count <= everything[term]:
                continue
            prior, rest = everything[term] / whole * weight, everything[term] - count
            ours = math.log((count + prior) / (own_total + weight - count - prior))
            theirs = math.log((rest + prior) / (rest_total + weight - rest - prior))
            score = (ours - theirs) / math.sqrt(1 / (count + prior) + 1 / (rest + prior))
            if score >= z:
                scored.append((-round(score, 9), term))
        found[who] = [term for _, term in sorted(scored)[:most]]
    return found


class Masking:
    """Names, titles and signature words of the whole cast as one sign: what is left is how somebody speaks."""

    def __init__(self, cast: Cast, signature: Mapping[str, Iterable[str]]) -> None:
        whole = {name.casefold() for c in cast for name in c.names}
        parts = {word for name in whole for word in words(name) if len(word) > 2 or _HAN.match(word)}
        latin = {word for word in parts if not _HAN.match(word)}
        marks = {term for own in signature.values() for term in own}
        known = sorted(whole | latin | marks, key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(map(_as_whole_word, known)), re.IGNORECASE)

    def __call__(self, text: str) -> str:
        return self._pattern.sub(MASK, text)


def _as_whole_word(text: str) -> str:
    """A pattern for `text` that does not find it inside a longer Latin word."""
    pattern = re.escape(text).replace("'", "['’]")
    if not _HAN.match(text[0]):
        pattern = rf"(?<!\w){pattern}"
    if not _HAN.match(text[-1]):
        pattern = rf"{pattern}(?!\w)"
    return pattern
