"""The files of a built data set, put together from the lines of parts: in any order, in bounded memory.

    sha256 = SampleTable(table, decided.renamed).write(folder / "train.jsonl", lines)

Lines are copied, not made again. Those of a large set are first dealt out to buckets by where they go, part after
part, and then each bucket is put in order in memory: the disk is read and written from one end to the other.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mrp.data.decide import DUPLICATE, DUPLICATE_ID, KEPT, NEAR_DUPLICATE, NUMBER, REASONS, Decided, Table
from mrp.data.part import Part
from mrp.data.record import SHOWN_TEXT
from mrp.data.sources import DialogueFile
from mrp.report import Progress

Ints = NDArray[np.integer[Any]]
BUCKET_BYTES = 2**26  # of lines put in order at once
WAITING = 4  # things for the thread that writes
decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode


class Behind:
    """Does one thing after another in a thread of its own, while the caller goes on; use it with `with`.

    Writing and hashing let other threads run. At most `WAITING` things wait, so what they hold stays bounded.
    """

    def __enter__(self) -> Behind:
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[object]] = deque()
        return self

    def __exit__(self, *error: object) -> None:
        with self._pool:
            if error[0] is None:
                self.finish()
            self._pool.shutdown(cancel_futures=True)

    def do(self, act: Callable[[bytes], object], data: bytes) -> None:
        """`act(data)`, after all that was asked before. What an earlier one raised is raised here."""
        if len(self._waiting) == WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(act, data))

    def finish(self) -> None:
        """Wait until all is done; raises what was raised there."""
        while self._waiting:
            self._waiting.popleft().result()


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines to write, in the order of writing: rows of the table `samples`, each with its copy (1: itself)."""

    row: Ints
    copy: Ints


