"""How alike texts are: normalised form, n-grams, exact Jaccard similarity, and the MinHash keys that find pairs.

    normalised("Ｗhat, again？！")                      # "whatagain"
    keys = band_keys(signatures(texts), banding(0.8))  # (texts, bands) uint64: a pair at 0.85 shares one (97 %)
    jaccard(ngrams([a]).of(0), ngrams([b]).of(0))      # the similarity itself; keys only say whom to compare

Workers make the keys while they read; `groups.py` compares them all. Everything here is whole-number arithmetic on code
points, so the same text has the same keys in every process and on every machine.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mrp.errors import SetupError, need_extra

U64: TypeAlias = NDArray[np.uint64]

PERMUTATIONS = 128  # values of a signature
LONG, SHORT = 5, 3  # characters of an n-gram: five letters, or three Han, kana or Hangul
MINHASH_VERSION = 2  # of rensa's RMinHash: another one gives other keys
RECALL = 0.97  # chance aimed at that a pair `MARGIN` above the threshold is found
MARGIN = 0.05
SIGNS = "$+<=>^`|~"  # ASCII characters that Unicode counts as symbols and people as punctuation
TELLING_BYTES = 36  # of a normalised line in UTF-8
POINTS_AT_ONCE = 2**15  # characters: all that is made of them stays in the processor's cache
_SEED = 2024
_PAD = "\0" * (LONG - 1)  # between texts; never part of a normalised text
_MULTIPLIERS = tuple(np.uint64(m) for m in (0x9E3779B97F4A7C15, 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53))
_SHIFT = np.uint64(33)
_21, _42 = np.uint64(21), np.uint64(42)


@dataclass(frozen=True, slots=True)
class Banding:
    """A signature cut into `bands` of `rows` values: two texts are compared if they agree in all rows of a band."""

    bands: int
    rows: int

    def recall(self, similarity: float) -> float:
        """The chance that two texts of this Jaccard similarity share a band."""
        return float(1 - (1 - similarity**self.rows) ** self.bands)


@dataclass(frozen=True, slots=True)
class Ngrams:
    """The n-grams of several texts as 64-bit hashes; those of text i are `hashes[offsets[i] : offsets[i + 1]]`.

    In the order of the text, repeats included.
    """

    hashes: U64
    offsets: U64  # one more than there are texts

    def of(self, index: int) -> U64:
        """The set of text `index`: sorted, each once."""
        found = np.sort(self.hashes[int(self.offsets[index]) : int(self.offsets[index + 1])])
        new = np.empty(len(found), np.bool_)  # np.unique does the same, six times slower
        new[:1], new[1:] = True, found[1:] != found[:-1]
        return found[new]


def normalised(text: str) -> str:
    """The text without what does not tell texts apart: width, case, punctuation and white space.

    Unicode NFKC and case folding, without punctuation, separators, control and format characters, modifiers and
    `SIGNS`; other symbols (emoji) stay. A text of nothing else keeps all but its white space: "……" is not "？".
    """
    return normalised_all([text])[0]


def normalised_all(texts: Sequence[str]) -> list[str]:
    """`normalised` of each text, several times faster."""
    if not texts:
        return []
    joined = "\0".join(texts)
    if joined.count("\0") >= len(texts):
        joined = "\0".join(text.replace("\0", "") for text in texts)
    forms = _without_signs(joined).casefold().split("\0")
    return [_settled(form, text) for form, text in zip(forms, texts, strict=True)]


def ngrams(texts: Sequence[str]) -> Ngrams:
    """The n-grams of the normalised texts: one begins at each character.

    It has `SHORT` characters if it begins with a Han, kana or Hangul character, else `LONG`; the last ones are cut off
    by the end. So every text has some, mixed texts need no choice of language, and a text of one character is a set.
    """
    forms = normalised_all(texts)
    lengths = np.fromiter(map(len, forms), np.int64, len(forms))
    points = np.frombuffer((_PAD.join(forms) + _PAD).encode("utf-32-le", "surrogatepass"), "<u4")
    offsets = np.zeros(len(forms) + 1, np.uint64)
    np.cumsum(lengths, out=offsets[1:], dtype=np.uint64)
    hashes = np.empty(int(offsets[-1]), np.uint64)
    done = 0
    for start in range(0, len(points) - len(_PAD), POINTS_AT_ONCE):
        piece = points[start : start + POINTS_AT_ONCE + len(_PAD)]
        found = _window_hashes(piece)[piece[: -len(_PAD)] != 0]
        hashes[done : done + len(found)] = found
        done += len(found)
    return Ngrams(hashes, offsets)


def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """The MinHash signatures of texts, (texts, `PERMUTATIONS`); the more alike two sets, the more values agree.

    The chance that a value agrees is the Jaccard similarity of the two sets of n-grams (Broder 1997). Texts without
    any character have no n-gram; their signatures are all alike. Needs the extra `data`.
    """
    return minhash(ngrams(texts))


def minhash(found: Ngrams) -> NDArray[np.uint32]:
    """`signatures` of texts whose n-grams are known."""
    try:
        from rensa import RMinHash  # type: ignore[import-untyped]
    except ImportError as error:
        raise need_extra("data", "rensa") from error
    if RMinHash.ALGORITHM_VERSION != MINHASH_VERSION:
        what = f"rensa makes MinHash signatures of version {RMinHash.ALGORITHM_VERSION}, not {MINHASH_VERSION}"
        raise SetupError(what, "the Python environment", "pip install 'rensa>=0.5,<0.6': other keys find other pairs")
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(found.hashes, found.offsets, PERMUTATIONS, _SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(-1, PERMUTATIONS)


def banding(threshold: float, recall: float = RECALL, margin: float = MARGIN) -> Banding:
    """The bands that find a pair of similarity `threshold + margin` with at least this chance, and least others.

    The longest bands that a signature has room for. `margin=0` finds pairs at the threshold itself as surely, for
    more comparisons.
    """
    target = min(threshold + margin, (1 + threshold) / 2)  # which is nearer than the margin above 0.9
    for rows in range(PERMUTATIONS, 1, -1):
        for bands in range(1, PERMUTATIONS // rows + 1):
            if Banding(bands, rows).recall(target) >= recall:
                return Banding(bands, rows)
    return Banding(PERMUTATIONS, 1)


def band_keys(signature: NDArray[np.uint32], cut: Banding) -> U64:
    """The key of each band, (texts, bands): equal where all rows of the band are."""
    keys = np.empty((len(signature), cut.bands), np.uint64)
    for band in range(cut.bands):
        key = np.full(len(signature), band + 1, np.uint64)
        for row in range(band * cut.rows, (band + 1) * cut.rows):
            key = _mixed(key * _MULTIPLIERS[0] + signature[:, row])
        keys[:, band] = key
    return keys


def jaccard(a: U64, b: U64) -> float:
    """The share of all n-grams of two sets (sorted, each once) that both have; a blank text is like no other."""
    both = np.concatenate((a, b))
    both.sort(kind="stable")  # two sorted runs: one merge
    common = int(np.count_nonzero(both[1:] == both[:-1]))
    return common / max(1, len(both) - common)


def text_keys(texts: Sequence[str]) -> U64:
    """A 64-bit key of each text, over its normalised n-grams in order: equal for texts that are equal when normalised.

    For questions and long lines, whose repeats keep scenes together; a false meeting only makes a group larger.
    """
    found = ngrams(texts)
    starts = found.offsets.astype(np.int64)
    place = (np.arange(len(found.hashes)) - np.repeat(starts[:-1], np.diff(starts))).astype(np.uint64)
    total = np.zeros(len(found.hashes) + 1, np.uint64)
    np.cumsum(_mixed(found.hashes + place * _MULTIPLIERS[1]), out=total[1:])
    return _mixed(total[starts[1:]] - total[starts[:-1]])


def line_keys(lines: Sequence[str]) -> tuple[U64, NDArray[np.int64]]:
    """`text_keys` of the lines that are long enough to tell one dialogue from all others, and the places of these.

    From `TELLING_BYTES` on (12 Han characters, 36 letters) no two scenes of a novel and no two speeches of ten plays
    had a line in common by chance; a third shorter, a few had.
    """
    forms = normalised_all(lines)
    places = [place for place, form in enumerate(forms) if len(form.encode("utf-8", "surrogatepass")) >= TELLING_BYTES]
    return text_keys([forms[place] for place in places]), np.array(places, np.int64)


def _window_hashes(points: NDArray[np.uint32]) -> U64:
    """A hash of the n-gram that begins at each place but the last four, which are the end's filling."""
    c = points.astype(np.uint64)
    n = len(c) - len(_PAD)
    first, second, third, fourth, fifth = (c[i : n + i] for i in range(LONG))
    head = _mixed(first | second << _21 | third << _42)  # three characters fit whole, so this loses nothing
    tail = _mixed((fourth | fifth << _21) * _MULTIPLIERS[0] + head)
    return np.where(_is_short(points[:n]), head, tail)


