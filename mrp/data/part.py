"""One chunk of the dialogue files, read and put down in a folder: what building needs of it, and nothing twice.

    maker.write(folder, chunk)                   # in any process, on any machine
    part = Part(folder)
    part.column("scenes", "line"), part.column("samples", "length"), part.counts.lines

A part holds the finished lines of all its samples, and tables (one row a scene or a sample, stored by columns) with
what deciding needs: hashes, sizes, places. So deciding (`decide.py`) looks at numbers alone, and writing
(`assemble.py`) copies lines. Between `sources.py`, which cuts the files into chunks, and `finish.py`, which brings all
parts together.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mrp.cast import PLAIN, Cast
from mrp.config import DataOptions
from mrp.data.columns import columns_given
from mrp.data.fix import repaired, scene_row
from mrp.data.formats import REPEATED
from mrp.data.keys import Keys, KeyWriter, Wanted, id_key
from mrp.data.lint import Example, Finding, Linter
from mrp.data.mix import general_fault
from mrp.data.read import ReadLine, read_lines
from mrp.data.record import SHOWN_TEXT, Rejected
from mrp.data.samples import order_key, sample_row
from mrp.data.sources import Chunk, DialogueFile
from mrp.data.tally import Tally
from mrp.data.tokens import estimated_tokens
from mrp.dialogue import Scene, Turn
from mrp.errors import InputError, MrpError

# Tables: the name and type of each column.
SCENES = {
    "line": "<u4",
    "element": "<u4",  # of several on one line, from 2; 0: the only one
    "content": "<u8",  # hash of all that a view of the scene shows: its first 64 bits
    "content_more": "<u8",  # and 64 more
    "id": "<u8",  # hash of its id
    "named": "?",  # the file gave the id
    "who": "<u8",  # hash of the characters who speak in it
}
SAMPLES = {
    "scene": "<u4",  # in its part
    "character": "<u2",  # place in the cast
    "offset": "<u4",  # of its line in the part's lines
    "length": "<u4",
    "turns": "<u4",
    "replies": "<u4",
    "turn_characters": "<u4",
    "reply_characters": "<u4",
    "tokens": "<u4",  # estimated
    "key": "<u8",  # decides its place in a shuffled order
}
REJECTS = {"line": "<u4", "element": "<u4", "offset": "<u4", "length": "<u4"}
NOTES = {"scene": "<u4", "kind": "<u2", "count": "<u4"}  # something counted of a scene
TABLES = {"scenes": SCENES, "samples": SAMPLES, "rejects": REJECTS, "notes": NOTES}

FOUND = "found:"  # before the reason of a finding, in a part's notes
REPEATED_SYSTEM = "repeated-system"  # a finding that only reading can make
EXAMPLES = 20  # of each reason in a part
MADE = "identity"  # how `source` calls what mrp makes itself
LINES, REJECTED, COUNTS = "lines.jsonl", "rejected.jsonl", "counts.json"
encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class PartMaker:
    """What every process that reads chunks needs to know.

    `looks_only` is for checking: a part then holds each scene once, as a line of our own format (mended, with `fix`),
    and counts and examples of what is odd. `max_tokens` above 0: longer scenes and replies are odd.
    """

    files: Sequence[DialogueFile]
    cast: Cast | None
    options: DataOptions
    seed: int = 0
    looks_only: bool = False
    fix: bool = False
    max_tokens: int = 0

    @property
    def wanted(self) -> Wanted:
        return Wanted(True, True, True) if self.looks_only else Wanted.by(self.options)

    def write(self, folder: Path, chunk: Chunk) -> int:
        """Read a chunk into `folder`; gives back its size in bytes."""
        file = self.files[chunk.file]
        with PartWriter(folder, self, chunk.file) as writer:
            try:
                cast = None if file.owner == PLAIN else self.cast  # general data names nobody of the cast
                for line in read_lines(
                    file.path, cast, file.owner, file.name, chunk.span, columns_given(self.options.columns)
                ):
                    writer.add(line)
            except InputError as error:
                writer.fault = error.as_json()
        return chunk.span.end - chunk.span.start if chunk.span else file.path.stat().st_size


class PartWriter:
    """Takes what was read, line by line, and writes a part; use it with `with`."""

    def __init__(self, folder: Path, maker: PartMaker, file: int) -> None:
        """`file` is the place of the file in the maker's list; one past it: what mrp makes itself."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.maker, self.file = folder, maker, file
        self.made = file == len(maker.files)
        self.general = not self.made and maker.files[file].owner == PLAIN
        self.stem = MADE if self.made else maker.files[file].path.stem
        characters = list(maker.cast) if maker.cast else []
        # Whose samples are made: general data is nobody's of the cast, and the cast's scenes are not the model's own.
        self.places = {PLAIN: len(characters)} if self.general else {c.id: k for k, c in enumerate(characters)}
        self.refused = frozenset() if self.general else frozenset(maker.options.reject)
        self.linter = Linter(maker.cast, maker.max_tokens)
        self.keys = KeyWriter(folder, maker.wanted, maker.options.similarity)
        self.tally = Tally()
        self.who: dict[frozenset[str], int] = {}  # keys of the groups of characters met so far
        self.rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in TABLES}
        self.kinds: dict[str, int] = {}  # of notes
        self.counts = PartCounts()
        self.fault: dict[str, object] | None = None
        self._examples: list[dict[str, Any]] = []
        self._lines_at = self._rejected_at = 0

    def __enter__(self) -> PartWriter:
        self._lines = (self.folder / LINES).open("wb")
        self._rejected = (self.folder / REJECTED).open("wb")
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.close()
        self._rejected.close()
        if error[0] is not None:
            return
        for name, columns in TABLES.items():
            with (self.folder / f"{name}.columns").open("wb") as file:  # one column after the other
                for values, dtype in zip(zip(*self.rows[name], strict=True), columns.values(), strict=False):
                    np.array(values, dtype).tofile(file)
        self.keys.close()
        value = self.counts.as_json() | {
            "file": self.file,
            "stem": self.stem,
            "made": self.made,
            "general": self.general,
            "kinds": list(self.kinds),
            "fault": self.fault,
        }
        if self.maker.looks_only:
            value |= {"tally": self.tally.as_json(), "examples": self._examples}
        (self.folder / COUNTS).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8", newline="\n")

    def add(self, line: ReadLine) -> None:
        """What became of a line: its scene's samples, or why it is not used."""
        self.counts.lines += 1
        if line.kind:
            self.counts.formats[line.kind] += 1
        if isinstance(line.result, Rejected):
            self._reject(line.result)
        elif self.general and (fault := general_fault(line.result)):
            self._reject(Rejected(line.result.source, "no-reply", fault, line.text[:SHOWN_TEXT]))
        else:
            self._keep(line.result, line.dropped)

    def _reject(self, rejected: Rejected) -> None:
        self.counts.rejected[rejected.reason] += 1
        text = encode(rejected.as_json()) + b"\n"
        self._rejected.write(text)
        self.rows["rejects"].append((*_place(rejected.source), self._rejected_at, len(text)))
        self._rejected_at += len(text)

    def _keep(self, scene: Scene, dropped: Counter[str]) -> None:
        number = len(self.rows["scenes"])
        line, element = _place(scene.source)
        findings = [] if self.general else self.linter.lint(scene)
        if findings and self.refused and (refused := next((f for f in findings if f.reason in self.refused), None)):
            self._reject(Rejected(scene.source, refused.reason, refused.detail, _spoken(scene)))
            return
        speakers = {turn.speaker for turn in scene.turns if turn.is_line}
        if self.maker.looks_only:
            self._look(scene, findings, number)
            characters = {speaker for speaker in speakers if self.linter.is_character(speaker)}
            unanswered = 0
        else:
            characters, unanswered = self._samples(scene, speakers, number, line, element)
        for kind, count in dropped.items():
            if kind != REPEATED:
                self._note(number, kind, count)
            elif self.maker.looks_only:
                self._note(number, FOUND + REPEATED_SYSTEM, 1)
        for finding in findings:
            self._note(number, FOUND + finding.reason, 1)
        self._note(number, "after_last_reply", unanswered)
        named = bool(scene.id)
        scene_key = id_key(scene.id or made_id(self.stem, line, element))
        if (who := self.who.get(group := frozenset(characters))) is None:
            who = self.who[group] = id_key("\n".join(sorted(group)))
        self.rows["scenes"].append((line, element, *self.keys.add(scene, characters), scene_key, named, who))

    def _samples(self, scene: Scene, speakers: set[str], number: int, line: int, element: int) -> tuple[set[str], int]:
        """Write the sample of each character; gives back who they are, and how many lines no sample shows."""
        scene_id = scene.id or made_id(self.stem, line, element)
        places = self.places
        spoken = sorted((place, speaker) for speaker in speakers if (place := places.get(speaker)) is not None)
        end = 0  # where the longest sample ends
        for place, character in spoken:
            end = max(end, self._sample(scene, character, scene_id, number, place))
        unanswered = sum(turn.is_line for turn in scene.turns[end:]) if end < len(scene.turns) else 0
        return {speaker for _, speaker in spoken}, unanswered

    def _look(self, scene: Scene, findings: list[Finding], number: int) -> None:
        """Count a scene and what is odd about it; its line is the scene itself, mended if that is asked for."""
        self.tally.add(scene, findings, self.linter.is_character)
        for finding in findings:
            if self.counts.found[finding.reason] < EXAMPLES:
                self._examples.append({"scene": number, **asdict(Example.of(scene, finding))})
            self.counts.found[finding.reason] += 1
        mended: Scene | None = scene
        if self.maker.fix:
            mended, done = repaired(scene, findings, self.linter)
            self.counts.mended += done
        text = encode(scene_row(mended)) + b"\n" if mended else b""
        self._lines.write(text)
        self.rows["samples"].append((number, 0, self._lines_at, len(text), 0, 0, 0, 0, 0, 0))
        self._lines_at += len(text)

    def _sample(self, scene: Scene, character: str, scene_id: str, number: int, place: int) -> int:
        """Write the line of a sample, and count what it shows; gives back how many turns it has."""
        turns, loss = sample_turns(scene, character)
        sample_id = f"{scene_id}@{character}"
        row = sample_row(sample_id, character, scene_id, scene, turns, loss)
        text = encode(row) + b"\n"
        shown = "".join([turn.text for turn in turns])
        own = [turn.text for turn, learnt in zip(turns, loss, strict=True) if learnt]
        said = [turn.is_line for turn in turns].count(True)
        sizes = (said, len(own), len(shown), len("".join(own)), estimated_tokens(shown))
        self._lines.write(text)
        key = order_key(self.maker.seed, 0, sample_id)
        self.rows["samples"].append((number, place, self._lines_at, len(text), *sizes, key))
        self._lines_at += len(text)
        return len(turns)

    def _note(self, scene: int, kind: str, count: int) -> None:
        if count:
            self.rows["notes"].append((scene, self.kinds.setdefault(kind, len(self.kinds)), count))


