"""The manifest of a data set: what came in, what became of it, by file and by character; and the same in a few lines.

manifest = make_manifest(run, maker, hashes, outcome)
tell(run, manifest, rejected_path, report)
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

import mrp
from mrp.cast import PLAIN
from mrp.config import Run
from mrp.data.assemble import Lines
from mrp.data.decide import KEPT, Decided, Table
from mrp.data.part import FOUND, PartMaker
from mrp.data.split import MIN_SCENES
from mrp.dialogue import read_json_lines
from mrp.report import Reporter

TRAIN, HELD_OUT, REJECTED, MANIFEST = "train.jsonl", "held-out.jsonl", "rejected.jsonl", "manifest.json"
BUILD_VERSION = 3  # one more whenever the same inputs give other samples
SHOWN_REJECTED = 5  # of the rejected lines, as many are named; all are in rejected.jsonl
SIZES = ("samples", "scenes", "turns", "replies", "turn_characters", "reply_characters", "tokens")
NOT_READ = frozenset(("not-taken", "over-cap"))  # reasons that are the options' doing, not the data's


@dataclass(frozen=True)
class Outcome:
    """What was decided, and which samples were written on either side."""

    table: Table
    decided: Decided
    train: Lines
    held_out: Lines
    factors: dict[int, float]  # of up-sampling, by the character's place in the cast
    identity: dict[int, int]  # identity samples, likewise
    proven: bool  # that no two scenes that are alike lie on either side


def make_manifest(run: Run, maker: PartMaker, hashes: Sequence[str], outcome: Outcome) -> dict[str, Any]:
    """The manifest but for its outputs and its fingerprint."""
    inputs = [
        {"path": file.name, "character": file.owner, "sha256": sha} | counts
        for file, sha, counts in zip(maker.files, hashes, _file_counts(maker, outcome), strict=True)
    ]
    for number in outcome.decided.whole:
        inputs[number]["head_and_tail_meet"] = True
    sides = {"train": _Side(outcome.table, outcome.train), "held_out": _Side(outcome.table, outcome.held_out)}
    names = [c.id for c in run.cast] + ([PLAIN] if run.config.data.mix else [])
    characters: dict[str, dict[str, Any]] = {
        name: {side: found.of(place) for side, found in sides.items()} for place, name in enumerate(names)
    }
    for place, factor in outcome.factors.items():
        if factor > 1:
            characters[names[place]]["upsampled"] = round(factor, 4)
    for place, count in outcome.identity.items():
        if count:
            characters[names[place]]["identity"] = count
    totals = _sum(inputs) | {side: found.of(None) for side, found in sides.items()}
    return {
        "inputs": inputs,
        "totals": totals,
        "characters": characters,
        "split": _split(run, outcome),
        "options": run.config.data.model_dump(),
        "seed": run.config.seed,
        "versions": {"mrp": mrp.__version__, "python": platform.python_version(), "build": BUILD_VERSION},
    }


class _Side:
    """The sizes of what was written on one side, of each character."""

    def __init__(self, table: Table, lines: Lines) -> None:
        character = table.column("samples", "character")[lines.row]
        counts = np.bincount(character)
        self.sums = {"samples": counts, "scenes": np.zeros(len(counts), np.int64)}
        for name in SIZES[2:]:  # one column after the other: of a large set each takes much memory
            self.sums[name] = np.bincount(character, table.column("samples", name)[lines.row]).astype(np.int64)
        scene = table.scene_numbers("samples")[lines.row]
        everybody = np.zeros(table.size, bool)
        everybody[scene] = True
        self.scenes = int(np.count_nonzero(everybody))
        for who in np.flatnonzero(counts):
            theirs = np.zeros(table.size, bool)
            theirs[scene[character == who]] = True
            self.sums["scenes"][who] = np.count_nonzero(theirs)

    def of(self, character: int | None) -> dict[str, int]:
        """Counts over samples. Turns and their text are those shown; replies are the character's own, learnt ones."""
        if character is None:
            return {name: int(self.sums[name].sum()) for name in SIZES} | {"scenes": self.scenes}
        return {name: int(self.sums[name][character : character + 1].sum()) for name in SIZES}


def _file_counts(maker: PartMaker, outcome: Outcome) -> list[dict[str, Any]]:
    """For each file: lines, kept, rejected by reason, lines of dialogue left out of kept scenes, formats."""
    table, decided = outcome.table, outcome.decided
    found: list[dict[str, Any]] = []
    for number in range(len(maker.files)):
        lines = kept = 0
        rejected: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        formats: Counter[str] = Counter()
        found_odd: Counter[str] = Counter()
        for part, start, end in zip(table.parts, table.starts[:-1], table.starts[1:], strict=True):
            if part.file != number:
                continue
            reason = decided.reason[start:end]
            lines += part.counts.lines
            formats += part.counts.formats
            rejected += part.counts.rejected
            rejected += decided.counts(reason)
            kept += int(np.count_nonzero(reason == KEPT))
            for name, total in part.note_totals(reason == KEPT).items():
                if name.startswith(FOUND):
                    found_odd[name.removeprefix(FOUND)] += total
                else:
                    dropped[name] += total
        counts = {"lines": lines, "kept": kept}
        found.append(
            counts
            | {
                "rejected": dict(sorted(rejected.items())),
                "dropped_turns": dict(sorted(dropped.items())),
                "formats": dict(sorted(formats.items())),
                "findings": dict(sorted(found_odd.items())),
            }
        )
    return found


