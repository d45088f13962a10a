"""What an experiment shows: each arm's figures over all seeds, arms pair by pair on the same prompts, curves, costs.

    results = compared([results of each arm and seed ...], seeds=[0, 1, 2])
    write_comparison(folder, results)               # compare.html, compare.md

Intervals are over scenes: what several seeds say of one scene stays together.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrp.evaluate.blocks import Block, Curves, List, Table, Text, html, markdown
from mrp.evaluate.compare_findings import (
    FIGURES,
    FORGOT,
    LOWER_IS_BETTER,
    PROMPT,
    WORDS,
    conclusions,
    shown,
    worst_rise,
)
from mrp.evaluate.compare_glance import glance
from mrp.evaluate.compare_replies import confusion_blocks, confusions, reply_blocks, side_by_side
from mrp.evaluate.findings import surely
from mrp.evaluate.intervals import equal_shares, estimate
from mrp.evaluate.voice import VIEWS
from mrp.files import replacing, size_text
from mrp.page import Section, page
from mrp.report import duration_text

SEED = 0  # of the bootstrap
FURTHER = ("masked", "ten words")  # ways to look at a voice
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
        "curve_steps": {name: _curve_steps(own[0]["measures"]) for name, own in arms.items()},
        "costs": {name: _cost(own) for name, own in arms.items()},
        "confusion": confusions(arms),
        "samples": side_by_side(arms),
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
        for k, (before, after, tokens) in enumerate((own.get("retention") or {}).get("lines", [])):
            found[FORGOT][seed, k] = f"everyday {k}", "", (after - before) / tokens, tokens
    return found


def _figure(values: Values, key: str) -> dict[str, Any] | None:
    scenes, who, what, weights = zip(*values.values(), strict=True)
    figure = estimate(what, scenes, SEED, _shares(who, weights), is_rate=key not in LOWER_IS_BETTER)
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


def _curve_steps(measures: dict[str, Any]) -> dict[str, list[int]]:
    """Steps done at each point of a character's curve, in the first seed's training."""
    return {
        who: [0, *(_step(measures, point) for point in _points(measures) if who in point["held_out_loss"])]
        for who in measures["held_out_loss"]
    }


def _step(measures: dict[str, Any], point: dict[str, Any]) -> int:
    """Steps done at a point; trainings of before did not note them at the ends of epochs."""
    if "step" in point:
        return int(point["step"])
    evenly: float = measures["steps"] * point.get("epoch", 1) / len(measures["epochs"])
    return round(evenly)


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
    """The mean speeds over seeds; sizes are of one run."""
    means: dict[str, float | None] = {}
    for way in ("tokens_per_second", "merged", "apart"):
        speeds = [one[way] for one in found if one[way] is not None]
        means[way] = round(sum(speeds) / len(speeds), 1) if speeds else None
    return found[0] | means


# -- the report ------------------------------------------------------------------------------------------------------


def write_comparison(folder: Path, results: dict[str, Any]) -> None:
    """Write compare.html and compare.md into `folder`."""
    parts: list[tuple[str, list[Block]]] = [
        ("At a glance", glance(results)),
        ("What was found", [List(conclusions(results)), Text("Brackets hold 95 % intervals over scenes.")]),
        ("The arms", _arms(results)),
        ("Pair by pair", _pairs(results)),
        ("What was learnt and forgotten", _forgotten(results)),
        ("What it cost", _costs(results)),
        ("Who would say it", confusion_blocks(results)),
        ("The same question, side by side", reply_blocks(results)),
        ("How it was made", _made(results)),
    ]
    parts = [part for part in parts if part[1]]
    title = f"Comparing {len(results['costs'])} ways to train {results['run']}"
    sections = [Section(name, [html(block) for block in blocks]) for name, blocks in parts]
    with replacing(folder / "compare.html") as file:
        file.write(page(title, " ".join(conclusions(results)[:2]), sections))
    lines = [f"# {title}", ""]
    for name, blocks in parts:
        lines += [f"## {name}", "", *(line for block in blocks for line in markdown(block))]
    with replacing(folder / "compare.md") as file:
        file.write("\n".join(lines).rstrip() + "\n")


def _arms(results: dict[str, Any]) -> list[Block]:
    keys = [key for key in FIGURES if any(own.get(key) for own in results["arms"].values())]
    rows = [[name, *(shown(key, own.get(key)) for key in keys)] for name, own in results["arms"].items()]
    note = (
        "Own loss: of held-out lines under their own identity, nats a token. Identity: the right one is the likeliest."
        " Voice: replies sound like their character; with names and signature words masked; by the first ten words."
        " Told another: told to be somebody else in a scene, the reply sounds like the one it is told to be. Everyday"
        " talk forgot: how much loss on the base's own replies to everyday prompts rose, nats a token; asked of the"
        " model without any character's voice, so an arm that has voices alone forgets nothing."
    )
    return [Text(note), *_tables("arm", keys, rows)]


def _pairs(results: dict[str, Any]) -> list[Block]:
    keys = [key for key in FIGURES if any(pair.get(key) for pair in results["pairs"])]
    rows = [
        [f"{pair['arms'][0]} minus {pair['arms'][1]}", *(_marked(key, pair.get(key)) for key in keys)]
        for pair in results["pairs"]
    ]
    note = (
        "On the same lines and prompts, with the same seeds. Own loss and what was forgotten in nats a token (less is"
        " better), all else in points of a hundred (more is better). A star: the interval lies on one side of zero."
        " Each interval stands for itself: of twenty such differences that are none, about one looks sure."
    )
    return [Text(note), *_tables("arms", keys, rows)]


def _marked(key: str, figure: dict[str, Any] | None) -> str:
    """A difference; a star after the value where it is sure."""
    text = shown(key, figure, True)
    return text.replace(" [", "* [", 1) if surely(figure) else text


def _tables(head: str, keys: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Block]:
    """The figures that count in one table, and the further ways to look at voices in another: both fit a desk."""
    tables: list[Block] = []
    for some in ([key for key in keys if key not in FURTHER], [key for key in keys if key in FURTHER]):
        if some:
            cells = [[row[0], *(row[1 + keys.index(key)] for key in some)] for row in rows]
            tables.append(Table([head, *(WORDS[key] for key in some)], cells))
    return tables


def _forgotten(results: dict[str, Any]) -> list[Block]:
    names = {c["id"]: c["name"] for c in results["characters"]}
    series = [
        (arm, {names.get(who, who): list(zip(steps[who], line, strict=False)) for who, line in lines.items()})
        for (arm, lines), steps in zip(results["curves"].items(), results["curve_steps"].values(), strict=True)
    ]
    rows = []
    for arm, lines in results["curves"].items():
        worst, rise = worst_rise(lines)
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
        " it, over the steps of training, the mean over seeds. Who is forgotten has a line that rises."
    )
    return [Curves(series, "steps", caption), Table(head, rows)]


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
        merged = None if found["merged"] is None else base
        ways = ((found["tokens_per_second"], base + own), (found["merged"], merged), (found["apart"], count * base))
        rows.append([arm, *(_speed_and_size(speed, size) for speed, size in ways)])
    head = ["arm", "as trained: base and what is beside it", "merged into one model", f"{count} merged models"]
    chats = next(iter(results["costs"].values()))["serving"]["chats"]
    note = (
        f"Serving: tokens a second over {chats} chats, greedy replies of a fixed length, by this program in one"
        " process; and what lies on the disk, about what the weights take in memory. A merged model computes what the"
        " base does, which was measured for it; a model with voices cannot be merged into one without losing them;"
        " merged models of several characters stand in memory together and share no step, so their chats took turns."
    )
    return [Table(head, rows), Text(note)]


def _speed_and_size(speed: float | None, size: int | None) -> str:
    return "-" if speed is None or size is None else f"{speed:.1f}/s, {size_text(size)}"


def _made(results: dict[str, Any]) -> list[Block]:
    options = {
        name: ", ".join(f"{k}: {json.dumps(v)}" for k, v in own.items()) or "-"
        for name, own in results["options"].items()
    }
    rows = [["command", results.get("command") or "-"], ["seeds", ", ".join(map(str, results["seeds"]))]]
    rows += [[f"arm {name}", text] for name, text in options.items()]
    rows += [["data", ", ".join(sorted({mark[:16] for mark in results["data"].values()}))]]
    rows += [["versions", ", ".join(f"{name} {version}" for name, version in results["versions"].items())]]
    return [Table(["what", "value"], rows)]