@dataclass(slots=True)
class PartCounts:
    """Counts of a part's lines, before anything is decided across parts."""

    lines: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)  # what is odd, by reason (checking only)
    mended: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        counters = {name: dict(getattr(self, name)) for name in ("rejected", "formats", "found", "mended")}
        return {"lines": self.lines, **counters}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PartCounts:
        counters = (Counter(value[name]) for name in ("rejected", "formats", "found", "mended"))
        return cls(value["lines"], *counters)


class Part:
    """A part that was written. Its tables are read from the disk when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._about = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
        self.file = int(self._about["file"])
        self.stem = str(self._about["stem"])  # what its scenes are called by
        self.made = bool(self._about["made"])  # by mrp, not read
        self.general = bool(self._about["general"])  # chat data of nobody of the cast
        self.kinds: list[str] = self._about["kinds"]
        self.counts = PartCounts.from_json(self._about)

    @property
    def fault(self) -> MrpError | None:
        found = self._about["fault"]
        return InputError(found["what"], found["where"], found["fix"]) if found else None

    @property
    def tally(self) -> Tally:
        """Of a part that was made for checking."""
        return Tally.from_json(self._about["tally"])

    @property
    def examples(self) -> list[tuple[int, Example]]:
        """Scene number and what is odd in it: the first `EXAMPLES` of each reason."""
        return [(e["scene"], Example(**{k: v for k, v in e.items() if k != "scene"})) for e in self._about["examples"]]

    def size(self, table: str) -> int:
        """Rows of a table."""
        return self._path(table).stat().st_size // _row_bytes(table)

    def column(self, table: str, name: str) -> NDArray[Any]:
        """A column of `scenes`, `samples`, `rejects` or `notes`, read from the disk."""
        rows, before = self.size(table), 0
        for column, dtype in TABLES[table].items():
            if column == name:
                return np.fromfile(self._path(table), dtype, rows, offset=before * rows)
            before += np.dtype(dtype).itemsize
        raise KeyError(name)

    def note_totals(self, used: NDArray[np.bool_]) -> Counter[str]:
        """What was noted of those scenes that are `used`, by kind."""
        kind, count, scene = (self.column("notes", name) for name in ("kind", "count", "scene"))
        shown = used[scene]
        totals = np.bincount(kind[shown], count[shown], len(self.kinds)).astype(int).tolist()
        return Counter({name: total for name, total in zip(self.kinds, totals, strict=True) if total})

    def note_scenes(self, kind: str, used: NDArray[np.bool_]) -> int:
        """Of how many scenes that are `used` something was noted."""
        if kind not in self.kinds:
            return 0
        scene = self.column("notes", "scene")[self.column("notes", "kind") == self.kinds.index(kind)]
        return int(np.count_nonzero(used[scene]))

    def _path(self, table: str) -> Path:
        return self.folder / f"{table}.columns"

    @cached_property
    def keys(self) -> Keys:
        return Keys(self.folder)

    @property
    def lines_path(self) -> Path:
        return self.folder / LINES

    @property
    def rejected_path(self) -> Path:
        return self.folder / REJECTED


def _row_bytes(table: str) -> int:
    return sum(np.dtype(dtype).itemsize for dtype in TABLES[table].values())


def sample_turns(scene: Scene, character: str) -> tuple[tuple[Turn, ...], list[bool]]:
    """What `character`'s sample of a scene shows: up to its last own line; and which lines are its own, to learn."""
    own = [turn.speaker == character and turn.is_line for turn in scene.turns]
    if not own[-1]:
        del own[len(own) - own[::-1].index(True) :]
        return scene.turns[: len(own)], own
    return scene.turns, own


def made_id(stem: str, line: int, element: int) -> str:
    """The id of a scene whose line gives none: FILE-LINE, or FILE-LINE.ELEMENT for one of several on a line."""
    return f"{stem}-{line}.{element}" if element else f"{stem}-{line}"


def _spoken(scene: Scene) -> str:
    """What is said in a scene, for the eye."""
    return "\n".join(f"{turn.speaker}: {turn.text}" for turn in scene.turns if turn.is_line)[:SHOWN_TEXT]


def _place(source: str) -> tuple[int, int]:
    """Line and element of FILE:LINE or FILE:LINE#ELEMENT."""
    line, _, element = source.rpartition(":")[2].partition("#")
    return int(line), int(element or 0)
