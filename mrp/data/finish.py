"""From the parts of all chunks to a finished data set: decide, split, choose, order, write, tell.

    manifest = finish(run, maker, scanned, folders, out, mark, report)

Called by `build.py` for a build of one machine and for the shards of several; both give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrp.cast import PLAIN
from mrp.config import Run
from mrp.data.assemble import Lines, SampleTable, place, write_rejected
from mrp.data.decide import NUMBER, Decided, Table, decide, leaks, split_scenes
from mrp.data.manifest import HELD_OUT, MANIFEST, REJECTED, TRAIN, Outcome, make_manifest, tell
from mrp.data.order import mixed, permutation
from mrp.data.part import MADE, Part, PartMaker, PartWriter
from mrp.data.read import ReadLine
from mrp.data.samples import order_key
from mrp.data.select import with_copies
from mrp.data.sources import Scanned
from mrp.errors import InputError, MrpError, raise_all
from mrp.files import write_json
from mrp.report import SILENT, Reporter

PROVABLE = 1_000_000  # scenes, up to which the exact search takes some minutes (docs/benchmarks.md)
Ints = NDArray[np.integer[Any]]
Keys = NDArray[np.uint64]


def finish(
    run: Run,
    maker: PartMaker,
    scanned: Scanned,
    folders: Sequence[Path],
    out: Path,
    mark: str,
    report: Reporter = SILENT,
) -> dict[str, Any]:
    """Write the data set into the folder `out` (new files) and give back its manifest.

    Raises `InputError` for files that cannot be used, and naming each character without a usable line.
    """
    options, seed = run.config.data, run.config.seed
    parts = [Part(folder) for folder in folders]
    raise_all(f"{run.cast_path.name}: dialogue files", file_faults(maker, parts))
    if options.identity:
        parts.append(_identity_part(out / ".parts" / MADE, maker))
    table = Table(parts)
    decided = decide(table, options, seed, len(run.cast.characters), out, report)
    raise_all(run.cast_path.name, silent_characters(run, table, decided))
    split_scenes(table, decided, options, seed, report)
    proven = _no_leak(table, decided, run, maker, report)
    samples = SampleTable(table, decided.renamed)
    ordering = _Ordering(run, table, decided, samples, report)
    sizes = {}
    written = {}
    with ThreadPoolExecutor(1) as beside:  # while samples wait for the disk
        rejected = beside.submit(write_rejected, out / REJECTED, table, decided, maker.files)
        for name, lines in ((TRAIN, ordering.train), (HELD_OUT, ordering.held_out)):
            total = int(samples.length[lines.row].sum(dtype=np.int64))
            with report.progress(f"writing {name}", total, "B") as update:
                written[name] = samples.write(out / name, lines, update)
            sizes[name] = lines
        written[REJECTED] = rejected.result()
    outcome = Outcome(table, decided, sizes[TRAIN], sizes[HELD_OUT], ordering.factors, ordering.identity, proven)
    manifest = make_manifest(run, maker, scanned.hashes, outcome)
    manifest["outputs"] = {name: {"sha256": sha} for name, sha in written.items()}
    manifest["fingerprint"] = mark
    write_json(out / MANIFEST, manifest)
    tell(run, manifest, out / REJECTED, report)
    return manifest


class _Ordering:
    """Which samples are on either side, in the order of writing."""

    def __init__(self, run: Run, table: Table, decided: Decided, samples: SampleTable, report: Reporter) -> None:
        self.names, self.report = [c.id for c in run.cast], report
        self.options, self.seed = run.config.data, run.config.seed
        self.characters = len(run.cast.characters)
        self.scene = samples.scene
        self.character = table.column("samples", "character")
        self.key = table.column("samples", "key")
        names = [*(c.id for c in run.cast), PLAIN]
        for row in np.flatnonzero(np.isin(self.scene, list(decided.renamed))).tolist() if decided.renamed else ():
            renamed = f"{decided.renamed[int(self.scene[row])]}@{names[int(self.character[row])]}"
            self.key[row] = order_key(self.seed, 0, renamed)
        made = table.made[self.scene]
        held = decided.held[self.scene] & decided.shown
        own = decided.shown & ~held & ~made
        self.identity, asked = self._identity(own, decided.shown & made)
        rows = np.flatnonzero(own & (self.character < self.characters)).astype(NUMBER)
        chosen, self.factors = with_copies(self.character[rows], self.key[rows], self.options.upsample)
        beside = np.flatnonzero(asked | (own & (self.character == self.characters))).astype(NUMBER)
        trained = np.concatenate([rows[chosen.number], beside])
        self.train = self._ordered(trained, np.concatenate([chosen.copy, np.ones(len(beside), np.uint16)]))
        kept_aside = np.flatnonzero(held).astype(NUMBER)
        self.held_out = self._ordered(kept_aside, np.ones(len(kept_aside), np.uint16))

    def _identity(self, own: NDArray[np.bool_], made: NDArray[np.bool_]) -> tuple[dict[int, int], NDArray[np.bool_]]:
        """How many identity samples each character has room for, and which they are: the first ones of each."""
        counts: dict[int, int] = {}
        asked = np.zeros(len(own), bool)
        for character in range(self.characters):
            theirs = np.flatnonzero(made & (self.character == character))
            wanted = int(self.options.identity * np.count_nonzero(own & (self.character == character)) + 0.5)
            asked[theirs[:wanted]] = True
            counts[character] = min(wanted, len(theirs))
            if wanted > len(theirs):
                what = f"{wanted} identity questions are asked for {self.names[character]} by data.identity"
                self.report.warn(f"{what}, and {len(theirs)} exist: each is taken once")
        return counts, asked

    def _ordered(self, row: Ints, copy: Ints) -> Lines:
        natural = np.lexsort((self.scene[row], copy, self.character[row]))
        row, copy = row[natural], copy[natural]
        key = self.key[row]
        for number in np.unique(copy[copy > 1]).tolist():
            mine = copy == number
            key[mine] = mixed(key[mine], number)
        found = permutation(self.options.order, self.character[row], key, self.options.replay)
        return Lines(row[found], copy[found])


def file_faults(maker: PartMaker, parts: Iterable[Part]) -> list[MrpError]:
    """A fault for each file that broke off in reading, or has no line at all."""
    faults: list[MrpError] = []
    lines = [0] * len(maker.files)
    for part in parts:
        lines[part.file] += part.counts.lines
        if part.fault:
            faults.append(part.fault)
            lines[part.file] += 1
    for file, count in zip(maker.files, lines, strict=True):
        if not count:
            fix = "put dialogues in it, or take it out of `dialogues:`"
            faults.append(InputError(f"the file is empty: {file.name}", str(file.path), fix))
    return faults


def silent_characters(run: Run, table: Table, decided: Decided) -> list[MrpError]:
    """A fault for each character of the cast without a sample that is used."""
    character, made = table.column("samples", "character"), table.made[table.scene_numbers("samples")]
    heard = set(np.unique(character[decided.shown & ~made]).tolist())
    fix = "list files with its lines under `dialogues:` (`mrp data check` shows what was rejected), or take it out"
    return [
        InputError(f"the character {c.id!r} has no usable line", f"{run.cast_path}, {c.id}", fix)
        for k, c in enumerate(run.cast)
        if k not in heard
    ]


def _identity_part(folder: Path, maker: PartMaker) -> Part:
    """Identity questions of all characters as one more part."""
    from collections import Counter

    from msgspec.structs import replace

    from mrp.data.identity import identity_scenes

    assert maker.cast is not None
    with PartWriter(folder, maker, len(maker.files)) as writer:
        number = 0
        for character in maker.cast:
            for scene in identity_scenes(maker.cast, character.id, "train"):
                number += 1
                writer.add(ReadLine("", replace(scene, source=f"{MADE}:{number}"), Counter()))
    return Part(folder)


def _no_leak(table: Table, decided: Decided, run: Run, maker: PartMaker, report: Reporter) -> bool:
    """Prove that a strict split is one: no two scenes that are alike lie on either side. False if it was not tried."""
    if run.config.data.split != "strict" or not decided.held.any() or table.size > PROVABLE:
        return False
    used = decided.kept & ~table.made
    found = leaks(table, decided, used & ~decided.held, report)
    moved = len(found)
    names = ", ".join(place(table, held, maker.files) for _, held in found[:3])
    while found:  # MinHash misses a few pairs in a hundred: what the exact search finds goes to training
        goes = np.isin(decided.group, decided.group[[held for _, held in found]]) & decided.held
        decided.held[goes] = False
        found = leaks(table, decided, goes)  # all others were looked at before
    if moved:
        report.line(f"split: {moved} held-out scenes are like trained ones by a hair; they are trained too: {names}")
    return True
