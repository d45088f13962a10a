"""Counts over scenes that can be joined: sizes, characters, strangers, findings, duplicates.

    tally = Tally()
    tally.add(scene, linter.lint(scene), linter.is_character)
    tally.merge(another)                      # of another part of the files: in any order the same result
    tally.balance()["tokens"].ratio           # the largest character's tokens over the smallest one's

Several processes count a part each (`as_json` and `from_json` carry a tally between them); `report_page.py` shows the
sum. Memory is bounded: sizes fall into fixed bins, and of names beyond `MOST_NAMES` only a common count is kept.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self

from mrp.cast import OTHER
from mrp.data.lint import Finding
from mrp.data.tokens import estimated_tokens
from mrp.dialogue import Scene

# Lower ends of the bins of every histogram: exact up to 4, then two bins for each doubling, up to 3 million.
EDGES = (0, 1, 2, 3, 4, *(edge for k in range(1, 20) for edge in (4 * 2**k - 2**k, 4 * 2**k)))
MOST_NAMES = 20_000  # characters and strangers that are counted by name
SHOWN_STRANGERS = 50
REST = ""  # the name under which all others are counted
LARGE_IMBALANCE = 5.0  # the largest over the smallest character from which on it is a finding


@dataclass(slots=True)
class Share:
    """What one character has: scenes in which it speaks, replies, their characters and estimated tokens."""

    scenes: int = 0
    replies: int = 0
    characters: int = 0
    tokens: int = 0
    reply_tokens: Counter[int] = field(default_factory=Counter)  # replies by bin of `EDGES`


class Balance(NamedTuple):
    """How evenly the characters share one measure: shares add up to 1, and `ratio` is largest over smallest."""

    shares: dict[str, float]
    largest: str
    smallest: str
    ratio: float


@dataclass(slots=True)
class Tally:
    """All counts. Whoever reads the files adds to `lines`, `formats`, `rejected`, `dropped_turns` and `duplicates`."""

    lines: int = 0
    scenes: int = 0
    turns: int = 0
    replies: int = 0
    characters: int = 0  # of text
    tokens: int = 0  # estimated
    by_character: dict[str, Share] = field(default_factory=dict)
    scene_turns: Counter[int] = field(default_factory=Counter)  # scenes by bin of `EDGES`
    scene_tokens: Counter[int] = field(default_factory=Counter)
    strangers: Counter[str] = field(default_factory=Counter)  # turns of those outside the cast
    findings: Counter[str] = field(default_factory=Counter)  # turns (or scenes) by reason
    scenes_with: Counter[str] = field(default_factory=Counter)  # scenes by reason
    formats: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    dropped_turns: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=Counter)  # by kind: exact, near ...

    def add(self, scene: Scene, findings: Iterable[Finding], is_character: Callable[[str], bool]) -> None:
        """Count one scene that is kept, and what lint found in it."""
        turns = tokens = 0
        spoke: dict[str, Share | None] = {}  # in this scene: a character's share, or None for everybody else
        for turn in scene.turns:
            if not turn.is_line:
                continue
            turns += 1
            text, speaker = turn.text, turn.speaker
            size = estimated_tokens(text)
            tokens += size
            self.characters += len(text)
            try:
                share = spoke[speaker]
            except KeyError:
                share = spoke[speaker] = self._share(speaker) if is_character(speaker) else None
            if share is None:
                if speaker != OTHER:
                    _count(self.strangers, speaker, 1)
                continue
            share.replies += 1
            share.characters += len(text)
            share.tokens += size
            share.reply_tokens[bin_of(size)] += 1
            self.replies += 1
        for share in spoke.values():
            if share is not None:
                share.scenes += 1
        self.scenes += 1
        self.turns += turns
        self.tokens += tokens
        self.scene_turns[bin_of(turns)] += 1
        self.scene_tokens[bin_of(tokens)] += 1
        if findings:
            reasons = [finding.reason for finding in findings]
            self.findings.update(reasons)
            self.scenes_with.update(set(reasons))

    def merge(self, other: Tally) -> None:
        """Add the counts of another tally to this one."""
        for name, share in other.by_character.items():
            mine = self._share(name)
            mine.scenes += share.scenes
            mine.replies += share.replies
            mine.characters += share.characters
            mine.tokens += share.tokens
            mine.reply_tokens.update(share.reply_tokens)
        for name, count in other.strangers.items():
            _count(self.strangers, name, count)
        for item in fields(self):
            value = getattr(other, item.name)
            if isinstance(value, int):
                setattr(self, item.name, getattr(self, item.name) + value)
            elif isinstance(value, Counter) and item.name != "strangers":
                getattr(self, item.name).update(value)

    def balance(self) -> dict[str, Balance]:
        """How evenly the characters share "lines" (scenes in which they speak), "turns" and "tokens".

        Empty with fewer than two characters.
        """
        known = {name: share for name, share in sorted(self.by_character.items()) if name != REST}
        if len(known) < 2:
            return {}
        measures = {"lines": "scenes", "turns": "replies", "tokens": "tokens"}
        return {word: _balance({n: getattr(s, key) for n, s in known.items()}) for word, key in measures.items()}

    def imbalances(self) -> list[Finding]:
        """A finding for each measure in which one character has more than `LARGE_IMBALANCE` times another's."""
        return [
            Finding("imbalance", f"{word}: {b.largest} has {b.ratio:.1f} times as many as {b.smallest}")
            for word, b in self.balance().items()
            if b.ratio > LARGE_IMBALANCE
        ]

    def top_strangers(self, most: int = SHOWN_STRANGERS) -> list[tuple[str, int]]:
        """Those outside the cast who speak most, the most frequent first, names in order where counts are equal."""
        named = [(name, count) for name, count in self.strangers.items() if name != REST]
        return sorted(named, key=lambda pair: (-pair[1], pair[0]))[:most]

    def as_json(self) -> dict[str, Any]:
        """All counts, sorted, for a file; `from_json` reads them again."""
        found: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Counter):
                value = {str(key): value[key] for key in sorted(value)}
            found[item.name] = value
        found["by_character"] = {
            name: {
                "scenes": share.scenes,
                "replies": share.replies,
                "characters": share.characters,
                "tokens": share.tokens,
                "reply_tokens": {str(key): share.reply_tokens[key] for key in sorted(share.reply_tokens)},
            }
            for name, share in sorted(self.by_character.items())
        }
        return found

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The tally that `as_json` gave."""
        tally = cls()
        for item in fields(cls):
            given = value[item.name]
            if item.name == "by_character":
                given = {
                    name: Share(**(share | {"reply_tokens": _bins(share["reply_tokens"])}))
                    for name, share in given.items()
                }
            elif item.name in ("scene_turns", "scene_tokens"):
                given = _bins(given)
            elif not isinstance(given, int):
                given = Counter(given)
            setattr(tally, item.name, given)
        return tally

    def _share(self, name: str) -> Share:
        shares = self.by_character
        if name not in shares:
            if len(shares) >= MOST_NAMES:
                name = REST
            shares.setdefault(name, Share())
        return shares[name]


def bin_of(value: int) -> int:
    """The lower end of the bin of `EDGES` in which `value` falls."""
    return value if value < 4 else EDGES[bisect_right(EDGES, value) - 1]


def bin_end(edge: int) -> int:
    """The first value after the bin that begins at `edge`."""
    place = EDGES.index(edge) + 1
    return EDGES[place] if place < len(EDGES) else 2 * edge


def _bins(counts: Mapping[str, int]) -> Counter[int]:
    return Counter({int(edge): count for edge, count in counts.items()})


def _count(counts: Counter[str], name: str, number: int) -> None:
    if name not in counts and len(counts) >= MOST_NAMES:
        name = REST
    counts[name] += number


def _balance(sizes: Mapping[str, int]) -> Balance:
    whole = sum(sizes.values()) or 1
    largest, smallest = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
    ratio = sizes[largest] / max(sizes[smallest], 1)
    return Balance({name: size / whole for name, size in sizes.items()}, largest, smallest, ratio)
