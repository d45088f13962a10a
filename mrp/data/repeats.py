"""Near-duplicates: which texts repeat an earlier one, found by the band keys of `near.py` and verified exactly.

    bands = [np.load(path, mmap_mode="r") for path in files]          # one array of keys a band, one key an item
    found = near_duplicates(bands, load_text, 0.8, scratch=folder)
    found.dropped[0], found.first[0], found.similarity[0]             # item 731 repeats item 12 at 0.93
    labels = near_groups(bands, load_text, 0.7)                       # nothing dropped: who must stay together

The result is that of going through the items in order and dropping each that is at least `threshold` like a kept one
before it, of those that share a band with it. So the first is always the one kept, a dropped item names a kept one,
and no chain of small changes leads away. It does not depend on blocks, workers or the machine.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mrp.data.groups import I64, U64, Items, connected, first_of_equal, index_type, is_shared
from mrp.data.near import jaccard, ngrams
from mrp.report import SILENT, Reporter

Load: TypeAlias = Callable[[int], str]  # the text of an item; with workers it is pickled
Pair: TypeAlias = tuple[int, int]  # the earlier item, the later one

REPRESENTATIVES = 4  # kept members of a bucket, besides its first, that later ones are compared with
BLOCK = 2**13  # items decided together
PAIRS_AT_ONCE = 256  # texts of as many pairs are held at a time
WORTH_WORKERS = 4096  # pairs: fewer are sooner compared than processes started


@dataclass(frozen=True, slots=True)
class Repeats:
    """Items that repeat an earlier one, in order: which, the kept item that each repeats, and how alike they are."""

    dropped: I64
    first: I64
    similarity: NDArray[np.float64]


def near_duplicates(
    bands: Sequence[U64],
    load: Load,
    threshold: float,
    scratch: Path | None = None,
    workers: int = 1,
    report: Reporter = SILENT,
) -> Repeats:
    """The items that are at least `threshold` like a kept one before them (exact Jaccard of their n-grams).

    `bands` holds one array of keys a band, all of one length. In a bucket of many items each is compared with the
    bucket's first and `REPRESENTATIVES` more kept ones, so equal texts cost one comparison each. With `scratch` the
    buckets of all bands (4 bytes an item and band) lie in a folder there while it runs, else in memory.
    """
    count = len(bands[0]) if bands else 0
    with _buckets(bands, scratch) as firsts, Verifier(load, workers) as verify:
        shared = np.zeros(count, np.bool_)
        for first in firsts:
            shared |= is_shared(first)
        items = np.flatnonzero(shared)
        sweep = _Sweep(count, threshold, verify)
        with report.progress("near-duplicates", len(items), "items") as show:
            for start in range(0, len(items), BLOCK):
                block = items[start : start + BLOCK]
                sweep.decide(block.tolist(), np.stack([first[block] for first in firsts], axis=1).tolist())
                show(start + len(block))
    return sweep.repeats()


def near_groups(
    bands: Sequence[U64],
    load: Load,
    threshold: float,
    labels: Items | None = None,
    workers: int = 1,
    report: Reporter = SILENT,
) -> Items:
    """The group of each item, named by its smallest member: items at least `threshold` alike are together, and whoever
    they are alike with. Nothing is dropped.

    Of a bucket each member is compared with the first and with `REPRESENTATIVES` before it, unless they are in one
    group already. `labels` are groups to go on from (`groups.components` of other keys); they are changed.
    """
    count = len(bands[0]) if bands else 0
    labels = connected((), count, labels)
    with Verifier(load, workers) as verify, report.progress("groups of near-duplicates", len(bands), "bands") as show:
        for number, band in enumerate(bands, 1):
            for earlier, later in _neighbours(first_of_equal(band)):
                apart = np.flatnonzero(labels[earlier] != labels[later])
                pairs = np.stack((earlier[apart], later[apart]), axis=1)
                alike = pairs[verify.many(pairs) >= threshold]
                labels = connected([(alike[:, 0], alike[:, 1])], count, labels)
            show(number)
    return labels


class Verifier:
    """Exact similarities of pairs of items, by processes where there are many; use it in a `with` block."""

    def __init__(self, load: Load, workers: int = 1) -> None:
        self._load, self._workers = load, workers
        self._pool: ProcessPoolExecutor | None = None
        self._open = ExitStack()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def many(self, pairs: Sequence[Pair] | I64) -> NDArray[np.float64]:
        """The Jaccard similarity of each pair, (pairs, 2)."""
        rows = np.asarray(pairs, np.int64).reshape(-1, 2)
        result = np.empty(len(rows))
        for begin in range(0, len(rows), BLOCK):  # so many wait at a time
            part = rows[begin : begin + BLOCK].tolist()
            chunks = [part[start : start + PAIRS_AT_ONCE] for start in range(0, len(part), PAIRS_AT_ONCE)]
            found: Iterable[list[float]]
            if self._workers > 1 and len(rows) >= WORTH_WORKERS:
                found = self._processes().map(_similarities_in_worker, chunks)
            else:
                found = (similarities(self._load, chunk) for chunk in chunks)
            result[begin : begin + len(part)] = [value for chunk in found for value in chunk]
        return result

    def _processes(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(self._workers, context, initializer=_start_worker, initargs=(self._load,))
            self._pool = self._open.enter_context(pool)
        return self._pool


def similarities(load: Load, pairs: Sequence[Pair]) -> list[float]:
    """The exact Jaccard similarity of each pair, each text loaded once."""
    items = sorted({item for pair in pairs for item in pair})
    found = ngrams([load(item) for item in items])
    sets = {item: found.of(place) for place, item in enumerate(items)}
    return [jaccard(sets[a], sets[b]) for a, b in pairs]


class _Sweep:
    """What is decided so far: who is kept, and further kept members of buckets whose first is not enough."""

    def __init__(self, count: int, threshold: float, verify: Verifier) -> None:
        self._count, self._threshold, self._verify = count, threshold, verify
        self._dropped = np.zeros(count, np.bool_)
        self._further: dict[int, tuple[int, ...]] = {}  # band * count + first -> kept members
        self._found: list[Repeats] = []

    def decide(self, items: list[int], rows: list[list[int]]) -> None:
        """Decide the next items; row k has the first member of each bucket that `items[k]` is in."""
        known: dict[Pair, float] = {}
        while True:
            repeats, further, unknown = self._tried(items, rows, known)
            if not unknown:
                break
            known.update(zip(unknown, self._verify.many(unknown).tolist(), strict=True))
        self._further.update(further)
        self._dropped[list(repeats)] = True
        alike = [known[first, item] for item, first in repeats.items()]
        self._found.append(_repeats(list(repeats), list(repeats.values()), alike))

    def repeats(self) -> Repeats:
        found = [_repeats([], [], []), *self._found]
        return Repeats(
            np.concatenate([part.dropped for part in found]),
            np.concatenate([part.first for part in found]),
            np.concatenate([part.similarity for part in found]),
        )

    def _tried(
        self, items: list[int], rows: list[list[int]], known: dict[Pair, float]
    ) -> tuple[dict[int, int], dict[int, tuple[int, ...]], list[Pair]]:
        """Dropped item -> kept item, and the buckets' new members, as far as known pairs tell; and the pairs wanting.

        An item with a pair wanting counts as dropped for now, as most are. So what follows is right as soon as nothing
        is wanting, and each try settles at least the first item that wanted something.
        """
        repeats: dict[int, int] = {}
        further: dict[int, tuple[int, ...]] = {}
        unknown: list[Pair] = []
        for item, row in zip(items, rows, strict=True):
            buckets = [(band * self._count + first, first) for band, first in enumerate(row) if first != item]
            if not buckets:
                continue
            candidates = {first for _, first in buckets if not self._dropped[first] and first not in repeats}
            for key, _ in buckets:
                candidates.update(further.get(key) or self._further.get(key, ()))
            wanting = False
            for candidate in sorted(candidates):
                similarity = known.get((candidate, item))
                if similarity is None:
                    unknown.append((candidate, item))
                    wanting = True
                elif similarity >= self._threshold:
                    repeats[item] = candidate
                    break
            if wanting:
                repeats.setdefault(item, -1)
            elif item not in repeats:
                for key, _ in buckets:
                    members = further.get(key) or self._further.get(key, ())
                    if len(members) < REPRESENTATIVES:
                        further[key] = (*members, item)
        return repeats, further, unknown


def _repeats(dropped: list[int], first: list[int], similarity: list[float]) -> Repeats:
    return Repeats(np.array(dropped, np.int64), np.array(first, np.int64), np.array(similarity, np.float64))


@contextmanager
def _buckets(bands: Sequence[U64], scratch: Path | None) -> Iterator[list[Items]]:
    """`first_of_equal` of each band: in memory, or in files of a temporary folder in `scratch`."""
    if scratch is None:
        yield [first_of_equal(band) for band in bands]
        return
    with TemporaryDirectory(prefix="buckets-", dir=scratch, ignore_cleanup_errors=True) as folder:
        found: list[Items] = []
        for number, band in enumerate(bands):
            path = Path(folder) / f"{number}.npy"
            np.save(path, first_of_equal(band))
            found.append(np.load(path, mmap_mode="r") if len(band) else np.empty(0, index_type(0)))
        yield found
        found.clear()  # before the folder goes: an open map keeps it on some systems


def _neighbours(first: Items) -> Iterator[tuple[I64, I64]]:
    """Pairs of members of one bucket, earlier and later: with its first, and with those just before."""
    members = np.flatnonzero(is_shared(first))
    members = members[np.argsort(first[members], kind="stable")]  # bucket by bucket, each in order
    bucket = first[members].astype(np.int64)
    later = bucket != members
    yield bucket[later], members[later]
    for back in range(1, REPRESENTATIVES + 1):
        same = (bucket[back:] == bucket[:-back]) & (members[:-back] != bucket[back:])
        yield members[:-back][same], members[back:][same]


_worker_load: Load | None = None


def _start_worker(load: Load) -> None:
    global _worker_load
    _worker_load = load


def _similarities_in_worker(pairs: Sequence[Pair]) -> list[float]:
    assert _worker_load is not None
    return similarities(_worker_load, pairs)
