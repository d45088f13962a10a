"""SillyTavern's chats: a file is one scene, with a head line and a line for each message.

    {"user_name": "Ann", "character_name": "Wukong", "chat_metadata": {}}
    {"name": "Wukong", "is_user": false, "mes": "Ha!", "swipes": ["Ha!", "Ho!"], "swipe_id": 0}

Called by `read.py`. Of several replies (swipes) the one that was shown, `mes`, is read; what SillyTavern hides from the
model (`is_system`) is left out. Both are counted. Other keys (dates, how a reply was made) are read past.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from mrp.cast import OTHER
from mrp.data.formats import FORMATS
from mrp.data.record import SHOWN_TEXT, Faults, Names, Rejected
from mrp.data.stream import MAX_LINE_BYTES, TOO_LONG
from mrp.dialogue import JsonLine, Scene, Turn, read_json_lines

FORMAT = "sillytavern"
NO_NAMES = ("", "You", "User", "unused")  # what stands for a name where SillyTavern has none


@dataclass(slots=True)
class Part:
    """A stretch of a chat that is whole: its lines, where and how it begins, and what was left out of it."""

    source: str
    text: str = ""  # its beginning, as it is in the file
    turns: list[Turn] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def add_text(self, text: str) -> None:
        if len(self.text) < SHOWN_TEXT:
            self.text += as_utf8(text) + "\n"

    def scene(self) -> Scene:
        speakers = dict.fromkeys(turn.speaker for turn in self.turns)
        more = (OTHER,) if len(speakers) < 2 and OTHER not in speakers else ()
        return Scene("", (*speakers, *more), tuple(self.turns), source=self.source)


def after_line(
    part: Part, source: str, text: str, turn: Turn | None, faults: Faults
) -> tuple[Part | None, list[Part | Rejected]]:
    """The part in work after one more line of it (None: a new one begins), and what is ready.

    A line with a fault is rejected and ends the part, so that no reply follows a gap.
    """
    if faults.found:
        whole: list[Part | Rejected] = [part] if part.turns or part.dropped else []
        return None, [*whole, faults.rejected(source, as_utf8(text))]
    part.add_text(text)
    if turn:
        part.turns.append(turn)
    return part, []


def is_chat(first_line: bytes) -> bool:
    """True for the head, or a message, of a chat."""
    try:
        value = msgspec.json.decode(first_line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return _is_head(value) or (isinstance(value, dict) and {"mes", "is_user"} <= value.keys())


def read_chat(path: Path, names: Names, owner: str | None, name: str) -> Iterator[Part | Rejected]:
    """The chat, and every line that is no message. Such a line ends a part, so that no reply follows a gap."""
    part: Part | None = None
    character = ""
    length = 0
    for line in read_json_lines(path):
        source = f"{name}:{line.number}"
        part = part or Part(source)
        if _is_head(line.value):
            part.add_text(line.text)
            character = str(line.value.get("character_name") or "").strip()
            continue
        faults = Faults()
        turn = _turn(line, names, owner, character, faults, part.dropped)
        part, ready = after_line(part, source, line.text, turn, faults)
        yield from ready
        length = length + len(line.text) if part else 0
        if part and length > MAX_LINE_BYTES:  # a scene is held in memory
            yield part
            part, length = None, 0
    if part is not None:
        yield part


def as_utf8(text: str) -> str:
    """The text with marks in place of what UTF-8 cannot write."""
    return text.encode("utf-8", "replace").decode()


def _is_head(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() & {"mes", "turns", *FORMATS}:
        return False
    return "chat_metadata" in value or {"user_name", "character_name"} <= value.keys()


def _turn(
    line: JsonLine, names: Names, owner: str | None, character: str, faults: Faults, dropped: Counter[str]
) -> Turn | None:
    """What a message says, and who says it; None for one that is left out."""
    if line.fault:
        faults.add("too-long" if line.fault == TOO_LONG else "broken-json", line.fault)
        return None
    value = faults.mapping(line.value, "", line.value if isinstance(line.value, dict) else ())
    text = faults.text(value.get("mes"), "mes")
    speaker = faults.name(value.get("name"), "name", optional=True)
    for key in ("is_user", "is_system"):
        if not isinstance(value.get(key), bool | None):
            faults.add("wrong-type", f"{key} is not true or false")
    if faults.found:
        return None
    is_user = bool(value.get("is_user"))
    if not speaker and not is_user:
        faults.add("wrong-type", "name is missing")
        return None
    if value.get("is_system"):
        dropped["hidden_message"] += 1
        return None
    swipes = value.get("swipes")
    if isinstance(swipes, list) and len(swipes) > 1:
        dropped["unused_swipe"] += len(swipes) - 1
    if not text:
        dropped["empty_prompt" if is_user else "empty_reply"] += 1
        return None
    if is_user:
        return Turn(OTHER if speaker in NO_NAMES else names.speaker(speaker), text)
    known = names.character(speaker)
    # The card's name need not be the cast's: in a file that is listed under a character, the card is this character.
    if known is None and owner and (speaker == character or character in NO_NAMES):
        known = owner
    return Turn(known or names.speaker(speaker), text)
