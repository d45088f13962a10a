"""What a judge found, in words and tables: a section of the evaluation's report, and a report of its own.

    judge_findings(results); judge_blocks(results); write_judge_report(folder / "judge", results)

Last in the flow of `mrp judge`; the blocks are those of `evaluate/blocks.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrp.errors import MrpError
from mrp.evaluate.blocks import Block, Compared, List, Table, Text, Title, html, markdown
from mrp.evaluate.findings import number, percent, surely
from mrp.files import read_json, replacing, sha256_file
from mrp.judge.marks import MEAN, REAL
from mrp.judge.rubric import IDS, RUBRIC
from mrp.judge.said import FILE
from mrp.page import Section, page
from mrp.play.reply import NOT_TEXT

SIDE_NAMES = {"tuned": "tuned", "base": "base + persona prompt", REAL: "real lines"}
JUDGE_FILE = "judge.json"
MANY = 0.1  # of the questions without a verdict: said first
NAMES = {d.id: d.name for d in RUBRIC["en"]}


def judge_findings(results: dict[str, Any]) -> list[str]:
    """What the verdicts say; each sentence with its figure."""
    answers = results["answers"]
    missing = answers["nonsense"] + answers["failed"]
    parts = (_pairs, _marks, _trust, _missing)
    if missing > MANY * answers["questions"]:  # then the rest is about the few places that are left
        parts = (_missing, _pairs, _marks, _trust)
    return [text for part in parts for text in part(results)]


def judge_blocks(results: dict[str, Any]) -> list[Block]:
    """The tables behind the findings."""
    names = {c["id"]: c["name"] for c in results["characters"]}
    blocks: list[Block] = [List(judge_findings(results)), Text(_lead(results))]
    one, other = (_names(results)[side] for side in results["sides"])
    if pairs := results["pairs"]:
        figures = [(names[who], own) for who, own in pairs["characters"].items()] + [("all", pairs["all"])]
        rows = [[name, *(percent(own[key]) for key in ("wins", "ties", "losses", "score"))] for name, own in figures]
        head = ["character", f"{one} wins", "tie", f"{other} wins", "score (a tie is half)"]
        blocks += [Title("Pairs"), Table(head, rows)]
    if marks := results["marks"]:
        shown = [side for side in (*results["sides"], REAL) if side in marks["sides"]]
        rows = [
            [
                NAMES.get(name, name),
                *(number(marks["sides"][side]["all"][name], 2) for side in shown),
                number(marks["difference"][name], 2, sign=True),
            ]
            for name in (*IDS, MEAN)
        ]
        head = ["dimension (1 to 5)", *(_names(results)[side] for side in shown), f"{one} - {other}"]
        blocks += [Title("Marks"), Table(head, rows)]
        people = [
            [name, *(number(_of(marks, side, who), 2) for side in shown)] for who, name in names.items()
            if any(_of(marks, side, who) for side in shown)
        ]  # fmt: skip
        blocks.append(Table(["mean mark of", *(_names(results)[side] for side in shown)], people))
    blocks += [Title("Does it agree with the offline measures?"), _agreement(results)]
    for sample in results["samples"]:
        said = [(_names(results)[side], sample[side] or "(nothing)") for side in results["sides"]]
        won = {"one": one, "other": other, "tie": "neither"}[sample["outcome"]]
        said.append(("the judge", f"{won}. {' / '.join(_why(text) for text in sample['answers'])}"))
        blocks.append(Compared(f"{names[sample['character']]}: {sample['question']}", said))
    return blocks


def kept_judgement(folder: Path) -> dict[str, Any] | None:
    """The judge's results in `folder`, if they are about the replies that lie there now."""
    try:
        found = read_json(folder / JUDGE_FILE)
        return dict(found) if found["said"] == sha256_file(folder / FILE) else None
    except (MrpError, OSError, KeyError, TypeError):
        return None


def write_judge_report(stem: Path, results: dict[str, Any]) -> None:
    """Write STEM.html and STEM.md, each whole or not at all."""
    title = f"A judge's opinion of {results['title']}"
    parts = [("What the judge says", judge_blocks(results)), ("How it was made", _made(results))]
    sections = [Section(name, [html(block) for block in blocks]) for name, blocks in parts]
    with replacing(stem.with_name(f"{stem.name}.html")) as file:
        file.write(page(title, " ".join(judge_findings(results)[:1]), sections))
    lines = [f"# {title}", ""]
    for name, blocks in parts:
        lines += [f"## {name}", "", *(line for block in blocks for line in markdown(block))]
    with replacing(stem.with_name(f"{stem.name}.md")) as file:
        file.write("\n".join(lines).rstrip() + "\n")


# -- sentences -------------------------------------------------------------------------------------------------------


def _names(results: dict[str, Any]) -> dict[str, str]:
    """How the sides are called; two runs by their own places."""
    own: dict[str, str] = results.get("names", {})
    return SIDE_NAMES | own


def _lead(results: dict[str, Any]) -> str:
    return (
        f"{results['judge']['model']} was asked about {results['places']} places. In pairs each place is judged in both"
        " orders, and a win counts only if both agree; marks go from 1 to 5, real lines are marked without being named."
        " Brackets hold 95 % intervals over scenes. A judge is a model too: read it beside the offline measures."
    )


