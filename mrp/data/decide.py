"""Which scenes are used, and on which side of the split: decided from the tables of all parts, without a text.

    decided = decide(Table(parts), run.config.data, seed, len(run.cast.characters), scratch)
    decided.reason[scene], decided.repeats[scene], decided.held[scene]

Everything is an array with a place for each scene of all parts in their order, which is the order of the files. Repeats
go first (`dedupe`), then what is not taken (`take`); what is left is split. Between `part.py` and `assemble.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrp.config import DataOptions
from mrp.data.groups import components, first_of_equal
from mrp.data.keys import ALIKE
from mrp.data.order import mixed
from mrp.data.part import Part
from mrp.data.repeats import near_duplicates, near_groups
from mrp.data.select import drawn, under_caps
from mrp.data.split import hold_out
from mrp.errors import InputError
from mrp.report import SILENT, Reporter

MOST_TELLERS = 50  # scenes with one long line that make one group; a line in more of them is a saying, or a greeting
Bools = NDArray[np.bool_]
Ints = NDArray[np.signedinteger[Any]]
NUMBER = np.int32  # of a scene or a sample; a table of 20 million takes 80 MB a column
REASONS = ("", "duplicate", "duplicate-id", "near-duplicate", "not-taken", "over-cap")
KEPT, DUPLICATE, DUPLICATE_ID, NEAR_DUPLICATE, NOT_TAKEN, OVER_CAP = range(len(REASONS))


class Table:
    """The tables of all parts as if they were one. A scene's number counts through all parts."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        sizes = [part.size("scenes") for part in parts]
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self.size = int(self.starts[-1])
        if max(self.size, sum(part.size("samples") for part in parts)) > np.iinfo(NUMBER).max:
            fix = "build it in several sets, and train on them one after the other"
            raise InputError(f"{self.size:,} scenes are too many for one data set", "the dialogue files", fix)

    def column(self, table: str, name: str) -> NDArray[Any]:
        """A column of `scenes` or `samples`, of all parts."""
        return np.concatenate([part.column(table, name) for part in self.parts] or [np.empty(0, np.int64)])

    def scene_numbers(self, table: str) -> Ints:
        """The scene of each row of `samples`, `notes` or the keys `long`, as a number through all parts."""
        starts = self.starts.astype(NUMBER)
        found = [part.column(table, "scene").astype(NUMBER) + s for s, part in zip(starts, self.parts, strict=False)]
        return np.concatenate(found or [np.empty(0, NUMBER)])

    def per_scene(self, values: Sequence[int]) -> Ints:
        """A value of each part, for each of its scenes."""
        return np.repeat(np.array(values, NUMBER), np.diff(self.starts))

    def keys(self, name: str) -> NDArray[Any]:
        return np.concatenate([part.keys.array(name) for part in self.parts if part.size("scenes")])

    @property
    def bands(self) -> int:
        return next((part.keys.array("bands").shape[1] for part in self.parts if part.size("scenes")), 0)

    def band(self, number: int) -> NDArray[np.uint64]:
        found = [part.keys.array("bands")[:, number] for part in self.parts if part.size("scenes")]
        return np.concatenate(found) if found else np.empty(0, np.uint64)

    def long_lines(self) -> tuple[NDArray[np.uint64], Ints]:
        """The key of every long line, and its scene."""
        tables = [part.keys.array("long") for part in self.parts if part.size("scenes")]
        starts = [start for start, part in zip(self.starts, self.parts, strict=False) if part.size("scenes")]
        scenes = [table["scene"].astype(NUMBER) + NUMBER(start) for start, table in zip(starts, tables, strict=True)]
        return np.concatenate([table["key"] for table in tables]), np.concatenate(scenes)

    def part_of(self, scene: int) -> tuple[Part, int]:
        """The part of a scene, and its number there."""
        number = int(np.searchsorted(self.starts, scene, side="right")) - 1
        return self.parts[number], int(scene - self.starts[number])

    def text(self, scene: int) -> str:
        part, number = self.part_of(scene)
        return part.keys.text(number)

    @cached_property
    def line(self) -> NDArray[np.uint32]:
        return self.column("scenes", "line")

    @cached_property
    def element(self) -> NDArray[np.uint32]:
        return self.column("scenes", "element")

    @cached_property
    def file(self) -> Ints:
        return self.per_scene([part.file for part in self.parts])

    @cached_property
    def general(self) -> Bools:
        """Scenes of general chat data."""
        return self.per_scene([part.general for part in self.parts]).astype(bool)

    @cached_property
    def made(self) -> Bools:
        return self.per_scene([part.made for part in self.parts]).astype(bool)


