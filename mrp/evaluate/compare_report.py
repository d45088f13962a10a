"""What an experiment shows: each arm's figures over all seeds, arms pair by pair on the same prompts, curves, costs.

    results = compared([results of each arm and seed ...], seeds=[0, 1, 2])
    write_comparison(folder, results)               # compare.html, compare.md

Intervals are over scenes: what several seeds say of one scene stays together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrp.evaluate.blocks import Block, Curves, List, Table, Text, html, markdown
from mrp.evaluate.findings import number, percent, surely
from mrp.evaluate.intervals import equal_shares, estimate
from mrp.evaluate.voice import VIEWS
from mrp.files import replacing, size_text
from mrp.page import Section, page
from mrp.report import duration_text

PROMPT = "prompt only"  # the base with the persona, which is the other side of every evaluation
FIGURES = ("loss", "accuracy", *VIEWS, "told another")
SEED = 0  # of the bootstrap
Values = dict[tuple[Any, ...], tuple[str, str, float, float]]  # by place: scene, character, value, weight


def compared(trials: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """The figures of all arms: in all, pair by pair, over the training, and what they cost."""
    names = list(dict.fromkeys(trial["arm"] for trial in trials))
    arms = {name: [trial for trial in trials if trial["arm"] == name] for name in names}
    values = {name: _values(own, "tuned") for name, own in arms.items()}
    if PROMPT not in arms:
        values = {PROMPT: _values(arms[names[0]], "base")} | values
    return {
        "seeds": list(seeds),
        "arms": {name: {key: _figure(own[key], key) for key in FIGURES if own[key]} for name, own in values.items()},
        "pairs": [_pair(a, b, values[a], values[b]) for a, b in itertools.combinations(values, 2)],
        "curves": {name: _curves(own) for name, own in arms.items()},
        "costs": {name: _cost(own) for name, own in arms.items()},
        "options": {name: own[0]["options"] for name, own in arms.items()},
        "characters": trials[0]["characters"],
        "data": {f"{t['arm']}, seed {t['seed']}": t["data"]["fingerprint"] for t in trials},
        "versions": trials[0]["versions"],
    }


def _values(trials: Sequence[dict[str, Any]], side: str) -> dict[str, Values]:
    """Every value behind the figures of one arm, by its place, so that two arms meet in the same places."""
    found: dict[str, Values] = {key: {} for key in FIGURES}
    for trial in trials:
        seed, own = trial["seed"], trial["sides"][side]
        for line, scene, who, tokens, nats, _, right in own.get("identity", {}).get("lines", []):
            found["loss"][seed, line] = scene, who, nats / tokens, tokens
            found["accuracy"][seed, line] = scene, who, right, 1
        for k, (scene, who, *right) in enumerate(own.get("voice", {}).get("replies", [])):
            for view, hit in zip(VIEWS, right, strict=True):
                found[view][seed, k, scene, who] = scene, who, hit, 1
        for k, (scene, who, right, *_) in enumerate(own.get("swapped", {}).get("replies", [])):
            found["told another"][seed, k, scene, who] = scene, who, right, 1
    return found


def _figure(values: Values, key: str) -> dict[str, Any] | None:
    scenes, who, what, weights = zip(*values.values(), strict=True)
    figure = estimate(what, scenes, SEED, _shares(who, weights), is_rate=key != "loss")
    return figure.as_json() if figure else None


def _pair(a: str, b: str, one: dict[str, Values], other: dict[str, Values]) -> dict[str, Any]:
    """`a` minus `b` where both have a value."""
    found: dict[str, Any] = {"arms": [a, b]}
    for key in FIGURES:
        both = [place for place in one[key] if place in other[key]]
        if not both:
            continue
        pairs = [one[key][place][2] - other[key][place][2] for place in both]
        scenes, who, _, weights = zip(*(one[key][place] for place in both), strict=True)
        figure = estimate(pairs, scenes, SEED, _shares(who, weights))
        found[key] = figure.as_json() if figure else None
    return found


def _shares(who: Sequence[str], weights: Sequence[float]) -> list[float]:
    """Weights with which each character counts the same."""
    if all(weight == 1 for weight in weights):
        return equal_shares(who)
    sums: dict[str, float] = {}
    for name, weight in zip(who, weights, strict=True):
        sums[name] = sums.get(name, 0.0) + weight
    return [weight / sums[name] for name, weight in zip(who, weights, strict=True)]


def _curves(trials: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Held-out loss of each character before training, within each epoch and after it, the mean over seeds."""
    found: dict[str, list[float]] = {}
    for who in trials[0]["measures"]["held_out_loss"]:
        lines = [
            [t["measures"]["held_out_loss"][who]["before"]]
            + [point["held_out_loss"][who] for point in _points(t["measures"]) if who in point["held_out_loss"]]
            for t in trials
            if who in t["measures"]["held_out_loss"]
        ]
        length = min(map(len, lines))
        found[who] = [round(sum(line[k] for line in lines) / len(lines), 6) for k in range(length)]
    return found