def _is_short(points: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Characters that say about as much as a syllable or a word."""
    main = (points >= 0x2E80) & (points <= 0x9FFF)
    hangul = (points >= 0xAC00) & (points <= 0xD7AF)
    rare = (points >= 0x20000) & (points <= 0x3FFFF)
    return main | hangul | rare


def _mixed(x: U64) -> U64:
    """Spread every bit over all others: the finaliser of MurmurHash3 (Appleby 2011, public domain)."""
    x = (x ^ (x >> _SHIFT)) * _MULTIPLIERS[1]
    x = (x ^ (x >> _SHIFT)) * _MULTIPLIERS[2]
    return x ^ (x >> _SHIFT)


def _without_signs(text: str) -> str:
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    kept: bytes = points[~_signs()[points]].tobytes()
    return kept.decode("utf-32-le", "surrogatepass")


def _settled(form: str, text: str) -> str:
    """`form`, which has no signs and is case-folded, in NFKC; made of `text` where nothing is left."""
    if form and unicodedata.is_normalized("NFKC", form):
        return form  # all but one text in a thousand
    form = form and _folded(_without_signs(_folded(form)))  # in between "⑴" is "(1)"
    if form:
        return form
    signs = "".join(_folded(text.replace("\0", "")).split())
    return _folded(_without_signs(signs)) or signs  # some signs fall into a space and a mark


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


@lru_cache(1)
def _signs() -> NDArray[np.bool_]:
    """For each code point, whether `normalised` leaves it out. U+0000 stays: it stands between texts."""
    table = np.zeros(0x110000, np.bool_)
    for point in (*range(0x20000), *range(0xE0000, 0xE0200)):  # the rest is letters, or unassigned
        category = unicodedata.category(chr(point))
        table[point] = category[0] in "PZ" or category in ("Cc", "Cf", "Sk")
    table[[ord(sign) for sign in SIGNS]] = True
    table[0xFE00:0xFE10] = table[0xE0100:0xE01F0] = True  # variation selectors: which picture, not which character
    table[0] = False
    return table
