"""The lines of a text file (plain, gzip or zstd) with their numbers, in bounded memory.

    for line in text_lines(Path("play.txt")):
        line.number, line.text                      # 1, "GLOUCESTER:"

For the readers whose files are no JSON: `script.py`, `haruhi.py`, `csvfile.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mrp.data.stream import line_batches, open_stream


@dataclass(frozen=True, slots=True)
class TextLine:
    """One line without its "\\n" (a "\\r" before it stays). Bytes that are no UTF-8 are lone surrogates here, which
    every reader refuses. Of a line that is too long only the beginning is here."""

    number: int  # from 1
    text: str
    is_too_long: bool = False


def text_lines(path: Path) -> Iterator[TextLine]:
    """All lines, blank ones too. Raises `InputError` as `stream.open_stream` does."""
    with open_stream(path) as stream:
        for batch in line_batches(stream):
            for number, raw in enumerate(batch.lines, batch.first):
                yield TextLine(number, raw.decode("utf-8", "surrogateescape"), batch.is_too_long)


def first_lines(head: bytes, is_whole: bool, count: int) -> list[str]:
    """The first `count` lines that are not blank of a file that begins with `head`, without outer blanks."""
    lines = head.decode("utf-8", "replace").removeprefix("\ufeff").split("\n")
    if not is_whole:
        lines.pop()  # it may go on
    stripped = (line.strip() for line in lines)
    found = [line for line in stripped if line]
    return found[:count]
