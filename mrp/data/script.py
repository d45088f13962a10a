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

from mrp.data.chat import Part, as_utf8
from mrp.data.record import Faults, Names, Rejected
from mrp.dialogue import Turn

FORMAT = "script"
SCENE_SPEECHES = 20  # some 800 tokens of Shakespeare
FIRST_LINES = 20  # by which a script is known

_ALONE = re.compile(r"([^\s:：\[\](){}\"][^:：\[\]{}\"]{0,59})[:：]")
# A name in small letters is one word, so that fewer sentences with a colon are taken for a name.
_NAME = r"(?:(?![a-z])[^\s:：\[\](){}\"][^:：.,;!?。，；！？\[\]{}\"]{0,39}|[a-z][\w-]{0,39})"
_INLINE = re.compile(rf"({_NAME})[:：]\s*(\S.*)")
_HEADING = re.compile(
    r"#+\s.*|(?i:act|scene)\s+(?i:[ivxlc]+|\d+)\b.*|(PROLOGUE|EPILOGUE)\b.*|第\S{1,6}[幕场場回折].*|[-*=_]{3,}"
)
_DIRECTION = re.compile(r"\[.*\]|\(.*\)|（.*）|【.*】")


def is_script(path: Path) -> bool:
    """True for a readable .txt file that begins with NAME: alone, or where half of the first lines are NAME: TEXT.

    (After headings and stage directions; a novel has such a line here and there.)
    """
    if path.suffix.lower() != ".txt" or not path.is_file():
        return False
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            lines = (line.strip() for line in islice(file, 1000))
            spoken = (li for li in lines if li and not _HEADING.fullmatch(li) and not _DIRECTION.fullmatch(li))
            first = list(islice(spoken, FIRST_LINES))
    except OSError:
        return False  # whoever reads the file says why
    if not first or _ALONE.fullmatch(first[0]):
        return bool(first)
    return bool(_INLINE.fullmatch(first[0])) and sum(bool(_INLINE.fullmatch(li)) for li in first) * 2 >= len(first)


def read_script(path: Path, names: Names, name: str) -> Iterator[Part | Rejected]:
    """Every scene, and every paragraph that nobody speaks; such a one ends a scene, so that no reply follows a gap."""
    part: Part | None = None
    blank_lines = 1
    for number, lines in _paragraphs(path):
        source = f"{name}:{number}"
        text = "\n".join(lines)
        blank_lines = blank_lines + 1 if not lines else blank_lines
        if part and part.turns and (blank_lines > 1 or _HEADING.fullmatch(text) or len(part.turns) >= SCENE_SPEECHES):
            yield part
            part = None
        if not lines:
            continue
        blank_lines = 0
        part = part or Part(source)
        if _HEADING.fullmatch(text):
            part.add_text(text)
            part.dropped["heading"] += 1
            continue
        faults = Faults()
        turn = _speech(lines, names, faults, part)
        if faults.found:
            if part.turns or part.dropped:
                yield part
            part = None
            yield faults.rejected(source, as_utf8(text))
            continue
        part.add_text(text)
        if turn:
            part.turns.append(turn)
    if part:
        yield part


def _paragraphs(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, lines) of each speech and of each other paragraph; no lines for an empty line."""
    begun: list[str] = []
    start = 0
    inline: bool | None = None  # whether NAME: TEXT begins a speech, as the first speech does
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, raw in enumerate(file, 1):
            line = raw.strip()
            alone, with_text = _ALONE.fullmatch(line), _INLINE.fullmatch(line)
            if inline is None and (alone or with_text):
                inline = not alone
            starts = (alone and not begun) or (inline and (alone or with_text)) or _HEADING.fullmatch(line)
            if begun and (not line or starts or _HEADING.fullmatch(begun[0])):
                yield start, begun
                begun = []
            if not line:
                yield number, []
                continue
            if not begun:
                start = number
            begun.append(line)
    if begun:
        yield start, begun


def _speech(lines: list[str], names: Names, faults: Faults, part: Part) -> Turn | None:
    """What is said in a paragraph, and by whom; None for one without words."""
    alone, with_text = _ALONE.fullmatch(lines[0]), _INLINE.fullmatch(lines[0])
    spoken = [line for line in lines if not _DIRECTION.fullmatch(line)]
    if not alone and not with_text:
        if spoken:
            faults.add("no-speaker", "the paragraph does not begin with NAME:")
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
