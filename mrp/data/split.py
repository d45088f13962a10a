"""Which scenes training never sees: whole scenes (or groups of them), chosen so that each character gives its share.

held_out_scenes({"s1": ["tang"], "s2": ["tang", "wukong"], ...}, share=0.1, seed=0)     # {"s2", ...}
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]
MIN_SCENES = 5  # a character with as many scenes has at least one held out
BLOCK = 2**18  # units looked at in one go, so that millions need not be Python's objects at once


def held_out_scenes(
    characters_of: Mapping[str, Collection[str]], share: float, seed: int, purpose: str = "held-out"
) -> set[str]:
    """The ids of the scenes to hold out, of all scenes and the characters who speak in them (`hold_out`).

    The order in which they are asked is a hash of (purpose, seed, id), so the choice depends on nothing else.
    """
    names = sorted({c for characters in characters_of.values() for c in characters})
    places = {name: k for k, name in enumerate(names)}
    ids = list(characters_of)
    pairs = [(number, places[c]) for number, scene in enumerate(ids) for c in set(characters_of[scene])]
    scene, character = (np.array([pair[k] for pair in pairs], np.int64) for k in (0, 1))
    digests = (hashlib.sha256(f"{purpose}:{seed}:{scene}".encode()).digest() for scene in ids)
    key = np.array([int.from_bytes(digest[:8], "big") for digest in digests], np.uint64)
    return {ids[number] for number in hold_out(scene, character, key, share)}


def hold_out(unit: Ints, character: Ints, key: NDArray[np.uint64], share: float) -> Ints:
    """The units (scenes, or groups of scenes that stay together) to hold out.

    `unit[i]` has a scene in which `character[i]` speaks, once for each; `key[u]` says when unit u is asked. About
    `share` of each character's scenes is taken, at least one of `MIN_SCENES`; every character keeps one for training,
    and that goes first where both cannot be had. A unit larger than what may be taken stays in training.
    """
    if share <= 0 or not len(unit):
        return np.empty(0, np.int64)
    choice = _Choice(unit, character, key, share)
    for number, counts in choice.queue():  # first nobody gets more than the share
        if all(choice.held[c] + n <= choice.goal[c] for c, n in counts):
            choice.take(number, counts)
            if choice.is_full():
                break
    if not choice.is_full():
        for number, counts in choice.queue():  # then units that bring characters nearer to it than they take beyond
            if choice.possible(number, counts) and choice.beyond(counts) * 2 < sum(n for _, n in counts):
                choice.take(number, counts)
        choice.serve_those_without()
    return np.array(sorted(choice.chosen), np.int64)


class _Choice:
    """What is held out so far, of each character's scenes."""

    def __init__(self, unit: Ints, character: Ints, key: NDArray[np.uint64], share: float) -> None:
        base = int(character.max()) + 1
        # Of all but the largest sets 32 bits hold the unit and the character: half the memory.
        wide = np.uint32 if (int(unit.max()) + 1) * base < 2**32 else np.uint64
        code: NDArray[np.unsignedinteger[Any]] = unit.astype(wide)
        code = code * wide(base) + character.astype(wide)
        code, self.counts = np.unique(code, return_counts=True)
        self.units, self.characters = code // wide(base), (code % wide(base)).astype(np.uint16)
        del code
        self.starts = np.flatnonzero(np.diff(self.units, prepend=self.units[0] + wide(1)))
        self.order = np.argsort(key[self.units[self.starts]], kind="stable")  # of equal keys the first unit first
        self.total: list[int] = np.bincount(self.characters, self.counts, base).astype(np.int64).tolist()
        self.goal = [min(n - 1, max(int(share * n + 0.5), int(n >= MIN_SCENES))) for n in self.total]
        self.held = [0] * base
        self.chosen: set[int] = set()

    def queue(self) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Every unit with how many scenes of which characters it has, in the order of the keys."""
        ends = np.append(self.starts[1:], len(self.units))
        for at in range(0, len(self.order), BLOCK):
            block = self.order[at : at + BLOCK]
            for start, end in zip(self.starts[block].tolist(), ends[block].tolist(), strict=True):
                counts = zip(self.characters[start:end].tolist(), self.counts[start:end].tolist(), strict=True)
                yield int(self.units[start]), list(counts)

    def is_full(self) -> bool:
        return all(held >= goal for held, goal in zip(self.held, self.goal, strict=True))

    def possible(self, number: int, counts: list[tuple[int, int]]) -> bool:
        return number not in self.chosen and all(self.held[c] + n < self.total[c] for c, n in counts)

    def beyond(self, counts: list[tuple[int, int]]) -> int:
        """How many of the unit's scenes would go beyond their character's share."""
        return sum(min(n, max(0, self.held[c] + n - self.goal[c])) for c, n in counts)

    def take(self, number: int, counts: list[tuple[int, int]]) -> None:
        self.chosen.add(number)
        for c, n in counts:
            self.held[c] += n

    def serve_those_without(self) -> None:
        """Characters with nothing held out yet, as all their scenes are shared with others: the least bad unit."""
        for character, total in enumerate(self.total):
            if total < MIN_SCENES or self.held[character]:
                continue
            units = [u for u in self.queue() if any(c == character for c, _ in u[1]) and self.possible(*u)]
            if units:
                self.take(*min(units, key=lambda u: self.beyond(u[1])))
