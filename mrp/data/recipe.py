"""The data recipe of 2024, byte for byte: what coreutils give for it, with counts of what it does.

    report = run_recipe("xiyou-2024", Path("lines"), Path("out.jsonl"))
    report.files[0].both, report.lines_written

For swj, swk, tsz and zbj in this order, with LC_ALL=C:

    uniq swj.jsonl | head -n 1500; uniq swj.jsonl | tail -n 1500; ...

Its faults stay, and are counted: `uniq` sees adjacent repeats only, and a file of under 3,000 lines gives some twice.
Lines are bytes here, never text: what a byte means makes no difference.
"""

from __future__ import annotations

import hashlib
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, compress
from operator import ne
from pathlib import Path
from typing import IO, Any

from mrp.errors import InputError, MrpError, nearest, raise_all
from mrp.files import replacing_binary
from mrp.report import SILENT, Reporter

TAKEN = 1500  # lines from the head of a file, and again from its tail
RECIPES = {"xiyou-2024": ("swj.jsonl", "swk.jsonl", "tsz.jsonl", "zbj.jsonl")}
BLOCK_BYTES = 2**18  # read at once; 64 KiB to 4 MiB measured alike, 16 MiB (more than the cache holds) 1.6 times slower


@dataclass(slots=True)
class FileReport:
    """What the recipe took of one file. `head` and `tail` are lines written, `both` of them are the same lines."""

    name: str
    lines: int = 0
    repeats: int = 0  # adjacent ones, which `uniq` drops
    head: int = 0
    tail: int = 0

    @property
    def both(self) -> int:
        return max(0, self.head + self.tail - (self.lines - self.repeats))

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"both": self.both}


@dataclass(slots=True)
class RecipeReport:
    """What a recipe read and wrote."""

    recipe: str
    out: Path
    files: list[FileReport]
    shuffle: int | None = None

    @property
    def lines_written(self) -> int:
        return sum(file.head + file.tail for file in self.files)

    def as_json(self) -> dict[str, Any]:
        files = [file.as_json() for file in self.files]
        head = {"recipe": self.recipe, "out": str(self.out), "shuffle": self.shuffle}
        return head | {"lines_written": self.lines_written, "files": files}


def run_recipe(
    recipe: str, sources: Path, out: Path, shuffle: int | None = None, report: Reporter = SILENT
) -> RecipeReport:
    """Write the lines that `recipe` makes of the files in the folder `sources` to `out`, which is replaced whole.

    `shuffle` is the seed of a permutation of exactly these lines: they are sorted by the SHA-256 of "SEED:INDEX"
    (INDEX from 0 in the recipe's order), which is the same on every machine. Raises `InputError` naming every source
    that is missing, unreadable or no file, and where `out` is one of the sources or no file; `out` then stays as it
    was. Memory holds one block and the lines taken of a file (all lines taken, with `shuffle`).
    """
    if recipe not in RECIPES:
        raise InputError(f"no recipe {recipe!r}", "the first argument", nearest(recipe, RECIPES))
    paths = [sources / name for name in RECIPES[recipe]]
    _check_sources(sources, paths)
    _check_out(out, paths)
    files = [FileReport(path.name) for path in paths]
    with replacing_binary(out) as written:
        taken = chain.from_iterable(_head_and_tail(path, file) for path, file in zip(paths, files, strict=True))
        if shuffle is None:
            for lines in taken:
                _write(written, lines)
        else:
            _write(written, _shuffled([line for lines in taken for line in lines], shuffle))
    result = RecipeReport(recipe, out, files, shuffle)
    _tell(result, report)
    return result


