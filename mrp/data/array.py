"""Files that hold one JSON array of dialogues instead of a line for each.

    if is_json_array(path):
        for place, element in read_json_array(path):
            place, element.value                    # "12", or "12#2" for the second element that begins on line 12

Beside `dialogue.read_json_lines`; `read.py` uses both. The whole file is in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mrp.dialogue import JsonLine
from mrp.errors import InputError

BOM = b"\xef\xbb\xbf"
_BLANK = re.compile(r"[ \t\r\n]*")
_REST = "; nothing of the array is read from here on"


def is_json_array(path: Path) -> bool:
    """True for a readable file that begins with "[", unless its first line is JSON by itself and others follow."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            first = next((line for raw in file if (line := raw.removeprefix(BOM).strip())), b"")
            if not first.startswith(b"["):
                return False
            if not any(raw.strip() for raw in file):
                return True
    except OSError:
        return False  # whoever reads the file says why
    try:
        msgspec.json.decode(first)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True
    return False


def read_json_array(path: Path) -> Iterator[tuple[str, JsonLine]]:
    """Every element with its place; where the array itself is broken, one with a fault ends it.

    Raises `InputError` if it is empty.
    """
    # What is no UTF-8 becomes lone surrogates here, so that one such element does not spoil the others.
    text = path.read_bytes().removeprefix(BOM).decode("utf-8", "surrogateescape")
    number, counted, on_line = 1, 0, 0
    empty = True
    for start, end, value, fault in _elements(text):
        lines = text.count("\n", counted, start)
        number, counted, on_line = number + lines, start, 1 if lines or empty else on_line + 1
        empty = False
        element = text[start:end]
        try:
            element.encode()
        except UnicodeEncodeError:
            element = element.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            fault = fault or "the text is not UTF-8"
        yield f"{number}#{on_line}" if on_line > 1 else str(number), JsonLine(number, element, value, fault)
    if empty:
        raise InputError("the array is empty", str(path), "put dialogues in it, or take it out of `dialogues:`")


def _elements(text: str) -> Iterator[tuple[int, int, object, str]]:
    """(start, end, value, fault) of each element of the array that `text` is."""
    decode = json.JSONDecoder(strict=False).raw_decode  # control characters are refused later, in the texts
    at = _blank(text, text.index("[") + 1)
    if text[at : at + 1] == "]":
        end = at
    else:
        while True:
            try:
                value, end = decode(text, at)
            except (ValueError, RecursionError) as error:
                what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                line = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
                yield at, len(text), None, f"{what}{line}{_REST}"
                return
            yield at, end, value, ""
            end = _blank(text, end)
            if text[end : end + 1] != ",":
                break
            at = _blank(text, end + 1)
        if text[end : end + 1] != "]":
            yield end, len(text), None, f'"," or "]" is missing after an element{_REST}'
            return
    rest = _blank(text, end + 1)
    if rest < len(text):
        yield rest, len(text), None, "something stands after the end of the array"


def _blank(text: str, at: int) -> int:
    """Where the first character that is not blank stands, from `at` on."""
    found = _BLANK.match(text, at)
    assert found is not None  # it matches nothing, too
    return found.end()
