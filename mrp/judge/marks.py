"""Marks for single replies: of each side and of the real lines, in every dimension of the rubric.

    asked = mark_questions(said, places, ("tuned", "base"))
    figures = mark_figures(asked, rulings, ("tuned", "base"), seed=0)     # figures["sides"]["tuned"]["all"]["voice"]

Real lines are marked as replies are, without being named: what they get is what the judge can see at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mrp.evaluate.intervals import difference, equal_shares, estimate
from mrp.judge.asking import Ruling
from mrp.judge.questions import Question, rubric_question
from mrp.judge.rubric import IDS
from mrp.judge.said import Place, Said

REAL = "real"
MEAN = "mean"  # over the dimensions


@dataclass(frozen=True)
class Marked:
    """A reply to be marked: what `side` said in a place."""

    place: Place
    side: str
    question: Question


def mark_questions(said: Said, places: Sequence[Place], sides: Sequence[str]) -> list[Marked]:
    """Each reply of `sides`, and each real line once (places LINE#0, LINE#1 are the same line)."""
    found = []
    real: set[str] = set()  # lines whose real text is asked about
    for place in places:
        replies = {side: place.said[side] for side in sides if side in place.said}
        if place.real.strip() and (line := place.id.partition("#")[0]) not in real:
            real.add(line)
            replies[REAL] = place.real
        found += [Marked(place, side, rubric_question(said, place, text)) for side, text in replies.items()]
    return found


def mean_of(scores: dict[str, int]) -> float:
    return sum(scores[name] for name in IDS) / len(IDS)


def mark_figures(
    asked: Sequence[Marked], rulings: Sequence[Ruling], sides: tuple[str, str], seed: int
) -> dict[str, Any]:
    """Mean marks of each side in each dimension and over all of them, in all (each character counts the same) and by
    character; and the difference of the two sides, paired by place. `without`: replies without a verdict."""
    rows = [(one, ruling.verdict) for one, ruling in zip(asked, rulings, strict=True) if ruling.verdict is not None]
    found: dict[str, Any] = {}
    for side in (*sides, REAL):
        own = [(one.place, marks) for one, marks in rows if one.side == side]
        if own:
            people = dict.fromkeys(place.character for place, _ in own)
            by_person = {who: _figures([row for row in own if row[0].character == who], seed) for who in people}
            found[side] = {"all": _figures(own, seed), "characters": by_person}
    both = _paired(rows, sides)
    return {
        "sides": found,
        "difference": {name: _difference(both, name, seed) for name in (*IDS, MEAN)},
        "replies": len(asked),
        "without": len(asked) - len(rows),
    }


def _value(marks: dict[str, int], name: str) -> float:
    return mean_of(marks) if name == MEAN else float(marks[name])


def _figures(rows: Sequence[tuple[Place, dict[str, int]]], seed: int) -> dict[str, Any]:
    units, shares = [place.unit for place, _ in rows], equal_shares([place.character for place, _ in rows])
    found = {name: estimate([_value(m, name) for _, m in rows], units, seed, shares) for name in (*IDS, MEAN)}
    return {name: figure.as_json() if figure else None for name, figure in found.items()}


def _paired(
    rows: Sequence[tuple[Marked, dict[str, int]]], sides: tuple[str, str]
) -> list[tuple[Place, dict[str, int], dict[str, int]]]:
    by_side = {side: {one.place.id: (one.place, m) for one, m in rows if one.side == side} for side in sides}
    first, second = (by_side[side] for side in sides)
    return [(place, m, second[at][1]) for at, (place, m) in first.items() if at in second]


def _difference(
    both: Sequence[tuple[Place, dict[str, int], dict[str, int]]], name: str, seed: int
) -> dict[str, Any] | None:
    values = difference([_value(a, name) for _, a, _ in both], [_value(b, name) for _, _, b in both])
    shares = equal_shares([place.character for place, _, _ in both])
    found = estimate(values, [place.unit for place, _, _ in both], seed, shares)
    return found.as_json() if found else None
