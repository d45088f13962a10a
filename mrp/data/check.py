"""Everything that is wrong or odd in dialogue files, in one pass, with file and line.

report = check_data([Path("wukong.jsonl")], cast)
report.ok, report.counts, [str(fault.as_error()) for fault in report.faults]

The files are read as for building (`gather.py`), so both see the same faults; nothing is written but what is asked for:
a repaired copy (`fix`). `report_page.py` makes a page of the report.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mrp.cast import Cast
from mrp.config import DataOptions, load_run
from mrp.data.assemble import Lines, SampleTable, place, rejected_lines
from mrp.data.decide import DUPLICATE, KEPT, NEAR_DUPLICATE, Decided, Table, drop_repeats
from mrp.data.gather import gather
from mrp.data.groups import first_of_equal
from mrp.data.hub import local_files
from mrp.data.lint import Example
from mrp.data.part import FOUND, REPEATED_SYSTEM, Part, PartMaker
from mrp.data.record import Rejected
from mrp.data.sources import DialogueFile, dialogue_files, scan_readable
from mrp.data.tally import Tally
from mrp.errors import SHOWN_FAULTS, InputError, MrpError
from mrp.files import replacing_binary
from mrp.report import SILENT, Reporter

SHOWN_EXAMPLES = 3  # of each kind of finding
NEAR = "near"  # kinds of repeats that are counted besides equal scenes, which are rejected
SAME_QUESTION = "same-question"


@dataclass(slots=True)
class CheckReport:
    """What a check found. `lines` is `kept` plus all of `counts`; `problems` concern whole files or characters.

    `faults` are the first rejected lines, `examples` the first findings of each reason; the counts are of all.
    """

    lines: int = 0
    kept: int = 0
    counts: Counter[str] = field(default_factory=Counter)  # rejected lines by reason
    dropped: Counter[str] = field(default_factory=Counter)  # lines of dialogue left out of kept lines, by kind
    formats: Counter[str] = field(default_factory=Counter)  # what the lines were understood as
    findings: Counter[str] = field(default_factory=Counter)  # what is odd in kept lines, by reason
    repeats: Counter[str] = field(default_factory=Counter)  # kept scenes that others repeat in part, by kind
    mended: Counter[str] = field(default_factory=Counter)  # what `fix` did
    written: int = 0  # scenes in the repaired copy
    faults: list[Rejected] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    problems: list[MrpError] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    cast: Cast | None = None  # of the run that was checked

    @property
    def ok(self) -> bool:
        """Nothing was rejected, and no file or character is without use. Findings do not count."""
        return not self.counts and not self.problems

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "lines": self.lines,
            "kept": self.kept,
            "rejected": dict(sorted(self.counts.items())),
            "dropped_turns": dict(sorted(self.dropped.items())),
            "formats": dict(sorted(self.formats.items())),
            "findings": dict(sorted(self.findings.items())),
            "repeats": dict(sorted(self.repeats.items())),
            "mended": dict(sorted(self.mended.items())),
            "written": self.written,
            "balance": {word: list(balance) for word, balance in self.tally.balance().items()},
            "imbalance": [finding.detail for finding in self.tally.imbalances()],
            "faults": [fault.as_json() for fault in self.faults],
            "examples": [{"source": e.source, "reason": e.reason, "detail": e.detail} for e in self.examples],
            "problems": [problem.as_json() for problem in self.problems],
        }


def check_data(
    paths: Sequence[Path],
    cast: Cast | None = None,
    *,
    columns: Sequence[str] = (),
    max_errors: int = SHOWN_FAULTS,
    fix: Path | None = None,
    report: Reporter = SILENT,
) -> CheckReport:
    """Check dialogue files, and all files of any run (run file or folder) among `paths`.

    The files of a run are checked against its cast, others against `cast`; without one, the speakers named in the
    data are taken as they are. `fix` is a file for a repaired copy of all lines that can be used, in our own format.
    Raises only for a run file or cast that cannot be read, and where `fix` is one of the files.
    """
    check = _Check(max_errors, fix, report)
    groups: list[tuple[list[DialogueFile], Cast | None, DataOptions, int, Path | None]] = []
    loose: list[DialogueFile] = []
    for path in paths:
        if path.is_dir() or path.suffix in (".yaml", ".yml"):
            run = load_run(path)
            check.found.cast = run.cast
            groups.append((dialogue_files(run), run.cast, run.config.data, run.config.train.max_tokens, run.cast_path))
        else:
            loose += [DialogueFile(name, local) for name, local in local_files([path], report)]
    if loose:
        groups.append((loose, cast, DataOptions(columns=list(columns)), 0, None))
    if fix is not None:
        _must_be_another(fix, [file.path for files, *_ in groups for file in files])
    check.all(groups)
    return check.found


class _Check:
    """A check in work: one group of files after the other, each against its cast."""

    def __init__(self, max_errors: int, fix: Path | None, report: Reporter) -> None:
        self.found = CheckReport()
        self.max_errors, self.fix, self.report = max_errors, fix, report

    def all(self, groups: Sequence[tuple[list[DialogueFile], Cast | None, DataOptions, int, Path | None]]) -> None:
        with tempfile.TemporaryDirectory(prefix="mrp-check-") as folder:
            if self.fix is None:
                for number, group in enumerate(groups):
                    self._group(Path(folder) / str(number), *group)
                return
            with replacing_binary(self.fix) as out:
                for number, group in enumerate(groups):
                    table, decided = self._group(Path(folder) / str(number), *group)
                    copy = Path(folder) / "copy.jsonl"
                    lines = _kept_lines(table, decided)
                    self.found.written += len(lines.row)
                    SampleTable(table, {}).write(copy, lines)
                    with copy.open("rb") as written:
                        while block := written.read(2**20):
                            out.write(block)
                    copy.unlink()

    def _group(
        self,
        folder: Path,
        files: list[DialogueFile],
        cast: Cast | None,
        options: DataOptions,
        max_tokens: int,
        cast_path: Path | None,
    ) -> tuple[Table, Decided]:
        scanned, faults = scan_readable(files, self.report)
        self.found.problems += faults
        maker = PartMaker(files, cast, options, 0, True, self.fix is not None, max_tokens)
        folder.mkdir()
        parts = [Part(p) for p in gather(maker, scanned, range(len(scanned.chunks)), folder, self.report)]
        self.found.problems += _file_problems(files, scanned.hashes, parts)
        table = Table(parts)
        decided = drop_repeats(table, options, folder, self.report)
        self._count(table, decided)
        self._examples(table, decided, files)
        self._repeats(table, decided, options, folder, files)
        if cast is not None and cast_path is not None:
            self.found.problems += _silent(cast, cast_path, parts)
        return table, decided

    def _count(self, table: Table, decided: Decided) -> None:
        found = self.found
        for part, start, end in zip(table.parts, table.starts[:-1], table.starts[1:], strict=True):
            found.lines += part.counts.lines
            found.counts += part.counts.rejected
            found.formats += part.counts.formats
            found.mended += part.counts.mended
            found.tally.merge(part.tally)
            reason = decided.reason[start:end]
            found.kept += int(np.count_nonzero(reason == KEPT))
            found.counts += decided.counts(reason)
            for kind, count in part.note_totals(reason == KEPT).items():
                (found.findings if kind.startswith(FOUND) else found.dropped)[kind.removeprefix(FOUND)] += count
            with_it = part.note_scenes(FOUND + REPEATED_SYSTEM, reason == KEPT)
            found.tally.findings[REPEATED_SYSTEM] += with_it
            found.tally.scenes_with[REPEATED_SYSTEM] += with_it
        found.tally.findings += Counter()
        found.tally.scenes_with += Counter()
        found.tally.lines, found.tally.formats = found.lines, found.formats
        found.tally.rejected, found.tally.dropped_turns = found.counts, found.dropped

    def _examples(self, table: Table, decided: Decided, files: Sequence[DialogueFile]) -> None:
        room = self.max_errors - len(self.found.faults)
        rows = (msgspec.json.decode(line) for line in rejected_lines(table, decided, files))
        self.found.faults += [Rejected(**row) for row in islice(rows, room if self.max_errors else None)]
        shown: Counter[str] = Counter(example.reason for example in self.found.examples)
        for start, part in zip(table.starts, table.parts, strict=False):
            for scene, example in part.examples:
                if decided.reason[start + scene] == KEPT and shown[example.reason] < SHOWN_EXAMPLES:
                    shown[example.reason] += 1
                    self.found.examples.append(example)

    def _repeats(
        self, table: Table, decided: Decided, options: DataOptions, folder: Path, files: Sequence[DialogueFile]
    ) -> None:
        """Count what repeats others in part, and is kept: near-duplicates, and other answers to the same question."""
        if not table.size:
            return
        kept = np.flatnonzero(decided.kept)
        near = drop_repeats(table, options.model_copy(update={"dedupe": "near"}), folder)
        alike = kept[near.reason[kept] == NEAR_DUPLICATE]
        same = kept[near.reason[kept] == DUPLICATE]  # equal but for case, width, punctuation
        self.found.repeats += Counter({NEAR: len(alike), "normalised": len(same)})
        for scene in chain(alike[:SHOWN_EXAMPLES], same[:SHOWN_EXAMPLES]):
            other = place(table, int(near.repeats[scene]), files)
            how = f"{near.alike[scene]:.2f} like {other}" if near.alike[scene] else f"as {other} but for signs"
            self.found.examples.append(Example(place(table, int(scene), files), "repeats", how))
        question = table.keys("question")[kept]
        asked = kept[question != 0]
        first = first_of_equal(question[question != 0])
        again = np.flatnonzero(first != np.arange(len(first)))
        self.found.repeats += Counter({SAME_QUESTION: len(again)})
        for item in again[:SHOWN_EXAMPLES]:
            where = place(table, int(asked[first[item]]), files)
            example = Example(place(table, int(asked[item]), files), SAME_QUESTION, f"{where} begins with it too")
            self.found.examples.append(example)
        self.found.tally.duplicates += Counter({"exact": self.found.counts["duplicate"], **self.found.repeats})


def _kept_lines(table: Table, decided: Decided) -> Lines:
    """The scenes that a repaired copy holds, in their order."""
    rows = np.flatnonzero(decided.kept & (table.column("samples", "length") > 0))
    return Lines(rows, np.ones(len(rows), np.int64))


def _file_problems(files: Sequence[DialogueFile], hashes: Sequence[str], parts: Sequence[Part]) -> list[MrpError]:
    problems: list[MrpError] = [part.fault for part in parts if part.fault]
    broken = {part.file for part in parts if part.fault}
    lines = Counter[int]()
    for part in parts:
        lines[part.file] += part.counts.lines
    for number, (file, sha) in enumerate(zip(files, hashes, strict=True)):
        if sha and not lines[number] and number not in broken:
            problems.append(InputError(f"the file is empty: {file.name}", str(file.path), "put dialogues in it"))
    return problems


def _silent(cast: Cast, cast_path: Path, parts: Sequence[Part]) -> list[MrpError]:
    heard = {name for part in parts for name in part.tally.by_character}
    fix = "list files with its lines under `dialogues:`, or take it out"
    return [
        InputError(f"the character {c.id!r} has no usable line", f"{cast_path}, {c.id}", fix)
        for c in cast
        if c.id not in heard
    ]


def _must_be_another(fix: Path, paths: Sequence[Path]) -> None:
    if any(path.exists() and fix.exists() and path.samefile(fix) for path in paths):
        raise InputError("the repaired copy would take the place of its source", str(fix), "give it another name")