def _pairs(results: dict[str, Any]) -> Iterator[str]:
    pairs = results["pairs"]
    if not pairs or not pairs["all"]["score"]:
        return
    one, other = (_names(results)[side] for side in results["sides"])
    score = pairs["all"]["score"]
    away = {**score, "value": score["value"] - 0.5}
    away |= {key: None if score[key] is None else score[key] - 0.5 for key in ("low", "high")}
    how = {1: "surely prefers", -1: "surely prefers the other to"}.get(surely(away), "does not surely prefer")
    yield (
        f"The judge {how} the replies of {one}: against {other} they win {percent(pairs['all']['wins'])}, lose"
        f" {percent(pairs['all']['losses'])}, and {percent(pairs['all']['ties'])} are ties"
        f" ({pairs['all']['score']['n']} pairs)."
    )


def _marks(results: dict[str, Any]) -> Iterator[str]:
    marks = results["marks"]
    if not marks:
        return
    means = {side: own["all"][MEAN] for side, own in marks["sides"].items()}
    told = "; ".join(f"{_names(results)[side]} {number(figure, 2)}" for side, figure in means.items())
    yield f"Mean marks from 1 to 5: {told}."
    changes = {name: marks["difference"][name] for name in IDS if surely(marks["difference"][name])}
    if changes:
        best = max(changes, key=lambda name: abs(changes[name]["value"]))
        yield (
            f"The surest difference between {' and '.join(_names(results)[side] for side in results['sides'])}:"
            f" {NAMES[best]}, {number(changes[best], 2, sign=True)}."
        )


def _trust(results: dict[str, Any]) -> Iterator[str]:
    """Whether the judge can be believed: its bias, whether it sees real lines, whether others agree."""
    pairs, marks = results["pairs"], results["marks"]
    if pairs and pairs["position"]:
        place = pairs["position"]
        biased = place["low"] is not None and (place["low"] > 0.5 or place["high"] < 0.5)
        yield (
            f"{'It is biased by place' if biased else 'No bias by place is sure'}: of its verdicts for one reply,"
            f" {percent(place)} name the first; its two orders disagree in {percent(pairs['disagree'])} of the pairs."
        )
    found = marks["sides"] if marks else {}
    first = results["sides"][0]
    if REAL in found and first in found:
        real, own = found[REAL]["all"][MEAN], found[first]["all"][MEAN]
        if real["low"] is not None and own["high"] is not None and real["low"] <= own["high"]:
            yield (
                f"It does not surely mark real lines ({number(real, 2)}) above {_names(results)[first]}"
                f" ({number(own, 2)}): its marks may measure polish rather than fidelity."
            )
    agrees = results["agreement"]["marks and voice"] or results["agreement"]["pairs and voice"]
    if agrees:
        sure = agrees["low"] is not None and agrees["low"] > 0
        yield (
            f"It {'agrees' if sure else 'does not surely agree'} with the classifier of voices: Spearman"
            f" {_rho(agrees)} over {agrees['n']} {'replies' if results['agreement']['marks and voice'] else 'pairs'}."
        )


def _missing(results: dict[str, Any]) -> Iterator[str]:
    answers = results["answers"]
    if answers["nonsense"]:
        yield (
            f"{answers['nonsense']} of {answers['questions']} answers were no verdict even when asked again: what the"
            " judge says is about the rest."
        )
    if answers["failed"]:
        yield (
            f"{answers['failed']} of {answers['questions']} questions got no answer ({answers['failure_sample']});"
            " the same command asks them again."
        )


# -- tables ----------------------------------------------------------------------------------------------------------


def _of(marks: dict[str, Any], side: str, who: str) -> dict[str, Any] | None:
    own = marks["sides"][side]["characters"].get(who)
    return own[MEAN] if own else None


def _agreement(results: dict[str, Any]) -> Block:
    meaning = {
        "marks and voice": "mark of a reply, classifier of voices",
        "pairs and voice": "winner of a pair, classifier of voices",
        "marks and gap": "mark of a character, own-identity gap",
    }
    rows = [
        [text, str(found["n"]), _rho(found), f"{found['kendall']:.2f}"]
        for name, text in meaning.items()
        if (found := results["agreement"][name])
    ]
    if not rows:
        return Text("There is too little to compare (5 values at least, not all equal).")
    return Table(["compared", "n", "Spearman", "Kendall"], rows)


def _rho(found: dict[str, Any]) -> str:
    text = f"{found['spearman']:.2f}"
    return text if found["low"] is None else f"{text} [{found['low']:.2f}, {found['high']:.2f}]"


def _why(answer: str) -> str:
    """The reason that a judge gave, out of its answer as it came."""
    at = answer.find("{")
    try:
        why = str(json.loads(answer[at : answer.rfind("}") + 1])["why"])
        return NOT_TEXT.sub("", why)  # JSON can spell what no file can hold
    except (ValueError, KeyError, TypeError):
        return answer


def _made(results: dict[str, Any]) -> list[Block]:
    judge, answers = results["judge"], results["answers"]
    rows = [
        ["command", results.get("command") or "-"],
        ["judge", f"{judge['model']} at {judge['url']}, temperature 0, seed {judge['seed']}"],
        ["options that the server refused", ", ".join(judge["left_out"]) or "-"],
        ["answers", f"{answers['questions']} ({answers['asked_again']} asked again, {answers['nonsense']} no verdict)"],
        ["tokens", f"{answers['tokens_in']:,} to the judge, {answers['tokens_out']:,} back"],
        ["cost at the prices given", "-" if results["cost"] is None else f"{results['cost']:.4g}"],
        ["models", ", ".join(f"{side} {name[:16]}" for side, name in results["models"].items())],
    ]
    return [Table(["what", "value"], rows)]