def _head_and_tail(path: Path, count: FileReport) -> Iterator[list[bytes]]:
    """The first, then the last `TAKEN` lines of `uniq path`, without their line ends; `count` is filled in."""
    head: list[bytes] = []
    tail: deque[bytes] = deque(maxlen=TAKEN)
    before: bytes | None = None  # the last line of the block before; no line equals None
    for lines in _blocks_of_lines(path):
        # Line k is kept if it differs from line k-1. No Python code runs for a line.
        kept = list(compress(lines, map(ne, lines, chain((before,), lines))))
        before = lines[-1]
        count.lines += len(lines)
        count.repeats += len(lines) - len(kept)
        if len(head) < TAKEN:
            head += kept[: TAKEN - len(head)]
        tail.extend(kept[-TAKEN:])
    count.head, count.tail = len(head), len(tail)
    yield head
    yield list(tail)


def _blocks_of_lines(path: Path) -> Iterator[list[bytes]]:
    r"""All lines of a file, some at a time, without b"\n"; a last line needs none. No list is empty."""
    begun: list[bytes] = []  # pieces of a line whose end is not read yet
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(BLOCK_BYTES):
                lines = block.split(b"\n")
                if len(lines) > 1:
                    lines[0] = b"".join([*begun, lines[0]])
                    begun.clear()
                    begun.append(lines.pop())
                    yield lines
                else:
                    begun.append(block)
    except OSError as error:
        raise InputError(f"cannot read {path.name}: {error.strerror}", str(path), "check the disk") from error
    if any(begun):
        yield [b"".join(begun)]


def _write(file: IO[bytes], lines: list[bytes]) -> None:
    if lines:
        file.write(b"\n".join(lines) + b"\n")


def _shuffled(lines: list[bytes], seed: int) -> list[bytes]:
    order = sorted(range(len(lines)), key=lambda index: hashlib.sha256(f"{seed}:{index}".encode()).digest())
    return [lines[index] for index in order]


def _check_sources(folder: Path, paths: list[Path]) -> None:
    """`InputError` naming every source that cannot be read as a file."""
    names = ", ".join(path.name for path in paths)
    if not folder.is_dir():
        what = f"{folder.name} is no folder" if folder.exists() else f"no such folder: {folder.name}"
        raise InputError(what, str(folder), f"name the folder that holds {names}")
    faults: list[MrpError] = []
    for path in paths:
        try:
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode):
                kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
                faults.append(InputError(f"{path.name} is {kind}, not a file", str(path), "put the file there"))
            else:
                path.open("rb").close()
        except FileNotFoundError:
            faults.append(InputError(f"no such file: {path.name}", str(path), f"the recipe needs {names}"))
        except OSError as error:
            faults.append(InputError(f"cannot read {path.name}: {error.strerror}", str(path), "name a readable file"))
    raise_all(f"sources in {folder}", faults)


def _check_out(out: Path, paths: list[Path]) -> None:
    """`InputError` where writing `out` would take the place of a source, a folder, a pipe or a device."""
    if not out.exists():
        return
    if any(out.samefile(path) for path in paths):
        raise InputError(f"{out.name} is one of the sources", str(out), "name another file: sources are never changed")
    if not out.is_file():
        kind = "a folder" if out.is_dir() else "a pipe or device"
        raise InputError(f"{out.name} is {kind}: the result needs a file", str(out), "name a file, such as OUT.jsonl")


def _tell(result: RecipeReport, report: Reporter) -> None:
    """Counts for people, and the recipe's faults where they show."""
    for file in result.files:
        report.line(
            f"  {file.name}: {file.lines:,} lines, {file.repeats:,} adjacent repeats dropped,"
            f" head {file.head:,} + tail {file.tail:,}"
        )
    overlapping = [f"{file.name} ({file.both:,})" for file in result.files if file.both]
    if overlapping:
        report.warn(
            f"head and tail overlap, and these lines are in the result twice: {', '.join(overlapping)};"
            " the recipe of 2024 does so, and it is kept"
        )
    order = "in the recipe's order" if result.shuffle is None else f"shuffled with seed {result.shuffle}"
    report.result(f"wrote {result.out}: {result.lines_written:,} lines, {order}")
