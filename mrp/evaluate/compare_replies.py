"""The arms of a comparison side by side: whom each takes for whom, and what each says to the same question.

    confusions({"shuffled": [results of each seed ...]})        # {"prompt only": [[0.5, ...]], "shuffled": ...}
    side_by_side(arms)                # [{"character": ..., "question": ..., "real": ..., "said": {arm: reply}} ...]

Of results that `mrp eval` made; the blocks stand in the report of `compare_report.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mrp.evaluate.blocks import Block, Compared, Matrices, Title
from mrp.evaluate.compare_findings import PROMPT

Arms = dict[str, list[dict[str, Any]]]  # results of each seed, by arm
SHOWN = 2  # questions of each character


def confusions(arms: Arms) -> dict[str, list[list[float]]]:
    """For each arm the mean over seeds: rows are who really said a line, columns under whom it is likeliest."""
    sides = {name: (own, "tuned") for name, own in arms.items()}
    if PROMPT not in arms:
        sides = {PROMPT: (next(iter(arms.values())), "base")} | sides
    found = {}
    for name, (own, side) in sides.items():
        several = [one["sides"][side]["identity"]["confusion"] for one in own if _has_confusion(one, side)]
        if several:
            found[name] = [_mean(rows) for rows in zip(*several, strict=True)]
    return found


def _has_confusion(one: dict[str, Any], side: str) -> bool:
    return "confusion" in one["sides"][side].get("identity", {})


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [round(sum(values) / len(values), 4) for values in zip(*rows, strict=True)]


def side_by_side(arms: Arms) -> list[dict[str, Any]]:
    """Questions that every arm answered with its first seed: the real line, and what each arm says."""
    first = {name: own[0].get("samples", []) for name, own in arms.items()}
    by_place = {name: {(s["character"], s["question"], s["real"]): s for s in own} for name, own in first.items()}
    shown: dict[str, int] = {}
    found = []
    for place, sample in next(iter(by_place.values())).items():
        who, question, real = place
        if shown.get(who, 0) < SHOWN and all(place in own for own in by_place.values()):
            shown[who] = shown.get(who, 0) + 1
            said = {} if PROMPT in arms else {PROMPT: sample["base"]}
            said |= {name: own[place]["tuned"] for name, own in by_place.items()}
            found.append({"character": who, "question": question, "real": real, "said": said})
    return found


def confusion_blocks(results: dict[str, Any]) -> list[Block]:
    if not results["confusion"]:
        return []
    caption = (
        "Row: who really said the held-out line. Column: the identity under which the arm finds it likeliest. Per cent"
        " of the row, the mean over seeds; an arm that plays everybody apart has 100 on the diagonal."
    )
    names = [c["name"] for c in results["characters"]]
    return [Matrices(names, list(results["confusion"].items()), "likeliest under", caption)]


def reply_blocks(results: dict[str, Any]) -> list[Block]:
    """Characters in the order of the cast."""
    blocks: list[Block] = []
    for character in results["characters"]:
        own = [one for one in results["samples"] if one["character"] == character["id"]]
        if own:
            blocks.append(Title(character["name"]))
        for one in own:
            said = [("real line", one["real"]), *one["said"].items()]
            blocks.append(Compared(one["question"], [(who, text or "(nothing)") for who, text in said]))
    return blocks
