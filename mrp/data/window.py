"""A JSON text seen through a sliding window: values one after the other, in memory that a value bounds, not the file.

    window = Window(stream)
    window.next_mark()              # the next character that is not blank, such as "["
    value, length = window.value()

For files that are one JSON value (`array.py`, `objects.py`); lines of JSON need no such thing.
"""

from __future__ import annotations

import codecs
import json
import re

from mrp.data.stream import BLOCK_BYTES, MAX_LINE_BYTES, Stream

SHOWN_TEXT = 4000  # characters of a value that cannot be read

_BLANK = re.compile(r"[ \t\r\n]*")
_MARK = re.compile(r'["\[\]{},]')
_IN_STRING = re.compile(r'["\\]')


class BrokenError(Exception):
    """What stands here is no JSON; `line` is where (0: not known)."""

    def __init__(self, what: str, line: int = 0) -> None:
        super().__init__(f"{what} in line {line}" if line else what)


class TooLongError(Exception):
    """A value (of which this is the beginning) is longer than a line may be; the window stands behind it."""


class Window:
    """The text around `at`. What was passed is forgotten whenever more is needed; `line` counts all of it."""

    def __init__(self, stream: Stream) -> None:
        self.text = ""
        self.at = 0
        self.is_broken_utf8 = False  # somewhere up to here
        self._stream = stream
        # What is no UTF-8 becomes lone surrogates, so that one such value does not spoil the others.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._ended = False
        self._line, self._counted = 1, 0  # the line at `_counted`
        self._decode = json.JSONDecoder(strict=False).raw_decode  # control characters are refused later, in the texts
        self.more()
        self.at = len(self.text) - len(self.text.removeprefix("\ufeff"))

    @property
    def line(self) -> int:
        """The number of the line at `at`."""
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def more(self) -> bool:
        """Forget what was passed and take in what follows, more the more is left; False where the text has ended."""
        if self._ended:
            return False
        line = self.line
        parts = [self.text[self.at :]]
        length = len(parts[0])
        wanted = min(2 * length, MAX_LINE_BYTES) + (BLOCK_BYTES + 1) // 2
        while length < wanted and not self._ended:
            raw = self._stream.read(BLOCK_BYTES)
            self._ended = not raw
            part = self._decoder.decode(raw, final=not raw)
            self.is_broken_utf8 = self.is_broken_utf8 or not _is_utf8(part)
            parts.append(part)
            length += len(part)
        self.text = "".join(parts)
        self.at, self._counted, self._line = 0, 0, line
        return True

    def next_mark(self) -> str:
        """Pass blanks; the character that follows, or "" at the end."""
        while True:
            self.at = _blank(self.text, self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self) -> tuple[object, str]:
        """The value that begins at `at`, and its text; the window then stands behind it.

        Raises `BrokenError` where it is no JSON, `TooLongError` where it is longer than a line may be.
        """
        while True:
            fault: BrokenError | None = None
            is_cut = False
            try:
                value, end = self._decode(self.text, self.at)
            except RecursionError:
                raise BrokenError("it is nested too deeply") from None
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self.text) - 16 or error.msg.startswith("Unterminated string")
                fault = BrokenError(error.msg, self.line + self.text.count("\n", self.at, error.pos))
            except ValueError as error:  # a number of thousands of digits
                fault = BrokenError(str(error))
            else:
                after = _blank(self.text, end)
                # What follows tells that a number is whole; "12" may be the beginning of 12.5.
                if self._ended or (after < len(self.text) and self.text[after] in ",]}:"):
                    return self._pass(value, end)
            if len(self.text) - self.at > MAX_LINE_BYTES and (is_cut or fault is None):
                beginning = self.rest()
                self._skip()
                raise TooLongError(beginning)
            if fault and (len(self.text) - self.at > MAX_LINE_BYTES or self._ended):
                raise fault
            self.more()

    def _pass(self, value: object, end: int) -> tuple[object, str]:
        start, self.at = self.at, end
        if end - start > MAX_LINE_BYTES:
            raise TooLongError(self.text[start : start + SHOWN_TEXT])
        return value, self.text[start:end]

    def _skip(self) -> None:
        """Pass a value by its brackets and quotes alone."""
        depth = 0
        in_string = False
        while True:
            found = (_IN_STRING if in_string else _MARK).search(self.text, self.at)
            if found is None:
                self.at = len(self.text)
                if not self.more():
                    return
                continue
            mark = found.group()
            if mark == "\\" and found.end() == len(self.text) and not self._ended:
                self.at = found.start()
                self.more()
                continue
            if depth == 0 and not in_string and mark in "]},":
                self.at = found.start()
                return
            self.at = min(found.end() + (mark == "\\"), len(self.text))
            if mark == '"':
                in_string = not in_string
            elif mark in "[{":
                depth += 1
            elif mark in "]}":
                depth -= 1
            if depth == 0 and not in_string and mark in '"]}':
                return

    def rest(self) -> str:
        """The beginning of what is left."""
        while len(self.text) - self.at < SHOWN_TEXT and self.more():
            pass
        return self.text[self.at : self.at + SHOWN_TEXT]

    def leave(self) -> None:
        """Go to the end of the text without looking at what is there."""
        while not self._ended:
            self.at = len(self.text)
            self.more()
        self.at = len(self.text)


class Places:
    """Names of places: "12", and "12#2" for the second that begins on line 12."""

    def __init__(self) -> None:
        self._line = self._count = 0

    def next(self, line: int) -> str:
        self._count = self._count + 1 if line == self._line else 1
        self._line = line
        return f"{line}#{self._count}" if self._count > 1 else str(line)


def as_utf8(text: str) -> tuple[str, str]:
    """The text as it can be written, with marks for bytes that are no UTF-8; and a fault where there are such."""
    if _is_utf8(text):
        return text, ""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"), "the text is not UTF-8"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _blank(text: str, at: int) -> int:
    """Where the first character that is not blank stands, from `at` on."""
    found = _BLANK.match(text, at)
    assert found is not None  # it matches nothing, too
    return found.end()
