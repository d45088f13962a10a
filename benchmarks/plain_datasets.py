"""What `benchmarks/build.py` holds `mrp data build` against: the same work, as one would write it with `datasets`.

python benchmarks/plain_datasets.py SRC_DIR OUT_DIR
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets, load_dataset

from mrp.cast import load_cast
from mrp.data.lint import Linter
from mrp.dialogue import Scene, Turn

WORKERS = 2


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    cast = load_cast(source / "cast.yaml")
    linter = Linter(cast)
    names = {c.name: c.id for c in cast}

    def clean(row: dict[str, Any]) -> dict[str, Any]:
        """The turns of a line, why it cannot be used, what is odd about it, and a hash of it."""
        turns = []
        character = None
        reason = ""
        for pair in row["conversation"]:
            character = names.get((pair["system"] or "").strip(), character)
            for speaker, text in (("other", pair["input"]), (character or "", pair["output"])):
                text = (text or "").strip()
                if any(ord(c) < 32 and c not in "\t\n" for c in text):
                    reason = "bad-text"
                if text:
                    turns.append({"speaker": speaker, "text": text})
        if not any(turn["speaker"] == character for turn in turns):
            reason = reason or "no-reply"
        scene = Scene("", ("other", character or ""), tuple(Turn(t["speaker"], t["text"]) for t in turns))
        findings = [finding.reason for finding in linter.lint(scene)]
        digest = hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).hexdigest()
        return {"turns": turns, "character": character, "reason": reason, "findings": findings, "digest": digest}

    def view(row: dict[str, Any], index: int) -> dict[str, Any]:
        """The sample of a line."""
        turns = row["turns"]
        while turns and turns[-1]["speaker"] != row["character"]:
            turns = turns[:-1]
        marked = [turn | {"loss": turn["speaker"] == row["character"]} for turn in turns]
        return {
            "id": f"{row['character']}-{index}@{row['character']}",
            "scene": f"{row['character']}-{index}",
            "participants": [row["character"], "other"],
            "turns": marked,
            "source": f"{row['character']}.jsonl:{index}",
        }

    seen: set[str] = set()

    def is_new(digest: str) -> bool:
        if digest in seen:
            return False
        seen.add(digest)
        return True

    train: list[Dataset] = []
    held_out: list[Dataset] = []
    for character in cast:
        rows = load_dataset("json", data_files=str(source / f"{character.id}.jsonl"), split="train")
        rows = rows.map(clean, num_proc=WORKERS, remove_columns=["conversation"])
        rows = rows.filter(lambda reason: not reason, input_columns=["reason"], num_proc=WORKERS)
        rows = rows.filter(is_new, input_columns=["digest"])
        rows = rows.map(view, with_indices=True, num_proc=WORKERS, remove_columns=["reason", "findings", "digest"])
        sides = rows.train_test_split(test_size=0.1, seed=0)
        train.append(sides["train"])
        held_out.append(sides["test"])
    out.mkdir(parents=True)
    concatenate_datasets(train).shuffle(seed=0).to_json(out / "train.jsonl", force_ascii=False, num_proc=WORKERS)
    concatenate_datasets(held_out).shuffle(seed=0).to_json(out / "held-out.jsonl", force_ascii=False)


if __name__ == "__main__":
    main()
