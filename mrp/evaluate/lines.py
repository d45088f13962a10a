"""The characters' own lines in built data, each with the place where it was said: what evaluation measures with.

    lines = read_lines(run.data / "held-out.jsonl", run.cast)      # a Line for each learnt reply
    spread(lines, 12, seed=0)                                      # the same 12 for each seed, over many scenes

Before everything else in the flow of `mrp eval`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrp.cast import PLAIN, Cast
from mrp.data.samples import Sample, read_samples
from mrp.data.view import SYSTEM, Message, system_text, view, view_for_reply


@dataclass(frozen=True)
class Line:
    """A reply of `sample.character`: the turns from `start` to before `end` (own lines that follow one another)."""

    sample: Sample
    start: int
    end: int

    @property
    def id(self) -> str:
        return f"{self.sample.id}/{self.start}"

    @property
    def character(self) -> str:
        return self.sample.character

    @property
    def scene(self) -> str:
        return self.sample.scene

    @property
    def text(self) -> str:
        return "\n".join(t.text for t in self.sample.turns[self.start : self.end] if not t.enters)

    @property
    def question(self) -> str:
        """What somebody else said just before; "" where the character opens."""
        before = [t for t in self.sample.turns[: self.start] if not t.enters]
        return before[-1].text if before else ""

    def messages(self, cast: Cast, told: str) -> list[Message]:
        """The scene up to and with this reply, the reply learnt, under the identity of `told`.

        Only the system message changes: who said what stays as it was.
        """
        s = self.sample
        learnt = [self.start <= k < self.end for k in range(self.end)]
        messages = view(s.turns[: self.end], learnt, s.participants, s.character, cast, s.scenario)
        return _told(messages, cast, told, s.scenario)

    def asked(self, cast: Cast, told: str) -> list[Message]:
        """The same without the reply: what asks for it."""
        s = self.sample
        messages = view_for_reply(s.turns[: self.start], s.participants, s.character, cast, s.scenario)
        return _told(messages, cast, told, s.scenario)


def _told(messages: list[Message], cast: Cast, told: str, scenario: str) -> list[Message]:
    assert messages[0].role == SYSTEM  # every character of a cast has an identity text
    return [Message(SYSTEM, system_text(cast, told, scenario)), *messages[1:]]


def read_lines(path: Path, cast: Cast) -> list[Line]:
    """Each learnt reply of the cast once, in the order of the file. Raises `InputError` for a broken file."""
    if not path.is_file() or not path.stat().st_size:
        return []
    known = {c.id for c in cast}
    samples = {_first(s.id): s for s in read_samples(path) if s.character in known and s.character != PLAIN}
    return [line for sample in samples.values() for line in lines_of(sample)]


def lines_of(sample: Sample) -> Iterator[Line]:
    """The replies of a sample that are learnt whole."""
    start: int | None = None
    turns = sample.turns
    for k in range(len(turns) + 1):
        if k < len(turns) and turns[k].enters:
            continue
        own = k < len(turns) and turns[k].speaker == sample.character
        if own and start is None:
            start = k
        elif not own and start is not None:
            end = max(j for j in range(start, k) if not turns[j].enters) + 1
            if all(sample.loss[j] for j in range(start, end) if not turns[j].enters):
                yield Line(sample, start, end)
            start = None


def by_character(lines: Iterable[Line], cast: Cast) -> dict[str, list[Line]]:
    """The lines of each character, in the cast's order."""
    found: dict[str, list[Line]] = {c.id: [] for c in cast}
    for line in lines:
        found[line.character].append(line)
    return found


def spread(lines: Sequence[Line], count: int, seed: int) -> list[Line]:
    """At most `count` lines, from as many scenes as can be: one of each scene, then a second, by a hash of the seed."""
    ordered = sorted(lines, key=lambda line: _hash(seed, line.id))
    rounds: dict[str, int] = {}
    ranked = []
    for place, line in enumerate(ordered):
        rounds[line.scene] = turn = rounds.get(line.scene, -1) + 1
        ranked.append((turn, place, line))
    return [line for _, _, line in sorted(ranked, key=lambda entry: entry[:2])][:count]


def _first(sample_id: str) -> str:
    """The id of a sample of which this is a copy (ID#2), or its own."""
    base, mark, copy = sample_id.rpartition("#")
    return base if mark and "@" in base and copy.isdecimal() else sample_id


def _hash(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()