class Bands(Sequence[NDArray[np.uint64]]):
    """The MinHash band keys of some scenes, a band at a time from the disk; `also` is mixed into each scene's."""

    def __init__(self, table: Table, scenes: Ints, also: NDArray[np.uint64] | None = None) -> None:
        self.table, self.scenes, self.also = table, scenes, also

    def __len__(self) -> int:
        return self.table.bands

    def __getitem__(self, band: Any) -> Any:
        if not 0 <= band < len(self):
            raise IndexError(band)
        keys = self.table.band(band)[self.scenes]
        return keys if self.also is None else mixed(keys ^ self.also)

    def text(self, item: int) -> str:
        return self.table.text(int(self.scenes[item]))


@dataclass
class Decided:
    """What becomes of each scene: `reason` is a place in `REASONS`; `repeats` the scene it repeats, or -1."""

    reason: NDArray[np.uint8]
    repeats: Ints
    alike: NDArray[np.float32]  # of near-duplicates: how much, 0 to 1
    held: Bools
    group: Ints  # the first scene of those that must stay on one side
    shown: Bools  # of each sample: it is used, on either side
    renamed: dict[int, str] = field(default_factory=dict)  # scenes whose made id was taken
    whole: list[int] = field(default_factory=list)  # files whose head and tail meet: all of them is taken, once

    @property
    def kept(self) -> Bools:
        return np.equal(self.reason, KEPT)

    @staticmethod
    def counts(reason: NDArray[np.uint8]) -> Counter[str]:
        """How many of these scenes were left out for which reason."""
        found = np.bincount(reason, minlength=len(REASONS)).tolist()
        return Counter({name: count for name, count in zip(REASONS, found, strict=True) if name and count})


def decide(
    table: Table, options: DataOptions, seed: int, characters: int, scratch: Path, report: Reporter = SILENT
) -> Decided:
    """What becomes of every scene of a cast of so many characters; the split is not made yet (`split_scenes`).

    `scratch` is a folder for what does not fit into memory.
    """
    decided = drop_repeats(table, options, scratch, report)
    _take(table, decided, options, seed)
    _cap(table, decided, options)
    _mix(table, decided, options, characters)
    decided.renamed = _new_ids(table, decided)
    return decided


def drop_repeats(table: Table, options: DataOptions, scratch: Path, report: Reporter = SILENT) -> Decided:
    """Which scenes repeat another as `dedupe` says, and which have an id that another has; nothing else is decided."""
    decided = Decided(
        np.zeros(table.size, np.uint8),
        np.full(table.size, -1, NUMBER),
        np.zeros(table.size, np.float32),
        np.zeros(table.size, bool),
        np.arange(table.size, dtype=NUMBER),
        np.ones(0, bool),
    )
    _drop_equal(table, decided, options)
    if options.dedupe == "near":
        _drop_near(table, decided, options, report, scratch)
    return decided


def _drop_equal(table: Table, decided: Decided, options: DataOptions) -> None:
    """Mark scenes that repeat another, and those with an id that another has."""
    named = table.column("scenes", "named")
    clash = np.zeros(table.size, bool)
    while True:  # a scene whose id is taken is gone, so that others need not make way for it; rarely a second round
        first = _first(table, options, ~clash)
        repeats = first != np.arange(table.size, dtype=NUMBER)
        mine = np.flatnonzero(named & ~repeats & ~clash)
        again = mine[first_of_equal(table.column("scenes", "id")[mine]) != np.arange(len(mine))] if len(mine) else mine
        if not len(again):
            break
        clash[again] = True
    decided.reason[repeats] = DUPLICATE
    decided.repeats[repeats] = first[repeats]
    ids = table.column("scenes", "id") if clash.any() else np.empty(0, np.uint64)
    for scene in np.flatnonzero(clash):
        holder = np.flatnonzero(named & (ids == ids[scene]) & ~repeats & ~clash)
        decided.reason[scene], decided.repeats[scene] = DUPLICATE_ID, holder[0]


