"""What is odd about a dialogue that can be read all the same: replies that speak for others, assistants, mojibake.

    linter = Linter(cast, max_tokens=2048)
    for finding in linter.lint(scene):
        finding.reason, finding.turn, finding.detail          # "speaks-for-another", 3, "line 2 is Zhu Bajie's"

After reading (`read.py`) and before anything is taken out; `fix.py` mends what can be mended. What a scene's findings
are depends on this scene alone, so that many processes may each lint a part. Made for tens of millions of scenes: a
scene is searched as one text for signs first, and turn by turn only where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mrp.cast import NEUTRAL_NAME, OTHER, USER_MACRO, Cast
from mrp.data.assistant import assistant_phrase, may_hold_phrase, plays_a_machine
from mrp.data.control_text import control_text
from mrp.data.formats import ROLES
from mrp.data.likeness import is_same_text, near_name, plain_name
from mrp.data.markup import markup
from mrp.data.mojibake import may_be_mojibake, mojibake
from mrp.data.scripts import mixed_scripts, script_patterns
from mrp.data.tokens import estimated_tokens
from mrp.data.view import USER
from mrp.dialogue import Scene, Turn

WHOLE = -1  # the `turn` of a finding about the whole scene
SHOWN = 60  # characters of a text in a finding
SHOWN_EXAMPLE = 160  # characters of the text in an example
MOST_TOKENS = 1.375  # of a character, by the estimate: for quick ruling out


class Reason(NamedTuple):
    """What a finding means, what a person can do about it, and what `--fix` does ("": nothing)."""

    meaning: str
    fix: str
    mended: str = ""


FINDINGS = {
    "speaks-for-another": Reason(
        "a reply holds a line that begins with somebody else's name (or User:)",
        "make a turn of its own of that line, or delete it",
        "the reply ends before that line",
    ),
    "same-text": Reason(
        "a reply says what the line before it says",
        "write what the character answers, or delete the reply",
        "the reply is taken out",
    ),
    "assistant-ism": Reason(
        "a reply speaks as an AI assistant, not as the character",
        "write what the character would say, or delete the exchange",
        "the reply is taken out, with the prompt before it",
    ),
    "echoed-control-token": Reason(
        "a text holds pieces of a chat template",
        "delete them",
        "they are cut out, and what follows the end of the turn",
    ),
    "html": Reason(
        "a text holds tags or entities of a web page",
        "delete them, and what a site put in them",
        "layout is cut out, entities become characters; links and other marks stay, as their text may be the site's",
    ),
    "mojibake": Reason(
        "a text was read in the wrong encoding",
        "read the original in the encoding it has, and write it in UTF-8",
        "the text is put back where the way back is certain",
    ),
    "mixed-script": Reason(
        "simplified and traditional Chinese characters stand in one scene",
        "convert the scene to one of them",
    ),
    "over-length": Reason(
        "a reply, or the whole scene, is longer than a training sample may be",
        "cut the scene into several; training cuts a long scene into windows, and leaves out a reply that fits in none",
    ),
    "stranger-like-member": Reason(
        "somebody outside the cast is called nearly like a character",
        "correct the name, or add it to the character's aliases if both are one",
    ),
    "repeated-system": Reason(
        "a system text is repeated in every turn",
        "nothing needs to be done: one is read; to save room, keep the first",
    ),
    "imbalance": Reason(
        "one character has many times the lines, turns or tokens of another",
        "gather more of the smaller one, or take less of the larger one",
    ),
}


class Finding(NamedTuple):
    """Something odd: a key of `FINDINGS`, what was seen, and the index in `scene.turns` (`WHOLE` for all of them)."""

    reason: str
    detail: str
    turn: int = WHOLE


@dataclass(frozen=True, slots=True)
class Example:
    """A finding to show to people: where the scene stands (FILE:LINE), and the text of the turn."""

    source: str
    reason: str
    detail: str
    text: str = ""

    @classmethod
    def of(cls, scene: Scene, finding: Finding) -> Example:
        text = scene.turns[finding.turn].text if finding.turn != WHOLE else ""
        return cls(scene.source, finding.reason, finding.detail, _excerpt(text, finding.detail))


class Linter:
    """Finds what is odd in scenes.

    Without a cast everybody but `OTHER` counts as a character, as in `record.Names`. `max_tokens` 0: any length will
    do. `count_tokens` counts exactly; without it `estimated_tokens` does.
    """

    def __init__(
        self, cast: Cast | None, max_tokens: int = 0, count_tokens: Callable[[str], int] | None = None
    ) -> None:
        self._characters = {c.id for c in cast} if cast else None
        self._machines = {c.id for c in cast if plays_a_machine(f"{c.name}\n{c.persona}")} if cast else set()
        self._names = {plain_name(name): c.id for c in cast for name in c.names} if cast else {}
        self._shown = {c.id: c.name for c in cast} if cast else {}
        self._max_tokens, self._count = max_tokens, count_tokens or estimated_tokens
        self._surely_fits = max_tokens / (4 if count_tokens else MOST_TOKENS)  # characters; a token is a byte or more
        self._near: dict[str, str] = {}  # of speakers met outside the cast: the member they are nearly called like
        self._traditional = script_patterns()[1]

    def is_character(self, speaker: str) -> bool:
        return speaker != OTHER if self._characters is None else speaker in self._characters

    def lint(self, scene: Scene) -> list[Finding]:
        """All findings of a scene, in the order of `FINDINGS` within each kind of search."""
        found: list[Finding] = []
        turns = scene.turns
        whole = "\n".join([turn.text for turn in turns])
        if ":" in whole or "：" in whole or "【" in whole or "[" in whole:
            found += self._foreign_lines(scene)
        found += self._same_texts(turns)
        if may_hold_phrase(whole):
            found += self._assistants(turns)
        if "<" in whole or "[" in whole:
            found += [
                Finding("echoed-control-token", t, i) for i, turn in enumerate(turns) if (t := control_text(turn.text))
            ]
        if ("<" in whole or "&" in whole) and markup(whole):
            found += [Finding("html", tag, i) for i, turn in enumerate(turns) if (tag := markup(turn.text))]
        if not whole.isascii():
            if may_be_mojibake(whole):
                found += _mojibakes(turns)
            if self._traditional.search(whole):
                found += _mixture(turns, whole)
        if self._max_tokens and len(whole) > self._surely_fits:
            found += self._lengths(turns, whole)
        if self._characters is not None:
            for speaker in {turn.speaker for turn in turns}:
                if speaker not in self._characters and speaker != OTHER:
                    found += self._misspelt(speaker, turns)
        return found

    def foreign_line(self, text: str, speaker: str, present: Mapping[str, str]) -> tuple[int, str] | None:
        """Where a line begins that has somebody else's name before it, and whose it is; None where there is none.

        `present` are the names of those in the scene who are not of the cast (`names_present`).
        """
        for start, name in _name_prefixes(text):
            plain = plain_name(name)
            owner = self._names.get(plain) or present.get(plain)
            if owner is not None and owner != speaker:
                return start, owner
        return None

    def names_present(self, scene: Scene) -> dict[str, str]:
        """The speakers and participants of a scene, and whoever talks with it, by their names in small letters."""
        people = {*scene.participants, *(turn.speaker for turn in scene.turns)} - {OTHER}
        return _PERSON | {plain_name(name): name for name in people}

    def _foreign_lines(self, scene: Scene) -> Iterator[Finding]:
        present = self.names_present(scene)
        for index, turn in enumerate(scene.turns):
            if self.is_character(turn.speaker):
                found = self.foreign_line(turn.text, turn.speaker, present)
                if found:
                    start, owner = found
                    line = _short(turn.text[start:].lstrip().split("\n", 1)[0])
                    yield Finding("speaks-for-another", f"{self._shown.get(owner, owner)} speaks in it: {line}", index)

    def _same_texts(self, turns: tuple[Turn, ...]) -> list[Finding]:
        found: list[Finding] = []
        before = None
        for index, turn in enumerate(turns):
            if not turn.is_line:
                continue
            if (
                before is not None
                and abs(len(turn.text) - len(before.text)) <= 8  # first, as nearly all pairs end there
                and turn.speaker != before.speaker
                and self.is_character(turn.speaker)
                and is_same_text(before.text, turn.text)
            ):
                found.append(Finding("same-text", _short(turn.text), index))
            before = turn
        return found

    def _assistants(self, turns: tuple[Turn, ...]) -> Iterator[Finding]:
        for index, turn in enumerate(turns):
            if self.is_character(turn.speaker) and turn.speaker not in self._machines:
                phrase = assistant_phrase(turn.text)
                if phrase:
                    yield Finding("assistant-ism", _short(phrase), index)

    def _lengths(self, turns: tuple[Turn, ...], whole: str) -> list[Finding]:
        replies = [(self._count(t.text), i) for i, t in enumerate(turns) if self.is_character(t.speaker)]
        longest, index = max(replies, key=lambda pair: pair[0], default=(0, WHOLE))
        if longest > self._max_tokens:
            return [Finding("over-length", f"a reply of {longest:,} tokens, {self._max_tokens:,} fit", index)]
        tokens = self._count(whole)
        if tokens > self._max_tokens:
            return [Finding("over-length", f"a scene of {tokens:,} tokens, {self._max_tokens:,} fit")]
        return []

    def _misspelt(self, speaker: str, turns: tuple[Turn, ...]) -> list[Finding]:
        member = self._near.get(speaker)
        if member is None:
            if len(self._near) > 100_000:  # of as many strangers the first come up again first
                self._near.clear()
            member = self._near[speaker] = near_name(speaker, self._names)
        if not member:
            return []
        index = next(i for i, turn in enumerate(turns) if turn.speaker == speaker)
        return [Finding("stranger-like-member", f"{_short(speaker)} is nearly {member}", index)]


_AROUND_NAME = ' \t*_#>【】[]「」『』()（）"“”'
_LONGEST_NAME = 60
# What the person's side is called in data and templates: no name of anybody, so their lines are somebody else's.
_PERSON = dict.fromkeys(
    (*(n for n, role in ROLES.items() if role == USER), "用户", USER_MACRO, *map(str.casefold, NEUTRAL_NAME.values())),
    OTHER,
)


def _name_prefixes(text: str) -> Iterator[tuple[int, str]]:
    """Every start of a line that may be a name with a colon after it, or in heavy brackets: (where, name)."""
    start = 0
    for line in text.split("\n"):
        head = line[:_LONGEST_NAME]
        ends = [end for end in (head.find(":"), head.find("：")) if end > 0]
        if ends:
            yield start, head[: min(ends)].strip(_AROUND_NAME)
        opening = head.lstrip(" \t*")[:1]
        if opening == "【" or opening == "[":
            yield start, head.partition(opening)[2].partition("】" if opening == "【" else "]")[0].strip(_AROUND_NAME)
        start += len(line) + 1


def _mojibakes(turns: tuple[Turn, ...]) -> Iterator[Finding]:
    for index, turn in enumerate(turns):
        found = mojibake(turn.text)
        if found:
            trace, mended = found
            yield Finding("mojibake", f"{trace}: " + (_short(mended) if mended else "lost"), index)


def _mixture(turns: tuple[Turn, ...], whole: str) -> Iterator[Finding]:
    found = mixed_scripts(whole)
    if found:
        few, many = sorted(found, key=len)
        name = "simplified" if few == found[0] else "traditional"
        index = next(i for i, turn in enumerate(turns) if any(char in turn.text for char in few))
        yield Finding("mixed-script", f"{name} {_short(few, 20)} beside {_short(many, 12)}", index)


def _excerpt(text: str, detail: str) -> str:
    """At most `SHOWN_EXAMPLE` characters of a text, around what a finding's detail quotes of it."""
    if len(text) <= SHOWN_EXAMPLE:
        return text
    quoted = [detail, detail.rpartition(": ")[2], detail.partition(": ")[0], detail.partition(" ")[2][:1]]
    at = next((text.find(piece) for piece in quoted if piece and piece in text), 0)
    start = max(0, min(at - SHOWN_EXAMPLE // 3, len(text) - SHOWN_EXAMPLE))
    end = start + SHOWN_EXAMPLE
    return "…" * (start > 0) + text[start:end] + "…" * (end < len(text))


def _short(text: str, most: int = SHOWN) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
