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

from mrp.errors import InputError


@dataclass(frozen=True, slots=True)
class Turn:
    """One line of a dialogue, or (with `enters`) the moment in which `speaker` comes in and says nothing yet."""

    speaker: str  # id of a cast member, the name of somebody else, or cast.OTHER
    text: str = ""
    enters: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """A dialogue with its declared participants.

    `participants` are those present when it starts; one who comes later has a turn with `enters`. More than two
    (so far) means that the lines of others carry names.
    """

    id: str
    participants: tuple[str, ...]
    turns: tuple[Turn, ...]
    scenario: str = ""
    source: str = ""  # FILE:LINE

    def speakers(self) -> list[str]:
        """Everybody who says something, in order of the first line."""
        return list(dict.fromkeys(t.speaker for t in self.turns if not t.enters))


@dataclass(frozen=True, slots=True)
class JsonLine:
    """One line of a JSONL file: its value, or the reason why it has none."""

    number: int  # from 1
    text: str
    value: Any = None
    fault: str = ""


def read_json_lines(path: Path) -> Iterator[JsonLine]:
    """Every non-blank line of a JSONL file (UTF-8, with or without BOM, LF or CRLF), broken ones with their fault.

    Raises `InputError` if the file is missing, a folder, unreadable or empty.
    """
    decode = msgspec.json.Decoder().decode
    empty = True
    if path.exists() and not (path.is_file() or path.is_dir()):  # to open a pipe would wait for its writer
        raise InputError("a pipe or device stands where a JSONL file is wanted", str(path), "put it into a file first")
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                raw = raw.strip()
                if not raw:
                    continue
                empty = False
                try:
                    yield JsonLine(number, raw.decode("utf-8"), decode(raw))
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    yield JsonLine(number, raw.decode("utf-8", "replace"), fault=str(error) or type(error).__name__)
    except FileNotFoundError:
        raise InputError(f"no such file: {path.name}", str(path), "check the path in `dialogues:`") from None
    except IsADirectoryError:
        raise InputError("a folder stands where a JSONL file is wanted", str(path), "name the files in it") from None
    except PermissionError:
        raise InputError("the file may not be read", str(path), "give yourself permission to read it") from None
    if empty:
        raise InputError("the file is empty", str(path), "put dialogues in it, or take it out of `dialogues:`")
