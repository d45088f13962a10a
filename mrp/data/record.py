"""One line of a dialogue file, looked at with suspicion: types, keys, texts and names, every fault of it collected.

faults = Faults()
faults.text("  Hello\\r\\n", "turns[0].text")     # "Hello"
faults.text(7, "turns[1].text")                  # "", and faults.found says why
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from mrp.cast import OTHER, Cast
from mrp.errors import InputError, nearest

SHOWN_TEXT = 2000  # characters of a rejected line that are kept beside its reason
SHOWN_FAULTS = 5  # of one line
LONGEST_NAME, MOST_WORDS = 40, 5  # of what is taken for a name where no cast says so

REASONS = {  # why a line is not used -> how to mend it
    "broken-json": "write one JSON object a line, in UTF-8",
    "broken-row": "give the row as many columns as the head has, and close its quotes",
    "too-long": "part it into several dialogues",
    "wrong-type": "correct the value, or delete the line",
    "unknown-key": "rename the key or delete it",
    "bad-text": "take the control characters or lone surrogates out of the text",
    "unknown-character": "add the name to the cast (as name or alias), or list the file under its character",
    "other-character": "list the line under the character that it names",
    "undeclared-speaker": 'add the speaker to "participants", or {"enter": NAME} before the first line',
    "tool-message": "take the tools out of the dialogue: a character has none",
    "no-speaker": "write NAME: before what is said, or brackets around a stage direction",
    "no-reply": "give a character of the cast something to say, or delete the line",
    "duplicate": "delete the line",
    "duplicate-id": "give the scene an id of its own",
}

# Everything in Unicode's class Cc but tab and line feed, and halves of surrogate pairs (which UTF-8 cannot write).
BAD_CHARACTER = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_NO_NAME = re.compile(r"[\n,;:!?。，；：！？]|\.$|^(?i:you are|you're|act as)\b|^你是|^你现在是|^请")
_JSON_TYPES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line that is not used: where it stands (FILE:LINE), the reason (a key of `REASONS`), and its text."""

    source: str
    reason: str
    detail: str
    text: str = ""  # the line as it is, its first `SHOWN_TEXT` characters

    def as_json(self) -> dict[str, str]:
        return {"source": self.source, "reason": self.reason, "detail": self.detail, "text": self.text}

    def as_error(self) -> InputError:
        return InputError(f"{self.reason}: {self.detail}", self.source, REASONS.get(self.reason, ""))


class Faults:
    """Takes values of one line and gives them back checked; what is wrong with them gathers in `found`."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []  # (reason, detail)

    def add(self, reason: str, detail: str) -> None:
        self.found.append((reason, detail))

    def rejected(self, source: str, text: str) -> Rejected:
        """The line as a `Rejected` with the first reason and the details of all faults."""
        details = [detail for _, detail in self.found[:SHOWN_FAULTS]]
        if len(self.found) > SHOWN_FAULTS:
            details.append(f"and {len(self.found) - SHOWN_FAULTS} more faults")
        return Rejected(source, self.found[0][0], "; ".join(details), text[:SHOWN_TEXT])

    def mapping(self, value: Any, at: str, known: Collection[str]) -> dict[str, Any]:
        """`value` as an object without other keys than `known`; {} where it is none."""
        if not isinstance(value, dict):
            self._wrong(value, at, "an object")
            return {}
        for key in value:
            if key not in known:
                self.add("unknown-key", f"{at + '.' if at else ''}{ascii_name(key)}: {nearest(key, known)}")
        return value

    def items(self, value: Any, at: str) -> list[Any]:
        """`value` as a list; [] where it is none."""
        if isinstance(value, list):
            return value
        self._wrong(value, at, "a list")
        return []

    def text(self, value: Any, at: str, optional: bool = False) -> str:
        """A text without outer blanks, CRLF as LF; "" where it is none. `optional`: null is no fault."""
        if not isinstance(value, str):
            if not (optional and value is None):
                self._wrong(value, at, "a text")
            return ""
        text = value.replace("\r\n", "\n")
        bad = BAD_CHARACTER.search(text)
        if bad:
            self.add("bad-text", f"{at} contains U+{ord(bad.group()):04X}")
            return ""
        return text.strip()

    def name(self, value: Any, at: str, optional: bool = False) -> str:
        """A text of one line, not empty unless `optional`; "" where it is none."""
        before = len(self.found)
        text = self.text(value, at, optional)
        if len(self.found) > before:
            return ""
        if "\n" in text or "\t" in text:
            self.add("bad-text", f"{at} has more than one line")
        elif not text and not optional:
            self.add("wrong-type", f"{at} is blank")
        return text

    def _wrong(self, value: Any, at: str, wanted: str) -> None:
        found = "missing" if value is None else f"{_JSON_TYPES.get(type(value), 'a value')}, not {wanted}"
        self.add("wrong-type", f"{at or 'the line'} is {found}")


class Names:
    """Who is meant by a name: an id of the cast, `OTHER`, or somebody outside the cast (the name as written).

    Without a cast every name is taken as it is, and everybody but `OTHER` counts as a character. `nobody` is whose the
    replies are where nothing says it.
    """

    def __init__(self, cast: Cast | None, nobody: str | None = None) -> None:
        self.nobody = nobody
        self._ids = {name.strip().casefold(): c.id for c in cast for name in c.names} if cast else None
        self.known = sorted(name for c in cast for name in c.names) if cast else []
        self._personas = {cast.persona(c.id): c.id for c in cast} if cast else {}

    @property
    def is_open(self) -> bool:
        """True without a cast."""
        return self._ids is None

    def speaker(self, name: str) -> str:
        folded = name.casefold()
        if folded == OTHER:
            return OTHER
        return self._ids.get(folded, name) if self._ids is not None else name

    def character(self, name: str) -> str | None:
        """The id of the character with this name, or None."""
        speaker = self.speaker(name)
        return speaker if self.is_character(speaker) else None

    def identity(self, text: str) -> str | None:
        """The id of the character whose name or persona a system text is, or None."""
        return self.character(text) or self._personas.get(text)

    def identity_and_scenario(self, text: str) -> tuple[str | None, str]:
        """As `identity`, with the scenario that may stand below the name or persona, after an empty line.

        Where nobody is named, and without a cast nothing else can know it, all of it is the scenario if the replies are
        `nobody`'s.
        """
        is_free = self._ids is None and self.nobody is not None
        if not is_free and "\n\n" not in text:
            return self.identity(text), ""
        if self._ids is not None and (named := self.identity(text)):
            return named, ""
        end = 0
        while (end := text.find("\n\n", end + 1)) > 0:
            head = text[:end]
            named = self.identity(head) if not is_free or is_like_a_name(head) else None
            if named:
                return named, text[end:].strip()
            if self._ids is None:
                break
        if is_free:
            return (text, "") if is_like_a_name(text) else (None, text)
        return self.identity(text), ""

    def is_character(self, speaker: str) -> bool:
        """True for an id that `speaker` gave back, if it is one of the cast."""
        if self._ids is None:
            return speaker != OTHER
        return self._ids.get(speaker.casefold()) == speaker


def is_like_a_name(text: str) -> bool:
    """True for a text that can be the name of somebody: one short line, no sentence."""
    return len(text) <= LONGEST_NAME and len(text.split()) <= MOST_WORDS and not _NO_NAME.search(text)


def ascii_name(text: str) -> str:
    """A short form of any text, fit for a message and for UTF-8."""
    short = text if len(text) <= 40 else text[:37] + "..."
    return repr(short)