def _first(table: Table, options: DataOptions, counted: Bools) -> Ints:
    """For each scene the first one that it repeats by the options, itself where there is none (or not `counted`)."""
    first = np.arange(table.size, dtype=NUMBER)
    if options.dedupe == "none" or not counted.any():
        return first
    numbers = first if counted.all() else np.flatnonzero(counted).astype(NUMBER)
    keys = (table.column("scenes", "content"), table.column("scenes", "content_more"))
    content = keys if len(numbers) == table.size else tuple(column[numbers] for column in keys)
    if options.dedupe == "adjacent":
        same = np.logical_and.reduce([column[1:] == column[:-1] for column in content])
        same &= table.file[numbers][1:] == table.file[numbers][:-1]
        starts = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), np.arange(len(numbers)), 0))
        found = numbers[starts]
    else:
        found = numbers[first_of_equal(content)]
    del keys, content
    first = first.copy()
    first[numbers] = found
    if options.dedupe in ("normalised", "near"):
        left = numbers[first[numbers] == numbers]
        first[left] = left[first_of_equal(table.keys("normal")[left])]
        first[numbers] = first[first[numbers]]  # what repeats a repeat, repeats the first
    return first


def _drop_near(table: Table, decided: Decided, options: DataOptions, report: Reporter, scratch: Path) -> None:
    """Mark near-duplicates of the same characters; each names a kept scene that it is as like as the options ask."""
    kept = np.flatnonzero(decided.kept & ~table.made)
    bands = Bands(table, kept, table.column("scenes", "who")[kept])
    found = near_duplicates(bands, bands.text, options.similarity, scratch, report=report)
    dropped = kept[found.dropped]
    decided.reason[dropped] = NEAR_DUPLICATE
    decided.repeats[dropped] = kept[found.first]
    decided.alike[dropped] = found.similarity


def _take(table: Table, decided: Decided, options: DataOptions, seed: int) -> None:
    """Mark what `take` leaves out. What mrp made itself is always taken."""
    if options.take == "all":
        return
    kept = np.flatnonzero(decided.kept & ~table.made & ~table.general)
    file = table.file[kept]
    if options.take == "head-tail":
        size = np.bincount(file)
        start = np.concatenate([[0], np.cumsum(size)])[:-1]
        rank = np.arange(len(kept)) - start[file]
        taken = (rank < options.head) | (rank >= size[file] - options.tail)
        decided.whole = np.flatnonzero((size > 0) & (size < options.head + options.tail)).tolist()
    else:
        key = mixed(table.column("scenes", "id")[kept], seed + 2)
        quota = _quotas(np.bincount(file), options.sample) if options.take == "stratified" else None
        taken = np.zeros(len(kept), bool)
        if quota is None:
            taken[np.argsort(key, kind="stable")[: options.sample]] = True
        else:
            for number, count in enumerate(quota):
                mine = np.flatnonzero(file == number)
                taken[mine[np.argsort(key[mine], kind="stable")[:count]]] = True
    decided.reason[kept[~taken]] = NOT_TAKEN


def _cap(table: Table, decided: Decided, options: DataOptions) -> None:
    """Choose the samples that stay under the caps; a scene without any left is gone."""
    scene, character = table.scene_numbers("samples"), table.column("samples", "character")
    decided.shown = decided.kept[scene]
    if not (options.cap_samples or options.cap_turns or options.cap_tokens):
        return
    capped = np.flatnonzero(decided.shown & ~table.made[scene] & ~table.general[scene])
    key, turns, tokens = (table.column("samples", name)[capped] for name in ("key", "turns", "tokens"))
    decided.shown[capped] = under_caps(character[capped], key, turns, tokens, options)
    left = np.zeros(table.size, bool)
    left[scene[decided.shown]] = True
    decided.reason[decided.kept & ~left] = OVER_CAP


def _mix(table: Table, decided: Decided, options: DataOptions, characters: int) -> None:
    """Choose as many general samples as the options ask for beside the cast's."""
    if not table.general.any():
        return
    scene, character = table.scene_numbers("samples"), table.column("samples", "character")
    own = int(np.count_nonzero(decided.shown & ~table.made[scene] & (character < characters)))
    general = np.flatnonzero(decided.shown & (character == characters))
    wanted = int(options.mix * own + 0.5)
    taken = general[drawn(table.column("samples", "key")[general], wanted)]
    gone = np.setdiff1d(general, taken)
    decided.shown[gone] = False
    decided.reason[scene[gone]] = NOT_TAKEN


