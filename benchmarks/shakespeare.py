"""Twelve characters of Shakespeare in one small model: `mrp run`, then 24 replies to read.

    python benchmarks/shakespeare.py OUT_DIR          # the data lies in ../shared/data/shakespeare

Writes summary.json, and replies.md with each character's answers to two questions, from the base with the same
persona prompt and from the tuned model. docs/experiments.md says how they read.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mrp.config import load_run
from mrp.evaluate.replies import ask_everybody
from mrp.files import replacing, write_json
from mrp.models.bases import find_base
from mrp.pipeline import run_all
from mrp.play.open import load_player
from mrp.report import ConsoleReporter

QUESTIONS = ("Good morrow. What troubles you today?", "I have heard that you are afraid to die. Is it true?")


def main() -> None:
    out = Path(sys.argv[1])
    run = load_run(Path(__file__).parents[1] / "examples" / "shakespeare")
    summary = run_all(run, ConsoleReporter())
    write_json(out / "summary.json", summary | {"paths": {}})
    losses = summary["held_out_loss"]
    fell = sum(loss["after"] < loss["before"] for loss in losses.values())
    print(f"held-out loss fell for {fell} of {len(losses)} characters")
    answers = {}
    for when, folder in (("before", find_base(run.config.base, run.path.parent)), ("after", run.merged)):
        player = load_player(folder, None, run.cast, run.config.chat)
        answers[when] = [ask_everybody(player, question, seed) for seed, question in enumerate(QUESTIONS)]
    with replacing(out / "replies.md") as file:
        for number, question in enumerate(QUESTIONS):
            file.write(f"## {question}\n\n")
            for character in run.cast:
                file.write(f"**{character.name}**\n\n")
                for when in ("before", "after"):
                    file.write(f"- {when}: {' '.join(answers[when][number][character.id].split())}\n")
                file.write("\n")


if __name__ == "__main__":
    main()
