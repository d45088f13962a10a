"""CSV and TSV files (UTF-8, with or without BOM) as rows, each with the line on which it begins.

    names, rows = read_csv(Path("talk.csv"))

The first row is the head. Fields are parted by the sign that the head has most of (comma, semicolon, tab), and may be
quoted, line ends in them included. Called by `read.py`, together with `columns.py`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from mrp.data.columns import Row
from mrp.data.record import SHOWN_TEXT
from mrp.data.stream import MAX_LINE_BYTES, TOO_LONG
from mrp.data.textlines import TextLine, text_lines
from mrp.data.window import as_utf8
from mrp.errors import InputError

DELIMITERS = ",;\t"
SEEN_LINES = 200  # of a row, kept to show it if it is rejected
NO_UTF8 = "the text is not UTF-8"


class _Lines:
    """The lines of a file as the csv module wants them; the first of those read since the last `take` are kept."""

    def __init__(self, lines: Iterator[TextLine]) -> None:
        self._lines = lines
        self._seen: list[TextLine] = []
        self._ahead: list[TextLine] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._ahead.pop() if self._ahead else next(self._lines)
        if len(self._seen) < SEEN_LINES or line.is_too_long:
            self._seen.append(line)
        # Of a line that is too long nothing goes on: its beginning alone could look like a row.
        return "" if line.is_too_long else line.text + "\n"

    def peek(self) -> TextLine | None:
        """The first line that is not blank."""
        for line in self._lines:
            if line.text.strip():
                self._ahead.append(line)
                return line
        return None

    def pass_quote(self) -> None:
        """Pass the lines up to the one that closes a quote: what is left of a field that is too long is no row."""
        for line in self._lines:
            if line.text.count('"') % 2:
                return

    def take(self) -> list[TextLine]:
        seen, self._seen = self._seen, []
        return seen


def read_csv(path: Path) -> tuple[list[str], Iterator[Row]]:
    """The names of the columns, and the rows. Raises `InputError` for a file without a usable head."""
    lines = _Lines(text_lines(path))
    head = lines.peek()
    if head is None:
        raise InputError("the file is empty", str(path), "put dialogues in it, or take it out of `dialogues:`")
    where = f"{path}:{head.number}"
    if as_utf8(head.text)[1]:
        fix = "save it as UTF-8 (in a spreadsheet: CSV UTF-8), or iconv -f GB18030 -t UTF-8"
        raise InputError("the head of the table is not UTF-8", where, fix)
    if head.is_too_long:
        raise InputError(f"the head of the table is broken: {TOO_LONG}", where, "name the columns in the first line")
    # The csv module has one limit for the whole process; a longer field is refused there, row by row.
    csv.field_size_limit(MAX_LINE_BYTES)
    delimiter = max(DELIMITERS, key=head.text.count)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader)]
    except csv.Error as error:
        raise InputError(f"the head of the table is broken: {error}", where, "mend the first line") from None
    lines.take()
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise InputError(f"two columns are called {twice[0]!r}", where, "give each column a name of its own")
    return names, _rows(reader, lines, names)


def _rows(reader: Iterator[list[str]], lines: _Lines, names: list[str]) -> Iterator[Row]:
    while True:
        fault: tuple[str, str] | None = None
        fields: list[str] = []
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            is_long = "field limit" in str(error)
            if is_long:
                lines.pass_quote()
            fault = ("too-long", TOO_LONG) if is_long else ("broken-row", f"the row is no CSV: {error}")
        seen = lines.take()
        if any(line.is_too_long for line in seen):
            fault = ("too-long", TOO_LONG)
        elif not fault and not any(field.strip() for field in fields):
            continue  # a blank line, or nothing but commas
        text, not_utf8 = as_utf8("\n".join(line.text for line in seen)[:SHOWN_TEXT])
        if not fault and len(fields) != len(names):
            fault = ("broken-row", f"the row has {len(fields)} columns, and the head {len(names)}")
        if not fault and (not_utf8 or any(as_utf8(field)[1] for field in fields)):
            fault = ("bad-text", NO_UTF8)
        yield Row(seen[0].number, dict(zip(names, fields, strict=False)), text, fault)
