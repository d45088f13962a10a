"""Two sides in the same places, judged in both orders: who wins, how sure that is, and whether the judge is biased.

    pairs = pair_questions(said, places, ("tuned", "base"))
    figures = pair_figures(said, pairs, rulings, seed=0)     # figures["all"]["wins"], figures["position"]

A win counts only if the judge prefers the same reply in both orders (position bias of judges: Zheng et al. 2023, arXiv
2306.05685); if the orders disagree it is a tie. Two equal replies are a tie without being asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mrp.evaluate.intervals import equal_shares, estimate
from mrp.judge.asking import Ruling
from mrp.judge.questions import Question, pair_question
from mrp.judge.said import Place, Said

OUTCOMES = {"one": 1.0, "tie": 0.5, "other": 0.0}


@dataclass(frozen=True)
class Pair:
    """Two replies in one place, and the questions about them: `one` first, then `other` first; none if equal."""

    place: Place
    questions: tuple[Question, ...]


def pair_questions(said: Said, places: Sequence[Place], sides: tuple[str, str]) -> list[Pair]:
    """A pair for each place in which both sides spoke."""
    pairs = []
    for place in places:
        one, other = (place.said.get(side) for side in sides)
        if one is None or other is None:
            continue
        asked = () if one.strip() == other.strip() else (
            pair_question(said, place, one, other),
            pair_question(said, place, other, one),
        )  # fmt: skip
        pairs.append(Pair(place, asked))
    return pairs


def outcome(rulings: Sequence[Ruling]) -> str | None:
    """ "one", "other" or "tie" of the two rulings of a pair (none: equal replies); None where a verdict is missing."""
    if not rulings:
        return "tie"
    first, second = (ruling.verdict for ruling in rulings)
    if first is None or second is None:
        return None
    if (first, second) == ("A", "B"):
        return "one"
    return "other" if (first, second) == ("B", "A") else "tie"


def pair_figures(pairs: Sequence[Pair], rulings: Sequence[Sequence[Ruling]], seed: int) -> dict[str, Any]:
    """Wins, ties, losses and score (a tie is half a win) of the first side, in all and by character, and the bias.

    `position`: of the verdicts that name a reply, how many name the one that stands first (0.5: no bias).
    `disagree`: pairs whose two orders do not say the same. `without`: pairs left out for want of a verdict.
    """
    results = [outcome(own) for own in rulings]
    counted = [(p.place, result) for p, result in zip(pairs, results, strict=True) if result is not None]
    people = dict.fromkeys(place.character for place, _ in counted)
    picks = [
        (float(ruling.verdict == "A"), pair.place.unit)
        for pair, own in zip(pairs, rulings, strict=True)
        for ruling in own
        if ruling.verdict in ("A", "B")
    ]
    judged = [
        (pair.place.unit, float(a.verdict != {"A": "B", "B": "A"}.get(b.verdict, b.verdict)))
        for pair, own in zip(pairs, rulings, strict=True)
        if len(own) == 2 and None not in ((a := own[0]).verdict, (b := own[1]).verdict)
    ]
    position = estimate([x for x, _ in picks], [unit for _, unit in picks], seed, is_rate=True)
    disagree = estimate([x for _, x in judged], [unit for unit, _ in judged], seed, is_rate=True)
    return {
        "all": _figures(counted, seed),
        "characters": {who: _figures([row for row in counted if row[0].character == who], seed) for who in people},
        "position": position.as_json() if position else None,
        "disagree": disagree.as_json() if disagree else None,
        "pairs": len(pairs),
        "same": sum(not own for own in rulings),
        "without": results.count(None),
    }


def _figures(rows: Sequence[tuple[Place, str]], seed: int) -> dict[str, Any]:
    units, shares = [place.unit for place, _ in rows], equal_shares([place.character for place, _ in rows])

    def rate(values: Sequence[float]) -> dict[str, Any] | None:
        found = estimate(values, units, seed, shares, is_rate=True)
        return found.as_json() if found else None

    return {
        "wins": rate([float(result == "one") for _, result in rows]),
        "ties": rate([float(result == "tie") for _, result in rows]),
        "losses": rate([float(result == "other") for _, result in rows]),
        "score": rate([OUTCOMES[result] for _, result in rows]),
    }
