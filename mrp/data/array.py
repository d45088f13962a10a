"""Files that hold one JSON array of dialogues instead of a line for each.

    for place, element in read_json_array(path):
        place, element.value                        # "12", or "12#2" for the second element that begins on line 12

Beside `dialogue.read_json_lines`; `read.py` uses both. Memory is bounded by the longest element, not by the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mrp.data.stream import TOO_LONG, open_stream
from mrp.data.window import BrokenError, Places, TooLongError, Window, as_utf8
from mrp.dialogue import JsonLine
from mrp.errors import InputError

REST = "; nothing of the array is read from here on"


def read_json_array(path: Path) -> Iterator[tuple[str, JsonLine]]:
    """Every element with its place; where the array itself is broken, one with a fault ends it.

    Raises `InputError` if it is empty.
    """
    with open_stream(path) as stream:
        window = Window(stream)
        places = Places()
        empty = True
        window.next_mark()
        window.at += 1  # "[", as whoever calls has seen
        for line in elements(window):
            empty = False
            yield places.next(line.number), line
        if window.next_mark():
            empty = False
            text, _ = as_utf8(window.rest())
            line = JsonLine(window.line, text, fault="something stands after the end of the array")
            yield places.next(line.number), line
    if empty:
        raise InputError("the array is empty", str(path), "put dialogues in it, or take it out of `dialogues:`")


def elements(window: Window) -> Iterator[JsonLine]:
    """The elements of an array whose "[" was passed. Afterwards the window stands behind "]", or at the end of the text
    where the array is broken."""
    if window.next_mark() == "]":
        window.at += 1
        return
    while True:
        line = _element(window)
        yield line
        if line.fault.endswith(REST):
            return
        mark = window.next_mark()
        window.at += 1
        if mark == "]":
            return
        if mark != ",":
            window.at -= 1
            text, _ = as_utf8(window.rest())
            yield JsonLine(window.line, text, fault=f'"," or "]" is missing after an element{REST}')
            window.leave()
            return
        window.next_mark()


def _element(window: Window) -> JsonLine:
    number = window.line
    try:
        value, text = window.value()
    except BrokenError as error:
        text, _ = as_utf8(window.rest())
        window.leave()
        return JsonLine(number, text, fault=f"{error}{REST}")
    except TooLongError as error:
        text, _ = as_utf8(str(error))
        return JsonLine(number, text, fault=TOO_LONG)
    fault = ""
    if window.is_broken_utf8:
        text, fault = as_utf8(text)
    return JsonLine(number, text, value, fault)
