"""Turns and scenes: who said what, in order. A speaker is a fact; roles (system, user, assistant) are not known here.

    Scene(id="s1", participants=("wukong", "other"), turns=(Turn("other", "Who are you?"), Turn("wukong", "Ha!")))

Also the lines of a JSONL file with their numbers, and errors that say which line is broken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mrp.data.stream import TOO_LONG, line_batches, open_stream
from mrp.errors import InputError


# Structs, not dataclasses: of each there are millions, and a frozen dataclass takes six times as long to make.
class Turn(msgspec.Struct, frozen=True):
    """One line of a dialogue, or the moment in which `speaker` comes in (`enters`) or goes away (`leaves`), unsaid."""

    speaker: str  # id of a cast member, the name of somebody else, or cast.OTHER
    text: str = ""
    enters: bool = False
    leaves: bool = False

    @property
    def is_line(self) -> bool:
        """True if something is said."""
        return not (self.enters or self.leaves)

    def row(self) -> dict[str, Any]:
        """The turn as a dialogue file has it."""
        if self.is_line:
            return {"speaker": self.speaker, "text": self.text}
        return {"enter" if self.enters else "leave": self.speaker}


class Scene(msgspec.Struct, frozen=True):
    """A dialogue with its declared participants.

    `participants` are those present when it starts; one who comes later has a turn with `enters`, one who goes a turn
    with `leaves`. More than two (so far) means that the lines of others carry names.
    """

    id: str
    participants: tuple[str, ...]
    turns: tuple[Turn, ...]
    scenario: str = ""
    source: str = ""  # FILE:LINE

    def speakers(self) -> list[str]:
        """Everybody who says something, in order of the first line."""
        return list(dict.fromkeys(t.speaker for t in self.turns if t.is_line))


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a file whose lines stand each for itself: bytes `start` to `end`, the first of them on `first_line`."""

    start: int
    end: int
    first_line: int


class JsonLine(msgspec.Struct, frozen=True):
    """One line of a JSONL file: its value, or the reason why it has none."""

    number: int  # from 1
    text: str
    value: Any = None
    fault: str = ""


def read_json_lines(path: Path, span: Span | None = None) -> Iterator[JsonLine]:
    """Every non-blank line of a JSONL file (UTF-8, with or without BOM, LF or CRLF), broken ones with their fault.

    With `span` only the lines that begin in it. Raises `InputError` if the file is missing, a folder, unreadable or
    (without `span`) empty.
    """
    decode = msgspec.json.Decoder().decode
    empty = span is None
    first, left = (span.first_line, span.end - span.start) if span else (1, None)
    with open_stream(path, span.start if span else 0) as stream:
        for batch in line_batches(stream, first, left):
            for number, raw in enumerate(batch.lines, batch.first):
                raw = raw.strip()
                if not raw:
                    continue
                empty = False
                if batch.is_too_long:
                    yield JsonLine(number, raw.decode("utf-8", "replace"), fault=TOO_LONG)
                    continue
                try:
                    yield JsonLine(number, raw.decode("utf-8"), decode(raw))
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    yield JsonLine(number, raw.decode("utf-8", "replace"), fault=str(error) or type(error).__name__)
    if empty:
        raise InputError("the file is empty", str(path), "put dialogues in it, or take it out of `dialogues:`")
