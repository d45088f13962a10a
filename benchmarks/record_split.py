"""What the pilot study behind the goals of docs/experiments.md held out: records at random, in place of our split.

    split_by_records(run, seed=20261122)      # rewrites the train.jsonl and held-out.jsonl that `mrp data build` made

15 % of each character's records are held out, at least three, whatever lies next to them in the play (levers.py). The
pilot also cut its training records where a held-out reply is someone's cue (43
times); here the cue stays, without loss.
"""

from __future__ import annotations

import hashlib
import json
import random

from mrp.config import Run
from mrp.data.manifest import HELD_OUT, MANIFEST, TRAIN
from mrp.files import read_json, write_json

SHARE, FEWEST = 0.15, 3


def split_by_records(run: Run, seed: int) -> None:
    """Deal the samples of a built folder out anew; its manifest knows the new files."""
    of: dict[str, list[tuple[int, str]]] = {}
    for name in (TRAIN, HELD_OUT):
        for line in (run.data / name).read_text(encoding="utf-8").splitlines():
            character, _, number = json.loads(line)["scene"].rpartition("-")  # such as romeo-12: its record
            of.setdefault(character, []).append((int(number), line))
    parts: dict[str, list[str]] = {TRAIN: [], HELD_OUT: []}
    for character, records in sorted(of.items()):
        order = list(range(len(records)))
        random.Random(f"{seed}-{character}").shuffle(order)
        held = {number + 1 for number in order[: max(FEWEST, round(SHARE * len(order)))]}
        for number, line in sorted(records):
            parts[HELD_OUT if number in held else TRAIN].append(line)
    manifest = read_json(run.data / MANIFEST)
    for name, lines in parts.items():
        text = "".join(f"{line}\n" for line in lines)
        (run.data / name).write_text(text, encoding="utf-8", newline="\n")
        manifest["outputs"][name]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    write_json(run.data / MANIFEST, manifest)
