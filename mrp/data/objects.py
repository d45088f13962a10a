"""Files that are one JSON object over many lines (or several, one after the other): books, single dialogues.

    for place, record in read_json_objects(path, ("plots",)):
        place, record.value                         # each plot of the book, by the line on which it begins

Beside `array.py`. What a streamed key holds (a list) is given out element by element, in bounded memory, and the rest
of the object is read past; an object without such a key is one record.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mrp.data.array import REST, elements
from mrp.data.stream import MAX_LINE_BYTES, TOO_LONG, open_stream
from mrp.data.window import BrokenError, Places, TooLongError, Window, as_utf8
from mrp.dialogue import JsonLine

_REST = "; nothing of the file is read from here on"


def read_json_objects(path: Path, streamed: Collection[str]) -> Iterator[tuple[str, JsonLine]]:
    """Every record with its place; where an object is broken, one with a fault ends the file."""
    places = Places()
    with open_stream(path) as stream:
        window = Window(stream)
        while window.next_mark() == "{":
            for record in _object(window, streamed):
                yield places.next(record.number), record
        if window.next_mark():
            text, _ = as_utf8(window.rest())
            yield places.next(window.line), JsonLine(window.line, text, fault="something stands after the object")


def _object(window: Window, streamed: Collection[str]) -> Iterator[JsonLine]:
    """The records of the object at the window, which then stands behind it."""
    number, shown = window.line, window.rest()
    whole: dict[str, Any] = {}
    whole_length = 0
    is_streamed = False
    try:
        for key in _keys(window):
            if key in streamed and window.next_mark() == "[":
                is_streamed = True
                window.at += 1
                for line in elements(window):
                    yield line
                    if line.fault.endswith(REST):  # the end of the file, too
                        return
                continue
            try:
                value, text = window.value()
            except TooLongError:
                whole_length = MAX_LINE_BYTES + 1
                continue
            whole_length += len(text)
            if not is_streamed and whole_length <= MAX_LINE_BYTES:
                whole[key] = value
    except (BrokenError, TooLongError) as error:  # a key may be too long, too
        text, _ = as_utf8(window.rest())
        yield JsonLine(window.line, text, fault=f"{error}{_REST}")
        window.leave()
        return
    if not is_streamed:
        shown, fault = as_utf8(shown)
        if whole_length > MAX_LINE_BYTES:
            yield JsonLine(number, shown, fault=TOO_LONG)
        else:
            yield JsonLine(number, shown, None if fault else whole, fault)


def _keys(window: Window) -> Iterator[str]:
    """The keys of an object; whoever takes one passes its value."""
    window.at += 1  # "{"
    mark = window.next_mark()
    while mark != "}":
        if mark != '"':
            raise BrokenError("a key is missing", window.line)
        key, _ = window.value()
        if window.next_mark() != ":":
            raise BrokenError('":" is missing after a key', window.line)
        window.at += 1
        window.next_mark()
        yield str(key)
        mark = window.next_mark()
        if mark == ",":
            window.at += 1
            mark = window.next_mark()
            if mark == "}":
                mark = ""
        elif mark != "}":
            raise BrokenError('"," or "}" is missing after a value', window.line)
    window.at += 1