def _quotas(sizes: Ints, wanted: int) -> list[int]:
    """`wanted` shared out in proportion to `sizes`: whole parts first, then the largest remainders."""
    total = int(sizes.sum())
    wanted = min(wanted, total)
    exact = sizes * wanted / max(total, 1)
    quota = np.floor(exact).astype(np.int64)
    order = np.lexsort((np.arange(len(sizes)), -(exact - quota)))
    quota[order[: wanted - int(quota.sum())]] += 1
    return [int(q) for q in quota]


def _new_ids(table: Table, decided: Decided) -> dict[int, str]:
    """New ids (ID.2, ID.3, ...) for kept scenes whose made id another one has. Ids that files give go first."""
    stems = [stem for _, stem in {(part.file, part.stem) for part in table.parts}]
    if not table.column("scenes", "named").any() and len(set(stems)) == len(stems):
        return {}  # FILE-LINE is another one for each scene
    kept = np.flatnonzero(decided.kept)
    ids, named = table.column("scenes", "id")[kept], table.column("scenes", "named")[kept]
    first_named = np.argsort(~named, kind="stable")  # given ids, then made ones, each in order
    again = np.empty(len(kept), bool)
    again[first_named] = first_of_equal(ids[first_named]) != np.arange(len(kept))
    clashing = np.flatnonzero(again)
    if not len(clashing):
        return {}
    from mrp.data.assemble import scene_id
    from mrp.data.keys import id_key

    taken = set(ids.tolist())
    renamed: dict[int, str] = {}
    for place in clashing:
        old = scene_id(table, int(kept[place]))
        count = 2
        while id_key(new := f"{old}.{count}") in taken:
            count += 1
        taken.add(id_key(new))
        renamed[int(kept[place])] = new
    return renamed


def split_scenes(table: Table, decided: Decided, options: DataOptions, seed: int, report: Reporter = SILENT) -> None:
    """Choose the scenes to hold out (`decided.held`), of those that are kept; what mrp made itself is trained."""
    if options.held_out <= 0:
        return
    open_ = decided.kept & ~table.made
    if options.split == "strict":
        decided.group = _groups(table, open_, report)
    scene = table.scene_numbers("samples")
    shown = open_[scene] & decided.shown
    unit, character = decided.group[scene[shown]], table.column("samples", "character")[shown]
    del scene, shown
    chosen = hold_out(unit, character, mixed(table.column("scenes", "id"), seed), options.held_out)
    decided.held = np.isin(decided.group, chosen) & open_


def _groups(table: Table, open_: Bools, report: Reporter) -> Ints:
    """For each scene the first of those that must stay on its side of the split (of the scenes in `open_`)."""
    numbers = np.flatnonzero(open_).astype(NUMBER)
    question = table.keys("question")[numbers]
    asked = question != 0
    keys, scenes = table.long_lines()
    told = np.flatnonzero(open_[scenes])
    keys, scenes = keys[told], scenes[told]
    first = first_of_equal(keys)
    rare = np.bincount(first, minlength=len(first))[first] <= MOST_TELLERS
    same = components([(question[asked], numbers[asked]), (keys[rare], scenes[rare])], table.size)
    labels = np.searchsorted(numbers, same[numbers])  # groups by number among `numbers`; the first is one of them
    bands = Bands(table, numbers)
    near = near_groups(bands, bands.text, ALIKE, labels, report=report)
    group = np.arange(table.size, dtype=NUMBER)
    group[numbers] = numbers[near]
    return group


def leaks(table: Table, decided: Decided, trained: Bools, report: Reporter = SILENT) -> list[tuple[int, int]]:
    """Pairs of scenes that are alike, one of them `trained` and one held out; [] after a strict split."""
    from mrp.data.leaks import straddling

    sides = np.where(decided.held, 1, np.where(trained, 0, -1))
    return [(pair.train, pair.held_out) for pair in straddling(sides, table.text, ALIKE, report)]
