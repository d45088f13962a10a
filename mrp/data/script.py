"""Plain play scripts (.txt): NAME: alone on a line before what is spoken, or NAME: TEXT on one line.

    GLOUCESTER:
    Now is the winter of our discontent
    Made glorious summer by this sun of York;

    Guard: Who goes there?

Called by `read.py`. A heading (ACT I, SCENE 2, # ..., ---, 第三幕) or two empty lines begin a scene, and so does every
`SCENE_SPEECHES`th speech, as many scripts mark no scenes. Headings, and stage directions (lines all in brackets), are
left out and counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mrp.data.chat import Part, after_line
from mrp.data.record import Faults, Names, Rejected
from mrp.data.stream import MAX_LINE_BYTES, TOO_LONG
from mrp.data.textlines import text_lines
from mrp.dialogue import Turn

FORMAT = "script"
SCENE_SPEECHES = 20  # some 800 tokens of Shakespeare
FIRST_LINES = 20  # by which a script is known
LINE_COST = 64  # bytes that a line in memory takes beside its text
LONGEST_HEAD = 1000  # characters of a line in which a name or a heading is looked for

_ALONE = re.compile(r"([^\s:：\[\](){}\"][^:：\[\]{}\"]{0,59})[:：]")
# A name in small letters is one word, so that fewer sentences with a colon are taken for a name.
_NAME = r"(?:(?![a-z])[^\s:：\[\](){}\"][^:：.,;!?。，；！？\[\]{}\"]{0,39}|[a-z][\w-]{0,39})"
_INLINE = re.compile(rf"({_NAME})[:：]\s*(\S.*)")
HEADING = re.compile(
    r"#+\s.*|(?i:act|scene)\s+(?i:[ivxlc]+|\d+)\b.*|(PROLOGUE|EPILOGUE)\b.*|第\S{1,6}[幕场場回折].*|[-*=_]{3,}"
)
DIRECTION = re.compile(r"\[.*\]|\(.*\)|（.*）|【.*】")


def is_script(lines: list[str]) -> bool:
    """True for the beginning of a text that begins with NAME: alone, or where half of the first lines are NAME: TEXT.

    (After headings and stage directions; a novel has such a line here and there.)
    """
    spoken = (line for line in lines if not HEADING.fullmatch(line) and not DIRECTION.fullmatch(line))
    first = list(islice(spoken, FIRST_LINES))
    if not first or _ALONE.fullmatch(first[0]):
        return bool(first)
    return bool(_INLINE.fullmatch(first[0])) and sum(bool(_INLINE.fullmatch(li)) for li in first) * 2 >= len(first)


def read_script(path: Path, names: Names, name: str) -> Iterator[Part | Rejected]:
    """Every scene, and every paragraph that nobody speaks; such a one ends a scene, so that no reply follows a gap."""
    part: Part | None = None
    blank_lines = 1
    for number, lines, is_too_long in _paragraphs(path):
        source = f"{name}:{number}"
        text = "\n".join(lines)
        blank_lines = blank_lines + 1 if not lines else blank_lines
        if part and part.turns and (blank_lines > 1 or HEADING.fullmatch(text) or len(part.turns) >= SCENE_SPEECHES):
            yield part
            part = None
        if not lines:
            continue
        blank_lines = 0
        part = part or Part(source)
        if HEADING.fullmatch(text):
            part.add_text(text)
            part.dropped["heading"] += 1
            continue
        faults = Faults()
        if is_too_long:
            faults.add("too-long", TOO_LONG)
        turn = None if is_too_long else _speech(lines, names, faults, part)
        part, ready = after_line(part, source, text, turn, faults)
        yield from ready
    if part:
        yield part


def _paragraphs(path: Path) -> Iterator[tuple[int, list[str], bool]]:
    """(line number, lines, whether it is too long) of each speech and of each other paragraph; no lines for an empty
    line."""
    begun: list[str] = []
    length = start = 0
    inline: bool | None = None  # whether NAME: TEXT begins a speech, as the first speech does
    for line in text_lines(path):
        text = line.text.strip()
        if line.is_too_long:
            length = MAX_LINE_BYTES + 1
        short = text[:LONGEST_HEAD]
        alone, with_text = _ALONE.fullmatch(short), _INLINE.match(short)
        if inline is None and (alone or with_text):
            inline = not alone
        starts = (alone and not begun) or (inline and (alone or with_text)) or HEADING.fullmatch(short)
        if begun and (not text or starts or HEADING.fullmatch(begun[0][:LONGEST_HEAD])):
            yield start, begun, length > MAX_LINE_BYTES
            begun, length = [], 0
        if not text:
            yield line.number, [], False
            continue
        if not begun:
            start = line.number
        length += len(text) + LINE_COST
        if length <= MAX_LINE_BYTES or not begun:
            begun.append(text)
    if begun:
        yield start, begun, length > MAX_LINE_BYTES


def _speech(lines: list[str], names: Names, faults: Faults, part: Part) -> Turn | None:
    """What is said in a paragraph, and by whom; None for one without words."""
    alone, with_text = _ALONE.fullmatch(lines[0]), _INLINE.fullmatch(lines[0])
    spoken = [line for line in lines if not DIRECTION.fullmatch(line)]
    if not alone and not with_text:
        if spoken:
            faults.add("no-speaker", "the paragraph does not begin with NAME:")
            return None
        part.dropped["stage_direction"] += len(lines)
        return None
    found = alone or with_text
    assert found is not None
    speaker = names.speaker(faults.name(found[1].strip(), "the name"))
    first = [] if alone else [found[2]]
    text = faults.text("\n".join([*first, *spoken[1:]]), "the speech")
    if faults.found:
        return None
    part.dropped["stage_direction"] += len(lines) - len(spoken)
    if not text:
        part.dropped["empty_reply" if names.is_character(speaker) else "empty_prompt"] += 1
        return None
    return Turn(speaker, text)
