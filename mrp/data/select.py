"""Which samples are trained how often: caps for characters with much, copies for those with little.

chosen, factors = with_copies(character, key, 2.0)
chosen.number, chosen.copy          # sample 7 in copies 1 and 2: [7, 7], [1, 2]

Of the samples on the training side, between the split (`decide.py`) and the order (`order.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrp.config import DataOptions
from mrp.data.order import mixed

Ints = NDArray[np.integer[Any]]
Keys = NDArray[np.uint64]
CAP_SALT, COPY_SALT = (
    2**33,
    2**34,
)  # so that who goes, who is copied and who comes first have nothing to do with another


@dataclass(frozen=True, slots=True)
class Chosen:
    """Samples by number, each with the number of its copy (1: itself)."""

    number: Ints
    copy: Ints


def under_caps(character: Ints, key: Keys, turns: Ints, tokens: Ints, options: DataOptions) -> NDArray[np.bool_]:
    """Which samples stay under `cap_samples`, `cap_turns` and `cap_tokens`, taken by a hash of their keys.

    A sample that would go over is passed over, and smaller ones after it may still be taken.
    """
    stay = np.ones(len(character), bool)
    caps = (
        (options.cap_samples, np.ones(len(character), np.int64)),
        (options.cap_turns, turns),
        (
            options.cap_tokens,
            tokens,
        ),
    )
    for cap, size in caps:
        if not cap:
            continue
        for number in np.unique(character):
            mine = np.flatnonzero(stay & (character == number))
            mine = mine[np.argsort(mixed(key[mine], CAP_SALT), kind="stable")]
            total = 0
            for sample, amount in zip(mine.tolist(), size[mine].tolist(), strict=True):
                if total + amount <= cap:
                    total += amount
                else:
                    stay[sample] = False
    return stay


def with_copies(character: Ints, key: Keys, largest_factor: float) -> tuple[Chosen, dict[int, float]]:
    """All samples, and copies of those of characters with few; the factor by which each character's count grew.

    A character's samples are repeated up to the count of the largest character, at most `largest_factor` times. A
    part of a factor (the .5 of 2.5) goes to samples chosen by a hash of their keys.
    """
    numbers: list[Ints] = [np.arange(len(character), dtype=np.int32)]
    copies: list[Ints] = [np.ones(len(character), np.uint16)]
    factors: dict[int, float] = {}
    if largest_factor == 1:
        return Chosen(numbers[0], copies[0]), factors
    counts = np.bincount(character) if len(character) else np.zeros(0, np.int64)
    for who, count in enumerate(counts.tolist()):
        if not count:
            continue
        wanted = min(int(count * largest_factor + 0.5), int(counts.max()))
        factors[who] = wanted / count
        mine = np.flatnonzero(character == who)
        mine = mine[np.argsort(mixed(key[mine], COPY_SALT), kind="stable")]
        copy = 2
        while (missing := wanted - count * (copy - 1)) > 0:
            numbers.append(mine[:missing].astype(np.int32))
            copies.append(np.full(min(missing, count), copy, np.uint16))
            copy += 1
    return Chosen(np.concatenate(numbers), np.concatenate(copies)), factors


def drawn(key: Keys, count: int) -> Ints:
    """Numbers of `count` samples, chosen by a hash of their keys."""
    return np.sort(np.argsort(mixed(key, CAP_SALT), kind="stable")[:count])