class SampleTable:
    """The samples of all parts: which part and bytes each row's line has. Rows count through all parts."""

    def __init__(self, table: Table, renamed: dict[int, str]) -> None:
        self.table, self.renamed = table, renamed
        sizes = [part.size("samples") for part in table.parts]
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self.length = table.column("samples", "length")
        self.scene = table.scene_numbers("samples")

    def write(self, path: Path, lines: Lines, progress: Progress | None = None) -> str:
        """Write the lines to `path`, which must be new; gives back its SHA-256."""
        digest = hashlib.sha256()
        size = int(self.length[lines.row].sum(dtype=np.int64))
        buckets = max(1, -(-size // BUCKET_BYTES))
        done = 0
        with (
            path.open("wb") as file,
            tempfile.TemporaryDirectory(prefix=".mrp-", dir=path.parent) as folder,
            Behind() as behind,
        ):
            for texts in self._in_buckets(lines, buckets, Path(folder), behind):
                whole = b"".join(texts)
                behind.do(digest.update, whole)
                behind.do(file.write, whole)
                done += len(whole)
                if progress:
                    progress(done)
        return digest.hexdigest()

    def _in_buckets(self, lines: Lines, buckets: int, folder: Path, behind: Behind) -> Iterator[list[bytes]]:
        """The texts of each bucket, in order."""
        if buckets == 1:
            found: list[bytes] = [b""] * len(lines.row)
            for places, texts in self._by_part(lines):
                for at, text in zip(places.tolist(), texts, strict=True):
                    found[at] = text
            yield found
            return
        files = [(folder / f"{k}").open("w+b") for k in range(buckets)]
        where: list[list[Ints]] = [[] for _ in range(buckets)]  # each text of a bucket goes, and how long it is
        sizes: list[list[Ints]] = [[] for _ in range(buckets)]
        for places, texts in self._by_part(lines):
            bucket = places * buckets // len(lines.row)
            order = np.argsort(bucket, kind="stable")
            ends = np.searchsorted(bucket[order], np.arange(buckets + 1))
            for number in range(buckets):
                mine = order[ends[number] : ends[number + 1]]
                chosen = [texts[k] for k in mine.tolist()]
                behind.do(files[number].write, b"".join(chosen))
                where[number].append(places[mine].astype(NUMBER))
                sizes[number].append(np.fromiter(map(len, chosen), np.uint32, len(chosen)))
        behind.finish()
        for number, file in enumerate(files):
            with file:
                file.seek(0)
                whole = file.read()
            ends = np.cumsum(np.concatenate(sizes[number]), dtype=np.int64).tolist()
            texts = [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]
            yield [texts[k] for k in np.argsort(np.concatenate(where[number])).tolist()]
            where[number], sizes[number] = [], []

    def _by_part(self, lines: Lines) -> Iterator[tuple[Ints, list[bytes]]]:
        """For each part the places in `lines` that its texts go to, and the texts."""
        by_row = np.argsort(lines.row, kind="stable")
        ends = np.searchsorted(lines.row[by_row], self.starts)
        for number, part in enumerate(self.table.parts):
            mine = by_row[ends[number] : ends[number + 1]]
            if not len(mine):
                continue
            rows = lines.row[mine]
            local = rows - self.starts[number]
            texts = _slices(
                part.lines_path, part.column("samples", "offset")[local], part.column("samples", "length")[local]
            )
            if self.renamed:
                for k, scene in enumerate(self.scene[rows].tolist()):
                    if scene in self.renamed:
                        texts[k] = _renamed(texts[k], self.renamed[scene])
            for k in np.flatnonzero(lines.copy[mine] > 1).tolist():
                texts[k] = _copied(texts[k], int(lines.copy[mine[k]]))
            yield mine, texts


def scene_id(table: Table, scene: int) -> str:
    """The id of a scene, as its samples have it."""
    value = decode(_first_line(table, scene) or b"{}")
    return str(value.get("scene") or value.get("id", ""))


def write_rejected(path: Path, table: Table, decided: Decided, files: Sequence[DialogueFile]) -> str:
    """Write `rejected.jsonl`: all lines that are not used, in the order of the files; gives back its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for text in rejected_lines(table, decided, files):
            digest.update(text)
            file.write(text)
    return digest.hexdigest()


def rejected_lines(table: Table, decided: Decided, files: Sequence[DialogueFile]) -> Iterator[bytes]:
    """A line of JSON for each line of the files that is not used, in their order."""
    for number, part in enumerate(table.parts):
        yield from _rejected_of(part, int(table.starts[number]), table, decided, files)


def place(table: Table, scene: int, files: Sequence[DialogueFile]) -> str:
    """FILE:LINE of a scene."""
    element = f"#{table.element[scene]}" if table.element[scene] else ""
    return f"{files[table.file[scene]].name}:{table.line[scene]}{element}"


def _rejected_of(
    part: Part, start: int, table: Table, decided: Decided, files: Sequence[DialogueFile]
) -> Iterator[bytes]:
    """The rejected lines of a part: those that reading refused and those that deciding left out, by their place."""
    rejects = part.size("rejects")
    reason = decided.reason[start : start + part.size("scenes")]
    out = np.flatnonzero(reason != KEPT)
    line = np.concatenate([part.column("rejects", "line"), table.line[start + out]])
    element = np.concatenate([part.column("rejects", "element"), table.element[start + out]])
    texts = _slices(part.rejected_path, part.column("rejects", "offset"), part.column("rejects", "length"))
    first_sample = np.searchsorted(part.column("samples", "scene"), out)
    lines = _slices(
        part.lines_path,
        part.column("samples", "offset")[first_sample],
        part.column("samples", "length")[first_sample],
    )
    for k in np.lexsort((element, line)).tolist():
        if k < rejects:
            yield texts[k]
            continue
        scene = start + int(out[k - rejects])
        repeats = decided.reason[scene] in (DUPLICATE, DUPLICATE_ID, NEAR_DUPLICATE)
        value = {
            "source": place(table, scene, files),
            "reason": REASONS[decided.reason[scene]],
            "detail": detail(table, decided, scene, files),
            "text": _shown(lines[k - rejects]) if repeats else "",
        }
        yield encode(value) + b"\n"


def _slices(path: Path, offsets: NDArray[np.uint32], lengths: NDArray[np.uint32]) -> list[bytes]:
    """Parts of a file, one for each offset."""
    data = path.read_bytes() if len(offsets) else b""
    return [data[at : at + size] for at, size in zip(offsets.tolist(), lengths.tolist(), strict=True)]


def detail(table: Table, decided: Decided, scene: int, files: Sequence[DialogueFile]) -> str:
    """Why a scene was left out, in words."""
    reason = decided.reason[scene]
    other = int(decided.repeats[scene])
    if reason == DUPLICATE:
        return f"same as {place(table, other, files)}"
    if reason == NEAR_DUPLICATE:
        return f"{decided.alike[scene]:.2f} like {place(table, other, files)}"
    if reason == DUPLICATE_ID:
        return f"{scene_id(table, scene)!r} is the id of {place(table, other, files)}"
    return "left out by the options of `data:`"


def _first_line(table: Table, scene: int) -> bytes:
    """The line of the first sample of a scene."""
    part, number = table.part_of(scene)
    row = int(np.searchsorted(part.column("samples", "scene"), number))
    with part.lines_path.open("rb") as file:
        file.seek(int(part.column("samples", "offset")[row]))
        return file.read(int(part.column("samples", "length")[row]))


def _shown(line: bytes) -> str:
    """What is said in a sample, for the eye."""
    turns = decode(line)["turns"] if line else []
    text = "\n".join(f"{turn['speaker']}: {turn['text']}" for turn in turns if "text" in turn)
    return text[:SHOWN_TEXT]


def _renamed(line: bytes, scene: str) -> bytes:
    """A sample's line with another scene id."""
    value = decode(line)
    value["scene"], value["id"] = scene, f"{scene}@{value['character']}"
    return encode(value) + b"\n"


def _copied(line: bytes, copy: int) -> bytes:
    """A sample's line as its copy: ID#COPY. The id comes first, and no quote within it is bare."""
    head, mark, rest = line.partition(b'","character":')
    return head + f"#{copy}".encode() + mark + rest