def _sum(inputs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {"lines": 0, "kept": 0}
    for name in total:
        total[name] = sum(item[name] for item in inputs)
    for name in ("rejected", "dropped_turns", "formats", "findings"):
        counts: Counter[str] = Counter()
        for item in inputs:
            counts += Counter(item[name])
        total[name] = dict(sorted(counts.items()))
    return total


def _split(run: Run, outcome: Outcome) -> dict[str, Any]:
    """How the sides were told apart, and that nothing near-duplicate is on both."""
    if run.config.data.split != "strict" or not run.config.data.held_out:
        return {"kind": run.config.data.split}
    group = outcome.decided.group[outcome.decided.kept & ~outcome.table.made]
    sizes = np.unique(group, return_counts=True)[1]
    return {
        "kind": "strict",
        "groups": len(sizes),
        "scenes_in_groups": int(sizes[sizes > 1].sum()),
        "largest_group": int(sizes.max(initial=0)),
        "alike_across": 0 if outcome.proven else None,  # None: too many scenes for the exact search
    }


def tell(run: Run, manifest: dict[str, Any], rejected_path: Path, report: Reporter) -> None:
    """The result in a few lines: what was kept, what was not and why, and each character's share."""
    totals = manifest["totals"]
    report.line(f"data: {totals['kept']:,} of {totals['lines']:,} lines kept{_counts_text(totals['rejected'], '; ')}")
    _tell_rejected(run, totals["rejected"], rejected_path, report)
    whole = [f"{item['path']} ({item['kept']:,})" for item in manifest["inputs"] if item.get("head_and_tail_meet")]
    if whole:
        report.line(f"head and tail meet, so that all is taken, once (scenes in brackets): {', '.join(whole)}")
    report.line(f"understood as{_counts_text(totals['formats'], ': ')}")
    if totals["dropped_turns"]:
        report.line(f"left out of kept lines{_counts_text(totals['dropped_turns'], ': ')}")
    if totals["findings"]:
        report.line(f"odd, but kept (`mrp data check` shows them){_counts_text(totals['findings'], ': ')}")
    split = manifest["split"]
    if split.get("scenes_in_groups"):
        report.line(
            f"split: {split['scenes_in_groups']:,} scenes repeat others in part; such stay on one side"
            f" ({split['groups']:,} groups, the largest of {split['largest_group']:,})"
        )
    without: list[str] = []
    for name, counts in manifest["characters"].items():
        train, held = counts["train"], counts["held_out"]
        more = f", {counts['identity']:,} of them about who it is" if "identity" in counts else ""
        more += f", each up to {counts['upsampled']:.3g} times" if "upsampled" in counts else ""
        report.line(
            f"  {name}: {train['samples']:,} samples to train{more}, {held['samples']:,} held out,"
            f" {train['replies'] + held['replies']:,} replies"
        )
        if run.config.data.held_out and not held["samples"] and name != PLAIN:
            without.append(f"{name} ({train['scenes']})")
    if without:
        report.warn(
            f"no scene is held out of (scenes in brackets, {MIN_SCENES} are needed): {', '.join(without)};"
            " nothing can be measured on lines of theirs that training has not seen"
        )


def _tell_rejected(run: Run, counts: dict[str, int], path: Path, report: Reporter) -> None:
    """Some lines that could not be used, of the rarest reasons first (a broken line among many repeats), and where all
    are."""
    left = {reason: count for reason, count in counts.items() if reason not in NOT_READ and count}
    total = sum(left.values())
    if not total:
        return
    found: dict[str, list[dict[str, str]]] = {reason: [] for reason in left}
    for line in read_json_lines(path):
        of_reason = found.get(line.value["reason"])
        if of_reason is not None and len(of_reason) < SHOWN_REJECTED:
            of_reason.append(line.value)
    rarest = sorted(left, key=lambda reason: left[reason])
    for row in islice(chain.from_iterable(found[reason] for reason in rarest), SHOWN_REJECTED):
        report.warn(f"{row['source']} is left out: {row['reason']}, {row['detail']}")
    if total > SHOWN_REJECTED:
        report.warn(f"... and {total - SHOWN_REJECTED:,} more lines, all in {run.data / REJECTED}")


def _counts_text(counts: dict[str, int], before: str) -> str:
    return before + ", ".join(f"{kind} {count:,}" for kind, count in counts.items()) if counts else ""
