"""What a comparison says in plain words, each sentence made from its figures.

    conclusions(results)      # ["Judged by own loss, identity and voice together, only ...", "Identity: ...", ...]

`results` is what `compare_report.compared` gives. Used for the top of its report.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mrp.evaluate.counts import PUBLISHED
from mrp.evaluate.findings import number, percent, surely
from mrp.evaluate.voice import VIEWS
from mrp.files import size_text
from mrp.report import duration_text

PROMPT = "prompt only"  # the base with the persona, which is the other side of every evaluation
FORGOT = "everyday talk"
FIGURES = ("loss", "accuracy", *VIEWS, "told another", FORGOT)
LOWER_IS_BETTER = ("loss", FORGOT)  # both in nats a token; all others are rates
JUDGED = ("loss", "accuracy", "as is", "told another")  # together: each alone fools
SEEDS = 3  # from which differences between arms may be published
RISE = 0.0005  # nats a token: less shows as nothing
WORDS = {
    "loss": "own loss",
    "accuracy": "identity",
    "as is": "voice",
    "masked": "voice, masked",
    "ten words": "voice, ten words",
    "told another": "told another",
    FORGOT: "everyday talk forgot",
}


def conclusions(results: dict[str, Any]) -> list[str]:
    """Who plays best in all, then each figure, what was forgotten, and what it took; the most important first."""
    parts = (_together, _each_figure, _rises, _took, _how_few)
    return [text for part in parts for text in part(results)]


def stands(results: dict[str, Any], a: str, b: str, key: str) -> int:
    """1 if arm `a` has surely more than `b`, -1 if less, 0 if nothing is sure."""
    for pair in results["pairs"]:
        if set(pair["arms"]) == {a, b}:
            return surely(pair.get(key)) * (1 if pair["arms"][0] == a else -1)
    return 0


def beaten_on(results: dict[str, Any], arm: str) -> dict[str, list[str]]:
    """The figures on which other arms are surely better than `arm`, and which arms these are."""
    found: dict[str, list[str]] = {}
    for key in JUDGED:
        better = -1 if key in LOWER_IS_BETTER else 1
        over = [other for other in results["arms"] if other != arm and stands(results, other, arm, key) == better]
        if over:
            found[key] = over
    return found


def worst_rise(lines: dict[str, list[float]]) -> tuple[str, float]:
    """The character whose loss ends furthest above its lowest point, and by how much (nats a token)."""
    worst = max(lines, key=lambda who: lines[who][-1] - min(lines[who]))
    return worst, lines[worst][-1] - min(lines[worst])


def shown(key: str, figure: dict[str, Any] | None, sign: bool = False) -> str:
    """A figure of `FIGURES` with its interval; `sign`: a difference, of rates in points of a hundred."""
    if figure is None or key in LOWER_IS_BETTER:
        return number(figure, 3, sign or key == FORGOT)
    if not sign:
        return percent(figure)
    return number(
        {name: 100 * figure[name] if figure[name] is not None else None for name in ("value", "low", "high")}, 1, True
    )


def _together(results: dict[str, Any]) -> Iterator[str]:
    judged = [key for key in JUDGED if sum(bool(own.get(key)) for own in results["arms"].values()) > 1]
    if not judged:
        return
    words = _listed([WORDS[key] for key in judged])
    measured = [arm for arm, own in results["arms"].items() if all(own.get(key) for key in judged)]
    beaten = {arm: beaten_on(results, arm) for arm in measured}
    free = [arm for arm, on in beaten.items() if not on]
    begin = f"Judged by {words} together" if len(judged) > 1 else f"Judged by {words} alone"
    if len(free) == 1:
        yield f"{begin}, only {free[0]} is surely beaten nowhere."
    elif free:
        yield f"{begin}, {_listed(free)} are surely beaten nowhere, so these figures do not choose between them."
    else:
        yield f"{begin}, every arm is surely beaten somewhere: none plays best in everything."
    lost = {arm: on for arm, on in beaten.items() if on}
    if lost:
        texts = (f"{arm} on {_listed([WORDS[key] for key in on])}" for arm, on in lost.items())
        yield f"Surely beaten: {'; '.join(texts)}."


def _each_figure(results: dict[str, Any]) -> Iterator[str]:
    """For each figure the best arm, and over which others it surely stands."""
    for key in FIGURES:
        arms = {name: own[key] for name, own in results["arms"].items() if own.get(key)}
        if len(arms) < 2:
            continue
        sign = -1 if key in LOWER_IS_BETTER else 1
        best = max(arms, key=lambda name: sign * arms[name]["value"])
        beaten = [name for name in arms if name != best and stands(results, best, name, key) == sign]
        rest = [name for name in arms if name != best and name not in beaten]
        text = f"{WORDS[key][0].upper()}{WORDS[key][1:]}: {best} is best with {shown(key, arms[best])}"
        if beaten:
            text += f"; surely better than {', '.join(beaten)}"
        if rest:
            text += f"; not surely better than {', '.join(rest)}"
        yield f"{text}."


def _rises(results: dict[str, Any]) -> Iterator[str]:
    """Who was forgotten on the way."""
    names = {c["id"]: c["name"] for c in results["characters"]}
    rises = {arm: worst_rise(lines) for arm, lines in results["curves"].items() if lines}
    risen = [
        f"{arm} {rise:+.3f} ({names.get(who, who)})" for arm, (who, rise) in rises.items() if round(rise, 3) >= RISE
    ]
    if risen:
        yield f"Above the best point that a character had on the way, in nats a token: {', '.join(risen)}."
    elif rises:
        yield "No character ends above the best point that it had on the way."


def _took(results: dict[str, Any]) -> Iterator[str]:
    """The least and the most of time and disk."""
    costs = results["costs"]
    if len(costs) < 2:
        return
    quick, slow = (pick(costs, key=lambda arm: costs[arm]["seconds"]) for pick in (min, max))
    small, large = (pick(costs, key=lambda arm: costs[arm]["disk_bytes"]) for pick in (min, max))
    least, most = (size_text(costs[arm]["disk_bytes"]) for arm in (small, large))
    lies = f"{least} in every arm" if least == most else f"{least} ({small}) to {most} ({large})"
    took = f"{duration_text(costs[quick]['seconds'])} ({quick}) to {duration_text(costs[slow]['seconds'])} ({slow})"
    yield f"Training took {took}; beside the base lie {lies}."


def _how_few(results: dict[str, Any]) -> Iterator[str]:
    """On how little all this stands, where it is too little to publish."""
    figures: dict[str, Any] = next((own for own in reversed(results["arms"].values()) if own), {})
    seeds, wanted = len(results["seeds"]), PUBLISHED * len(results["characters"]) * len(results["seeds"])
    made = {key: figures[key]["n"] for key in ("accuracy", "as is") if figures.get(key)}
    if made and (seeds < SEEDS or made.get("as is", wanted) < wanted):
        counted = [f"{made['accuracy']} scored lines"] if "accuracy" in made else []
        counted += [f"{made['as is']} replies"] if "as is" in made else []
        counted.append("one seed" if seeds == 1 else f"{seeds} seeds")
        yield (
            f"All this stands on {_listed(counted)} an arm: enough to look at, too little to publish (full: true in"
            f" the experiment makes {PUBLISHED} replies a character; take {SEEDS} seeds)."
        )


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
