"""In which order samples are trained: one place for building, where there may be millions, and for training.

    permutation("shuffled", character, key)       # numbers of samples: which comes first, second, ...

Samples are numbered in their natural order: character after character, each with its files and lines as they are
written. A key is a hash of (seed, epoch, sample id) (`samples.order_key`), so an order needs no generator's state and
is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.integer[Any]]
Keys = NDArray[np.uint64]


def permutation(order: str, character: Numbers, key: Keys, replay: float = 0.0) -> Numbers:
    """The numbers of the samples in the order asked for. `character[i]` and `key[i]` belong to sample i.

    sequential   as numbered
    shuffled     by key
    round-robin  one sample of each character in turn, each character's own by key; who has no more is passed over
    blocked      character after character, each block by key; `replay` times its size of samples of the characters
                 before, drawn and spread by key, are seen again in each block, so that they are numbered twice
    """
    if order == "sequential":
        return np.arange(len(character))
    if order == "shuffled":
        return np.argsort(key, kind="stable")
    by_key = np.lexsort((key, character))  # stable: of equal keys the first number first
    if order == "round-robin":
        return by_key[np.lexsort((character[by_key], _rank_in_run(character[by_key])))]
    assert order == "blocked", order
    blocks = np.split(by_key, np.flatnonzero(np.diff(character[by_key].astype(np.int64))) + 1)
    return np.concatenate([_with_replay(blocks[:k], block, key, replay) for k, block in enumerate(blocks)])


def mixed(x: Keys | int, salt: int = 0) -> Keys:
    """Another key made of a key: every bit spread over all others (the finaliser of SplitMix64, Steele 2014)."""
    with np.errstate(over="ignore"):
        z = np.asarray(x, np.uint64) + np.uint64((salt * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)


def _rank_in_run(values: Numbers) -> Numbers:
    """0, 1, 2, ... within each run of equal values."""
    starts = np.flatnonzero(np.diff(values.astype(np.int64), prepend=-1))
    lengths = np.diff(starts, append=len(values))
    return np.arange(len(values)) - np.repeat(starts, lengths)


def _with_replay(before: Sequence[Numbers], block: Numbers, key: Keys, replay: float) -> Numbers:
    """A block with samples of earlier blocks among its own."""
    count = int(replay * len(block) + 0.5)
    if not before or not count:
        return block
    earlier = np.concatenate(before)
    drawn_by = mixed(key[earlier], len(before))  # another draw for each block
    drawn = earlier[np.argsort(drawn_by, kind="stable")[:count]]
    together = np.concatenate([block, drawn])
    at = np.concatenate([key[block], mixed(key[drawn], len(before) + 2**32)])
    return together[np.argsort(at, kind="stable")]