def _points(measures: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured within epochs and at their ends, in order; trainings of before have the ends only."""
    ends = [(number, 1, 0, one) for number, one in enumerate(measures["epochs"], 1)]
    within = [(one["epoch"], 0, one["step"], one) for one in measures.get("curve", [])]
    return [one for *_, one in sorted([*ends, *within], key=lambda row: row[:3])]


def _cost(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    costs = [trial["cost"] for trial in trials]
    peaks = [c["peak_gib"] for c in costs if c["peak_gib"] is not None]
    return {
        "seconds": round(sum(c["seconds"] for c in costs) / len(costs), 1),
        "tokens": round(sum(c["tokens"] for c in costs) / len(costs)),
        "disk_bytes": max(c["disk_bytes"] for c in costs),
        "peak_gib": max(peaks) if peaks else None,
        "device": costs[0]["device"],
        "serving": _serving([cost["serving"] for cost in costs]),
    }


def _serving(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean speed over seeds; sizes are of one run."""
    speed = sum(one["tokens_per_second"] for one in found) / len(found)
    return found[0] | {"tokens_per_second": round(speed, 1)}


# -- the report ------------------------------------------------------------------------------------------------------


def write_comparison(folder: Path, results: dict[str, Any]) -> None:
    """Write compare.html and compare.md into `folder`."""
    parts: list[tuple[str, list[Block]]] = [
        ("What was found", [List(conclusions(results)), Text("Brackets hold 95 % intervals over scenes.")]),
        ("The arms", _arms(results)),
        ("Pair by pair", _pairs(results)),
        ("What was learnt and forgotten", _forgotten(results)),
        ("What it cost", _costs(results)),
        ("How it was made", _made(results)),
    ]
    parts = [part for part in parts if part[1]]
    title = f"Comparison of {len(results['arms'])} ways to train {results['run']}"
    sections = [Section(name, [html(block) for block in blocks]) for name, blocks in parts]
    with replacing(folder / "compare.html") as file:
        file.write(page(title, " ".join(conclusions(results)[:2]), sections))
    lines = [f"# {title}", ""]
    for name, blocks in parts:
        lines += [f"## {name}", "", *(line for block in blocks for line in markdown(block))]
    with replacing(folder / "compare.md") as file:
        file.write("\n".join(lines).rstrip() + "\n")


WORDS = {
    "loss": "own loss",
    "accuracy": "identity",
    "as is": "voice",
    "masked": "voice, masked",
    "ten words": "voice, ten words",
    "told another": "told another",
}


def conclusions(results: dict[str, Any]) -> list[str]:
    """For each figure the best arm, and over which others it surely stands."""
    found = []
    for key in FIGURES:
        arms = {name: own[key] for name, own in results["arms"].items() if own.get(key)}
        if len(arms) < 2:
            continue
        sign = -1 if key == "loss" else 1
        best = max(arms, key=lambda name: sign * arms[name]["value"])
        beaten = [name for name in arms if name != best and _stands(results, best, name, key) == sign]
        told = percent(arms[best]) if key != "loss" else number(arms[best])
        rest = [name for name in arms if name != best and name not in beaten]
        text = f"{WORDS[key][0].upper()}{WORDS[key][1:]}: {best} is best with {told}"
        if beaten:
            text += f"; surely better than {', '.join(beaten)}"
        if rest:
            text += f"; not surely better than {', '.join(rest)}"
        found.append(f"{text}.")
    return found


def _stands(results: dict[str, Any], a: str, b: str, key: str) -> int:
    """1 if arm `a` has surely more than `b`, -1 if less, 0 if nothing is sure."""
    for pair in results["pairs"]:
        if set(pair["arms"]) == {a, b}:
            return surely(pair.get(key)) * (1 if pair["arms"][0] == a else -1)
    return 0


def _shown(key: str, figure: dict[str, Any] | None, sign: bool = False) -> str:
    if figure is None or key == "loss":
        return number(figure, 3, sign)
    if not sign:
        return percent(figure)
    return number(
        {name: 100 * figure[name] if figure[name] is not None else None for name in ("value", "low", "high")}, 1, True
    )


def _arms(results: dict[str, Any]) -> list[Block]:
    keys = [key for key in FIGURES if any(own.get(key) for own in results["arms"].values())]
    rows = [[name, *(_shown(key, own.get(key)) for key in keys)] for name, own in results["arms"].items()]
    note = (
        "Own loss: of held-out lines under their own identity, nats a token. Identity: the right one is the likeliest."
        " Voice: replies sound like their character; with names and signature words masked; by the first ten words."
        " Told another: told to be somebody else in a scene, the reply sounds like the one it is told to be."
    )
    return [Text(note), Table(["arm", *(WORDS[key] for key in keys)], rows)]


def _pairs(results: dict[str, Any]) -> list[Block]:
    keys = [key for key in FIGURES if any(pair.get(key) for pair in results["pairs"])]
    rows = [
        [f"{pair['arms'][0]} minus {pair['arms'][1]}", *(_shown(key, pair.get(key), True) for key in keys)]
        for pair in results["pairs"]
    ]
    note = (
        "On the same lines and prompts, with the same seeds. Loss in nats a token, all else in points of a hundred."
        " Each interval stands for itself: of twenty such differences that are none, about one looks sure."
    )
    return [Text(note), Table(["arms", *(WORDS[key] for key in keys)], rows)]


def _forgotten(results: dict[str, Any]) -> list[Block]:
    names = {c["id"]: c["name"] for c in results["characters"]}
    series = [
        (arm, {names.get(who, who): line for who, line in lines.items()}) for arm, lines in results["curves"].items()
    ]
    rows = []
    for arm, lines in results["curves"].items():
        worst = max(lines, key=lambda who: lines[who][-1] - min(lines[who]))
        rise = lines[worst][-1] - min(lines[worst])
        rows.append(
            [
                arm,
                f"{sum(line[-1] for line in lines.values()) / len(lines):.3f}",
                f"{rise:+.3f} ({names.get(worst, worst)})" if rise >= 0.0005 else "none",
            ]
        )
    head = ["arm", "loss at the end", "largest rise over a character's best point"]
    caption = (
        "Held-out loss of each character (nats a token) before training, at even distances within each epoch and after"
        " it, the mean over seeds. A line that rises is a character that is being forgotten."
    )
    return [Curves(series, "point", caption), Table(head, rows)]


def _costs(results: dict[str, Any]) -> list[Block]:
    rows = [
        [
            *(arm, duration_text(cost["seconds"]), f"{cost['tokens']:,}", size_text(cost["disk_bytes"])),
            *("-" if cost["peak_gib"] is None else f"{cost['peak_gib']:.1f} GiB", str(cost["device"])),
        ]
        for arm, cost in results["costs"].items()
    ]
    head = ["arm", "training a run", "tokens", "on disk beside the base", "peak memory of the GPU", "on"]
    return [Table(head, rows), *_serving_costs(results)]


def _serving_costs(results: dict[str, Any]) -> list[Block]:
    """What each arm takes to serve, beside a merged model for each character."""
    count = len(results["characters"])
    rows = []
    for arm, cost in results["costs"].items():
        found = cost["serving"]
        base, own = found["base_bytes"], found["own_bytes"]
        sizes = [size_text(size) for size in (base, base + own, count * base)]
        rows.append([arm, f"{found['tokens_per_second']:.1f}", *sizes])
    head = ["arm", "tokens a second", "merged into one", "base and what is beside it"]
    head.append(f"{count} merged models")
    chats = next(iter(results["costs"].values()))["serving"]["chats"]
    note = (
        f"Serving: {chats} chats at once, greedy replies of a fixed length, by this program in one process, loaded as"
        " `mrp serve` loads the run. The sizes are what lies on the disk, and about what the weights take in memory; a"
        " model with voices cannot be merged into one without losing them, and models for each character stand in"
        " memory together."
    )
    return [Table(head, rows), Text(note)]


def _made(results: dict[str, Any]) -> list[Block]:
    options = {name: ", ".join(f"{k}: {v}" for k, v in own.items()) or "-" for name, own in results["options"].items()}
    rows = [["command", results.get("command") or "-"], ["seeds", ", ".join(map(str, results["seeds"]))]]
    rows += [[f"arm {name}", text] for name, text in options.items()]
    rows += [["data", ", ".join(sorted({mark[:16] for mark in results["data"].values()}))]]
    rows += [["versions", ", ".join(f"{name} {version}" for name, version in results["versions"].items())]]
    return [Table(["what", "value"], rows)]
