"""Proof that a split leaks nothing: which training texts are alike a held-out one, with none missed.

    straddling(sides, load_text, 0.8)        # [Straddle(train=12, held_out=731, similarity=0.93)], or [] as it should

Not by MinHash, which misses a few in a hundred, but by prefix filtering (Chaudhuri et al. 2006; Bayardo et al. 2007;
with several shared n-grams asked for: Wang et al. 2012). Two sets of Jaccard similarity t have at least o = ceil(t n)
n-grams in common, n the size of the larger. So of those in common, k are among the n - o + k rarest of each. Only texts
with so many rare n-grams in common are compared. That takes time in proportion to the number of texts, but for large
families of texts a little less alike than the threshold, which are compared all with all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrp.data.groups import I64, U64
from mrp.data.near import jaccard, ngrams
from mrp.data.repeats import Load
from mrp.report import SILENT, Reporter

TEXTS_AT_ONCE = 512
INDEXED_AT_ONCE = 2**23  # n-grams of held-out texts held at a time: 200 MB, more while they are sorted
MATCHED_AT_ONCE = 2**21  # meetings of a text and an owner of one of its n-grams
COUNTERS = 2**25  # for how common n-grams are, 64 MB; two that share one only cost comparisons
MANY = 60_000  # a counter goes no further
COMMON = 6  # rare n-grams in common that make a pair worth comparing (k above)
OWNERS_AT_FIRST = 4  # texts looked at for an n-gram before all that have it: of copies without number one is enough
TRIED_AT_FIRST = 2  # of those, the ones compared
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Straddle:
    """A training text that is alike a held-out one: both items, and their similarity."""

    train: int
    held_out: int
    similarity: float


@dataclass(frozen=True, slots=True)
class _Index:
    """Rare n-grams of held-out texts in order, which text has each, and every text's item and number of n-grams."""

    rare: U64
    owners: I64  # rows of `items`
    items: I64
    sizes: I64


@dataclass(frozen=True, slots=True)
class _Block:
    """Training texts: items, sets, and for each of their rare n-grams the text (a row) and its stretch of the index."""

    items: I64
    sets: list[U64]
    rows: I64
    start: I64
    end: I64


def straddling(sides: ArrayLike, load: Load, threshold: float, report: Reporter = SILENT) -> list[Straddle]:
    """Every training text that is at least `threshold` alike a held-out one, each with one such, in order.

    `sides` says for each item 0 (training), 1 (held out) or -1 (neither). Exact: an empty list proves that there is no
    such pair. Texts are loaded twice, the training texts once more for every `INDEXED_AT_ONCE` n-grams held out.
    """
    side = np.asarray(sides)
    train, held = np.flatnonzero(side == 0), np.flatnonzero(side == 1)
    found: list[Straddle] = []
    counts = _counts(np.flatnonzero((side == 0) | (side == 1)), load, report)
    for index in _indexes(held, load, counts, threshold):
        with report.progress("looking for leaks", len(train), "texts") as show:
            done = 0
            for items, sets in _sets(train, load):
                found += _alike(index, _block(index, items, sets, counts, threshold), load, threshold)
                done += len(items)
                show(done)
        train = np.setdiff1d(train, [pair.train for pair in found])
    return sorted(found, key=lambda pair: pair.train)


def _counts(items: I64, load: Load, report: Reporter) -> NDArray[np.uint16]:
    """How many texts have the n-grams of each counter."""
    counts = np.zeros(COUNTERS, np.uint16)
    with report.progress("counting n-grams", len(items), "texts") as show:
        done = 0
        for block, sets in _sets(items, load):
            places = _counters(np.concatenate(sets))
            np.add.at(counts, places, np.uint16(1))
            counts[places] = np.minimum(counts[places], MANY)
            done += len(block)
            show(done)
    return counts


def _sets(items: I64, load: Load) -> Iterator[tuple[I64, list[U64]]]:
    """The n-gram sets of texts, some texts at a time."""
    for start in range(0, len(items), TEXTS_AT_ONCE):
        block = items[start : start + TEXTS_AT_ONCE]
        found = ngrams([load(item) for item in block.tolist()])
        yield block, [found.of(place) for place in range(len(block))]


def _indexes(held: I64, load: Load, counts: NDArray[np.uint16], threshold: float) -> Iterator[_Index]:
    """The held-out texts in as many indexes as it takes; of several with equal sets the first stands for all."""
    rare: list[U64] = []
    own: list[tuple[int, int]] = []  # item, number of n-grams
    seen: set[bytes] = set()
    waiting = 0
    for items, sets in _sets(held, load):
        for item, found in zip(items.tolist(), sets, strict=True):
            mark = hashlib.blake2b(found.tobytes(), digest_size=16).digest()
            if mark not in seen:
                seen.add(mark)
                rare.append(_rarest(found, counts, threshold))
                own.append((item, len(found)))
                waiting += len(rare[-1])
        if waiting >= INDEXED_AT_ONCE:
            yield _index(rare, own)
            rare, own, waiting = [], [], 0
    if rare:
        yield _index(rare, own)


