"""The dialogue files of a run, hashed, and cut into chunks that several processes (or machines) can read.

    scanned = scan(dialogue_files(run))
    scanned.hashes[0], scanned.chunks[0].span

First in the flow: `part.py` reads a chunk. A file whose lines stand each for itself is cut at line ends, every other
one (an array, a chat, a play, a table, a compressed file) is one chunk. The cut depends on the files alone, so the
same chunks come out everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mrp.cast import PLAIN
from mrp.config import Run
from mrp.data.read import lines_stand_alone
from mrp.dialogue import Span
from mrp.errors import InputError, MrpError, raise_all
from mrp.files import sha256_file
from mrp.report import SILENT, Reporter

CHUNK_BYTES = 2**24  # of a cut file: some 25,000 lines, half a second of one core
BLOCK_BYTES = 2**20  # read at once
BASE_REPLIES = "base-replies.jsonl"  # in the run folder: what the base itself answers to plain prompts


@dataclass(frozen=True, slots=True)
class DialogueFile:
    """A file with dialogues: its name as the cast writes it, where it lies, and the character it is listed under."""

    name: str
    path: Path
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A file, or a part of it, that is read in one go: `file` is its place in the list of files."""

    file: int
    span: Span | None = None  # None: the whole file


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a pass over the bytes of all files gives: the SHA-256 of each, and the chunks in the order of the files."""

    hashes: list[str]
    chunks: list[Chunk]
    size_bytes: int


def dialogue_files(run: Run) -> list[DialogueFile]:
    """The files of a run: those of each character, those of several characters, and general chat data."""
    own = [file for c in run.cast for name in c.dialogues for file in _files_of(name, run.dialogue_path(name), c.id)]
    shared = [file for name in run.cast.dialogues for file in _files_of(name, run.dialogue_path(name), None)]
    return own + shared + (_general_files(run) if run.config.data.mix else [])


def fetch_datasets(run: Run, report: Reporter) -> None:
    """Download the datasets of the hub (`hf:owner/name`) that a run names and that were never downloaded."""
    from mrp.data.hub import PREFIX, fetch_dataset, known_files

    names = [*(n for c in run.cast for n in c.dialogues), *run.cast.dialogues, *run.config.data.mix_files]
    for name in dict.fromkeys(names):
        if name.startswith(PREFIX) and not known_files(name):
            fetch_dataset(name, report)


def _files_of(name: str, path: Path, owner: str | None) -> list[DialogueFile]:
    """The file with this name, or those of a dataset of the hub, as it was when it was first downloaded."""
    from mrp.data.hub import PREFIX, known_files

    if name.startswith(PREFIX):
        return [DialogueFile(n, p, owner) for n, p in known_files(name)] or [DialogueFile(name, Path(name), owner)]
    return [DialogueFile(name, path, owner)]


def _general_files(run: Run) -> list[DialogueFile]:
    names = run.config.data.mix_files
    general = [file for name in names for file in _files_of(name, run.path.parent / name, PLAIN)]
    if run.config.data.mix_base:
        general.append(DialogueFile(BASE_REPLIES, run.folder / BASE_REPLIES, PLAIN))
    return general


def scan(files: Sequence[DialogueFile], report: Reporter = SILENT, chunk_bytes: int = CHUNK_BYTES) -> Scanned:
    """Hash all files and cut them; raises `InputError` naming every file that cannot be read."""
    hashes, spans, faults = _scan_each(files, report, chunk_bytes)
    raise_all("dialogue files", faults)
    chunks = [Chunk(k, span) for k, of_file in enumerate(spans) for span in of_file]
    return Scanned(hashes, chunks, sum(file.path.stat().st_size for file in files))


def scan_readable(files: Sequence[DialogueFile], report: Reporter = SILENT) -> tuple[Scanned, list[MrpError]]:
    """As `scan`, with the faults beside what could be read, for those who want to know them all (`data check`)."""
    hashes, spans, faults = _scan_each(files, report, CHUNK_BYTES)
    chunks = [Chunk(k, span) for k, of_file in enumerate(spans) for span in of_file]
    size = sum(file.path.stat().st_size for file, sha in zip(files, hashes, strict=True) if sha)
    return Scanned(hashes, chunks, size), faults


def _scan_each(
    files: Sequence[DialogueFile], report: Reporter, chunk_bytes: int
) -> tuple[list[str], list[list[Span | None]], list[MrpError]]:
    """For each file its hash and its spans ("" and [] for one that cannot be read), and the faults."""
    done_bytes = 0
    hashes: list[str] = []
    spans: list[list[Span | None]] = []
    faults: list[MrpError] = []
    total = sum(file.path.stat().st_size for file in files if file.path.is_file())
    # Hashing runs beside reading, and beside other threads: Python's lock is free meanwhile.
    with report.progress("scanning", total, "B") as update, ThreadPoolExecutor(2) as pool:
        for file, found in zip(files, pool.map(lambda f: _scan_file(f, chunk_bytes), files), strict=True):
            if isinstance(found, MrpError):
                faults.append(found)
                found = ("", [])
            else:
                done_bytes += file.path.stat().st_size
                update(done_bytes)
            hashes.append(found[0])
            spans.append(found[1])
    return hashes, spans, faults


def _scan_file(file: DialogueFile, chunk_bytes: int) -> tuple[str, list[Span | None]] | MrpError:
    path = file.path
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # to open a pipe would wait for its writer
            what = f"{file.name} is a pipe or a device, not a file"
            return InputError(what, str(path), "put what comes out of it into a file first")
        if not lines_stand_alone(path):
            return sha256_file(path), [None]
        return _cut(path, chunk_bytes)
    except MrpError as error:
        return error
    except FileNotFoundError:
        return InputError(f"no such file: {file.name}", str(path), "check the path in `dialogues:`")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return InputError(f"cannot read {file.name}: {reason}", str(path), "name a readable file")


def _cut(path: Path, chunk_bytes: int) -> tuple[str, list[Span | None]]:
    """The hash of a file, and its spans, each ending after the first line end past `chunk_bytes`."""
    digest = hashlib.sha256()
    spans: list[Span | None] = []
    start, first_line = 0, 1  # of the span in work
    at, line = 0, 1  # of the block in work
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            if at + len(block) - start >= chunk_bytes:
                end = block.find(b"\n", max(0, start + chunk_bytes - 1 - at)) + 1
                if end:
                    next_line = line + block.count(b"\n", 0, end)
                    spans.append(Span(start, at + end, first_line))
                    start, first_line = at + end, next_line
            line += block.count(b"\n")
            at += len(block)
    if at > start or not spans:
        spans.append(Span(start, at, first_line))
    return digest.hexdigest(), spans
