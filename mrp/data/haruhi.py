"""Texts as ChatHaruhi and its kin keep them (.txt): NAME:「what is said」 on a line, a file or a paragraph for a scene.

    春日:「社团名字我刚刚已经想到了!」
    阿虚：「……那你说来听听啊!」(叹气)
    旁白: SOS是由世界sekai的S所组成.

Called by `read.py`. The marks around what is said (「」, 『』, “”) are taken off; NAME: TEXT without marks (旁白: ...,
a narrator) is a line of NAME too. Empty lines part scenes, or, in a file with one after nearly each line, two of them
do. ChatHaruhi 2.0 has a folder `characters/NAME/texts` with a file for each scene.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, islice, pairwise
from pathlib import Path

from mrp.data.chat import Part, after_line
from mrp.data.record import Faults, Names, Rejected
from mrp.data.script import DIRECTION, HEADING, LINE_COST, LONGEST_HEAD, SCENE_SPEECHES
from mrp.data.stream import MAX_LINE_BYTES, TOO_LONG
from mrp.data.textlines import TextLine, text_lines
from mrp.dialogue import Turn

FORMAT = "haruhi"
FIRST_LINES = 20  # by which such a text is known
MARKS = {"「": "」", "『": "』", "“": "”"}
NEAR_LINES = 40  # of the beginning, by which it is decided what empty lines mean

_NAME = r"([^\s:：「」『』“”{}\[\]\"][^:：「」『』“”{}\[\]\"]{0,59})"
_SAID = re.compile(rf"{_NAME}[:：]\s*(\S?)")
_AFTER = re.compile(r"[\s。.,，!！?？…]*")
_TAIL = re.compile(r"(\(.*\)|（.*）|【.*】|\[.*\])?[\s。.,，!！?？…]*")


def is_haruhi(lines: list[str]) -> bool:
    """True for the beginning of a text of which half of the first lines are NAME:「..., all others NAME: TEXT or
    directions."""
    spoken = [line[:LONGEST_HEAD] for line in lines if not _is_note(line)][:FIRST_LINES]
    found = [_SAID.match(line) for line in spoken]
    marked = sum(1 for match in found if match and match[2] in MARKS and match[2])
    return 2 * marked >= len(spoken) > 0


def read_haruhi(path: Path, names: Names, name: str) -> Iterator[Part | Rejected]:
    """Every scene, and every line that nobody says; such a one ends a scene, so that no reply follows a gap."""
    part: Part | None = None
    for speech, is_too_long in _speeches(path):
        if not speech:  # a scene ends here
            if part:
                yield part
            part = None
            continue
        source = f"{name}:{speech[0].number}"
        if part and len(part.turns) >= SCENE_SPEECHES and _is_note(speech[0].text):
            yield part
            part = None
        part = part or Part(source)
        faults = Faults()
        if is_too_long:
            faults.add("too-long", TOO_LONG)
        turn = None if is_too_long else _turn(speech, names, faults, part)
        text = "\n".join(line.text for line in speech)
        part, ready = after_line(part, source, text, turn, faults)
        yield from ready
    if part:
        yield part


def _speeches(path: Path) -> Iterator[tuple[list[TextLine], bool]]:
    """The lines of each speech (more than one where a mark is closed on a later line), and whether it is too long; []
    where a scene ends."""
    lines = text_lines(path)
    first = list(islice(lines, NEAR_LINES))
    blanks_between = _blanks_between(first)
    begun: list[TextLine] = []
    length = blank = 0
    for line in chain(first, lines):
        line = TextLine(line.number, line.text.strip(), line.is_too_long)
        if not line.text:
            blank += 1
            if begun:
                yield begun, length > MAX_LINE_BYTES
                begun, length = [], 0
            if blank == blanks_between:
                yield [], False
            continue
        blank = 0
        head = line.text[:LONGEST_HEAD]
        if begun and (_SAID.match(head) or _is_note(head) or _is_closed(begun)):
            yield begun, length > MAX_LINE_BYTES
            begun, length = [], 0
        length += MAX_LINE_BYTES + 1 if line.is_too_long else len(line.text) + LINE_COST
        if length <= MAX_LINE_BYTES or not begun:
            begun.append(line)
    if begun:
        yield begun, length > MAX_LINE_BYTES


def _blanks_between(first: list[TextLine]) -> int:
    """How many empty lines part two scenes: 2 where one follows nearly each line, else 1."""
    texts = [line.text.strip() for line in first]
    spoken = sum(1 for text in texts if text)
    after = sum(1 for text, following in pairwise(texts) if text and not following)
    return 2 if spoken >= 3 and after * 4 >= (spoken - 1) * 3 else 1


def _is_note(line: str) -> bool:
    """True for a heading, or a direction in brackets."""
    short = line[:LONGEST_HEAD]
    return bool(HEADING.fullmatch(short) or DIRECTION.fullmatch(short))


def _is_closed(speech: list[TextLine]) -> bool:
    """True unless the speech begins with a mark that none of its lines closes."""
    found = _SAID.match(speech[0].text[:LONGEST_HEAD])
    if not found or found[2] not in MARKS or not found[2]:
        return True
    return MARKS[found[2]] in speech[-1].text


def _turn(speech: list[TextLine], names: Names, faults: Faults, part: Part) -> Turn | None:
    """What is said, and by whom; None for what is left out."""
    first = speech[0].text
    found = _SAID.match(first)
    if _is_note(first) and not (found and found[2] in MARKS and found[2]):
        part.dropped["heading" if HEADING.fullmatch(first[:LONGEST_HEAD]) else "stage_direction"] += 1
        return None
    if not found:
        faults.add("no-speaker", "the line does not begin with NAME:")
        return None
    speaker = names.speaker(faults.name(found[1].strip(), "the name"))
    text = faults.text("\n".join([first[found.start(2) :], *(line.text for line in speech[1:])]), "the line")
    if faults.found:
        return None
    text, directions = _without_marks(text)
    part.dropped["stage_direction"] += directions
    if not text:
        part.dropped["empty_reply" if names.is_character(speaker) else "empty_prompt"] += 1
        return None
    return Turn(speaker, text)


def _without_marks(text: str) -> tuple[str, int]:
    """What stands between the marks, and how many directions behind it were left out; all of it where it is not one
    text in marks (「a」he said「b」)."""
    close = MARKS.get(text[:1])
    if close is None:
        return text, 0
    depth = 0
    for found in re.finditer(f"[{text[0]}{close}]", text):
        depth += 1 if found.group() == text[0] else -1
        if depth == 0:
            tail = text[found.end() :].strip()
            if _TAIL.fullmatch(tail):
                return text[1 : found.start()].strip(), int(not _AFTER.fullmatch(tail))
            return text, 0
    inside = text[1:].strip()
    # More marks are opened than closed (people forget one): the last one closes the text.
    return (inside.removesuffix(close).strip() if inside.endswith(close) else inside), 0
