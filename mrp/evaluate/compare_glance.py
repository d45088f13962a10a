"""The first thing that a reader of a comparison sees: which arm plays best, what it costs, what it forgot.

glance(results)       # blocks: figures of the arms as points with their intervals, and one short table
"""

from __future__ import annotations

from typing import Any

from mrp.evaluate.blocks import Block, Intervals, Table, Text
from mrp.evaluate.compare_findings import FORGOT, RISE, WORDS, beaten_on, worst_rise
from mrp.files import size_text
from mrp.report import duration_text

PLOTS = {
    "accuracy": "Identity: plays who it is told to be, % (more is better)",
    "as is": "Voice: sounds like its character, % (more is better)",
    "loss": "Own loss, nats a token (less is better)",
    FORGOT: "Everyday talk forgot, nats a token (less is better)",
}
RATES = ("accuracy", "as is")


def glance(results: dict[str, Any]) -> list[Block]:
    """Plots of the figures that count, each with every arm that has it, and a row for each arm."""
    plots = []
    for key, title in PLOTS.items():
        arms = {name: own[key] for name, own in results["arms"].items() if own.get(key)}
        if arms:
            scale = 100 if key in RATES else 1
            plots.append((title, {name: _scaled(figure, scale) for name, figure in arms.items()}))
    blocks: list[Block] = (
        [Intervals(plots, "A point is an arm, its line the 95 % interval over scenes.")] if plots else []
    )
    return [*blocks, _table(results), Text(NOTE)]


NOTE = (
    "Surely beaten: another arm is better there on the same lines, with the whole interval of the difference. Forgot on"
    " the way: how far the character that lost most ends above its own best point of training, nats a token."
)


def _table(results: dict[str, Any]) -> Table:
    names = {c["id"]: c["name"] for c in results["characters"]}
    rows = []
    for arm in results["arms"]:
        beaten = ", ".join(WORDS[key] for key in beaten_on(results, arm)) or "nowhere"
        if not results["arms"][arm]:
            beaten = "-"  # nothing was measured
        cost, lines = results["costs"].get(arm), results["curves"].get(arm)
        rose = "-"
        if lines:
            who, rise = worst_rise(lines)
            rose = f"{rise:+.3f} ({names.get(who, who)})" if rise >= RISE else "none"
        took = ["-", "-", "-"]
        if cost:
            speed = f"{cost['serving']['tokens_per_second']:.1f}"
            took = [duration_text(cost["seconds"]), size_text(cost["disk_bytes"]), speed]
        rows.append([arm, beaten, rose, *took])
    head = ["arm", "surely beaten", "forgot on the way", "training", "on disk beside the base", "tokens a second"]
    return Table(head, rows)


def _scaled(figure: dict[str, Any], scale: int) -> tuple[float, float | None, float | None]:
    """Value, low and high."""
    low, high = figure["low"], figure["high"]
    return scale * figure["value"], None if low is None else scale * low, None if high is None else scale * high