def _index(rare: list[U64], own: list[tuple[int, int]]) -> _Index:
    joined = np.concatenate(rare)
    order = np.argsort(joined, kind="stable")
    items, sizes = np.array(own, np.int64).T
    return _Index(joined[order], _rows_of(rare)[order], items, sizes)


def _block(index: _Index, items: I64, sets: list[U64], counts: NDArray[np.uint16], threshold: float) -> _Block:
    rare = [_rarest(found, counts, threshold) for found in sets]
    joined = np.concatenate(rare)
    start, end = np.searchsorted(index.rare, joined, "left"), np.searchsorted(index.rare, joined, "right")
    hit = end > start
    return _Block(items, sets, _rows_of(rare)[hit], start[hit], end[hit])


def _alike(index: _Index, block: _Block, load: Load, threshold: float) -> list[Straddle]:
    """The texts of the block that are alike an indexed one.

    First a quick try with few owners of each n-gram; of who is left, all that have enough in common.
    """
    rows, owners, common = _common(index, block.rows, block.start, np.minimum(block.end, block.start + OWNERS_AT_FIRST))
    order = np.lexsort((-common, rows))
    rows, owners = rows[order], owners[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    found = _best(index, block, rows[rank < TRIED_AT_FIRST], owners[rank < TRIED_AT_FIRST], load, threshold)
    left = ~np.isin(block.items, [pair.train for pair in found])[block.rows]
    sizes = np.array([len(own) for own in block.sets], np.int64)
    for part in _parts(block.rows[left], (block.end - block.start)[left]):
        rows, owners, common = _common(index, *(array[left][part] for array in (block.rows, block.start, block.end)))
        low = np.minimum(sizes[rows], index.sizes[owners])
        least = np.ceil(threshold * np.maximum(sizes[rows], index.sizes[owners]) - ROUNDING)  # in common if alike
        worth = (common >= np.minimum(COMMON, least)) & (low >= least)
        found += _best(index, block, rows[worth], owners[worth], load, threshold)
    return found


def _parts(rows: I64, meetings: I64) -> Iterator[slice]:
    """Stretches of whole texts (equal rows) with about `MATCHED_AT_ONCE` meetings, or one text with more."""
    begin = 0
    while begin < len(rows):
        reach = begin + int(np.searchsorted(np.cumsum(meetings[begin:]), MATCHED_AT_ONCE, "right"))
        if reach >= len(rows):
            reach = len(rows)
        else:  # back to where a text begins, or on to the end of the only one
            reach = int(np.searchsorted(rows, rows[reach], "left"))
            if reach <= begin:
                reach = int(np.searchsorted(rows, rows[begin], "right"))
        yield slice(begin, reach)
        begin = reach


def _common(index: _Index, rows: I64, start: I64, end: I64) -> tuple[I64, I64, I64]:
    """Each pair of a text and an owner of any of its n-grams, ordered, and how many of these they have in common."""
    times = end - start
    ahead = np.cumsum(times) - times
    owners = index.owners[np.arange(int(times.sum())) + np.repeat(start - ahead, times)]
    pairs = np.sort(np.repeat(rows, times) * len(index.items) + owners)
    first = np.flatnonzero(np.diff(pairs, prepend=-1))
    common = np.diff(first, append=len(pairs))
    return pairs[first] // len(index.items), pairs[first] % len(index.items), common


def _best(index: _Index, block: _Block, rows: I64, owners: I64, load: Load, threshold: float) -> list[Straddle]:
    """For each text the most alike of these owners, the first of several, if it is alike enough."""
    best: dict[int, Straddle] = {}
    order = np.lexsort((rows, owners))
    rows, owners = rows[order], owners[order]
    for held, sets in _sets(index.items[np.unique(owners)], load):
        mine = np.isin(index.items[owners], held)
        place = np.searchsorted(held, index.items[owners[mine]])
        for row, other in zip(rows[mine].tolist(), place.tolist(), strict=True):
            similarity = jaccard(block.sets[row], sets[other])
            if similarity >= threshold and (row not in best or similarity > best[row].similarity):
                best[row] = Straddle(int(block.items[row]), int(held[other]), similarity)
    return list(best.values())


def _rarest(found: U64, counts: NDArray[np.uint16], threshold: float) -> U64:
    """The rarest n-grams of a set, as many as it takes to have `COMMON` in common with every set alike."""
    length = len(found) - int(np.ceil(threshold * len(found) - ROUNDING)) + COMMON
    # one order for all sets: by counter, then by the hash, in which a set is sorted already
    return found[np.argsort(counts[_counters(found)], kind="stable")[:length]]


def _rows_of(parts: list[U64]) -> I64:
    return np.repeat(np.arange(len(parts)), [len(part) for part in parts])


def _counters(hashes: U64) -> I64:
    return (hashes % np.uint64(COUNTERS)).astype(np.int64)
