"""Which of many items belong together, by equal keys or by pairs: whole arrays at once, in bounded memory.

    first_of_equal(keys)                      # for each item the first with the same key: itself, or what it repeats
    connected([(a, b), ...], count)           # items joined by pairs: each one's group, named by its smallest member
    components([(keys, items), ...], count)   # items that share any key, of any kind, are one group

Keys may be memory-mapped files. They are gone through once per hash range, so that what is sorted at a time stays
below `SORTED_AT_ONCE` keys however many there are, and however often one of them repeats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

U64: TypeAlias = NDArray[np.uint64]
I64: TypeAlias = NDArray[np.int64]
Items: TypeAlias = NDArray[np.signedinteger[Any]]
Keys: TypeAlias = U64 | tuple[U64, ...]

SORTED_AT_ONCE = 2**22  # keys; 4 million take some 200 MB while they are sorted
READ_AT_ONCE = 2**20
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: every bit of a key reaches the top ones


def index_type(count: int) -> type[np.signedinteger[Any]]:
    """The narrower type that numbers `count` items."""
    return np.int32 if count < 2**31 else np.int64


def first_of_equal(keys: Keys, at_once: int = SORTED_AT_ONCE) -> Items:
    """For each item the index of the first item with the same key: its own if no earlier one has it.

    `keys` is one uint64 array, or several of one length that count together ((high, low) of 128 bits).
    """
    columns = keys if isinstance(keys, tuple) else (keys,)
    count = len(columns[0])
    first = np.empty(count, index_type(count))
    ranges = -(-count // at_once)
    for part in range(ranges):
        table, places = _first_places(_in_range(columns, part, ranges))
        for at, block in _in_range(columns, part, ranges):
            first[at] = places[_rows(table, block)]
    return first


def is_shared(first: Items) -> NDArray[np.bool_]:
    """Of `first_of_equal`: which items share their key with another."""
    later: NDArray[np.bool_] = first != np.arange(len(first), dtype=first.dtype)
    shared = later.copy()
    shared[first[later]] = True
    return shared


def connected(pairs: Iterable[tuple[Items, Items]], count: int, labels: Items | None = None) -> Items:
    """The group of each of `count` items, named by its smallest member, where pairs join their two items.

    `pairs` come in chunks of two arrays, so that millions of them need no memory at once. `labels` are groups to go on
    from (they are changed). Every larger root hooks itself to the smallest root it has a pair with, and chains of
    hooks are halved until they are flat.
    """
    parent = np.arange(count, dtype=index_type(count)) if labels is None else labels
    for left, right in pairs:
        _join(parent, np.asarray(left), np.asarray(right))
    for start in range(0, count, READ_AT_ONCE):
        part = slice(start, start + READ_AT_ONCE)
        parent[part] = _roots(parent, parent[part])
    return parent


def components(keyed: Iterable[tuple[Keys, Items]], count: int, labels: Items | None = None) -> Items:
    """The group of each of `count` items, named by its smallest member, where items that share a key are together.

    Each of `keyed` is one kind of key: an array of keys, and of the item that has each. An item may have any number.
    """
    return connected((pair for keys, items in keyed for pair in key_pairs(keys, items)), count, labels)


def key_pairs(keys: Keys, items: Items) -> Iterator[tuple[Items, Items]]:
    """Pairs that join all items of one key: each with the first that has it. In chunks, for `connected`."""
    first = first_of_equal(keys)
    for start in range(0, len(first), READ_AT_ONCE):
        ahead, own = items[first[start : start + READ_AT_ONCE]], items[start : start + READ_AT_ONCE]
        differ = ahead != own
        if differ.any():
            yield ahead[differ], own[differ]


def _in_range(columns: Sequence[U64], part: int, ranges: int) -> Iterator[tuple[I64, list[U64]]]:
    """The items whose key falls into one of so many ranges, block by block: their indices and their keys."""
    for start in range(0, len(columns[0]), READ_AT_ONCE):
        block = [np.asarray(column[start : start + READ_AT_ONCE]) for column in columns]
        if ranges == 1:
            yield np.arange(start, start + len(block[0])), block
            continue
        mine = np.flatnonzero((block[0] * _SPREAD >> np.uint64(40)) % np.uint64(ranges) == part)
        yield mine + start, [column[mine] for column in block]


def _first_places(blocks: Iterable[tuple[I64, list[U64]]]) -> tuple[list[U64], I64]:
    """The different keys in order, and the index of the first item with each."""
    found = [_first_of_each(columns, at) for at, columns in blocks]  # within a block first: a key repeated a million
    if len(found) == 1:  # times takes one place
        return found[0]
    width = len(found[0][0])
    columns = [np.concatenate([block[0][k] for block in found]) for k in range(width)]
    return _first_of_each(columns, np.concatenate([block[1] for block in found]))


def _first_of_each(columns: list[U64], at: I64) -> tuple[list[U64], I64]:
    # both sorts are stable: of equal keys the earliest item stays first
    order = np.lexsort(columns[::-1]) if len(columns) > 1 else np.argsort(columns[0], kind="stable")
    columns = [column[order] for column in columns]
    new = np.ones(len(order), np.bool_)
    if len(order):
        new[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return [column[new] for column in columns], at[order[new]]


def _rows(table: list[U64], keys: list[U64]) -> I64:
    """The row of each key in a sorted table that has them all."""
    rows = np.searchsorted(table[0], keys[0]).astype(np.int64)
    for column, wanted in zip(table[1:], keys[1:], strict=True):
        while True:  # on to the next row of the same first column: hardly ever more than none
            behind = np.flatnonzero(column[rows] != wanted)
            if not len(behind):
                break
            rows[behind] += 1
    return rows


def _join(parent: Items, left: Items, right: Items) -> None:
    while True:
        left, right = _roots(parent, left), _roots(parent, right)
        apart = left != right
        if not apart.any():
            return
        left, right = left[apart], right[apart]
        high, low = np.maximum(left, right), np.minimum(left, right)
        np.minimum.at(parent, high, low)
        hooked = np.unique(high)
        _flatten(parent, hooked)
        left, right = high, low


def _flatten(parent: Items, hooked: Items) -> None:
    """Let all of `hooked` point at a root: chains among them shrink to half with each step."""
    while True:
        above = parent[parent[hooked]]
        if np.array_equal(above, parent[hooked]):
            return
        parent[hooked] = above


def _roots(parent: Items, items: Items) -> Items:
    found = parent[items]
    while True:
        above = parent[found]
        if np.array_equal(above, found):
            break
        found = above
    parent[items] = found
    return found
