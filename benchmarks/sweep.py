"""Try options of a run file and judge each by three things: loss, identity, and what the model says.

    python benchmarks/sweep.py examples/pilgrims/mrp.yaml OUT.jsonl train.epochs=2,3 train.learning_rate=5e-4,1e-3

Every combination is trained through the product's own functions in a folder of its own. A line of OUT holds the
options, the held-out loss of each character, "who would say it" (the share of held-out replies whose loss is lowest
under their own character's system prompt, of all characters'), and the replies to a few questions.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mrp.config import Run, load_run
from mrp.data.build import build_data
from mrp.data.samples import read_samples
from mrp.data.view import Message, opening_text, system_text, view
from mrp.evaluate.replies import ask_everybody
from mrp.models.bases import find_base
from mrp.models.loss import make_batch, token_losses
from mrp.play.open import load_player
from mrp.train.loop import train

QUESTIONS = (
    "Who are you, and what do you want most right now?",
    "What would you do if you met a tiger on the road?",
    "Do you like music?",
    "I am so tired today. What should I do?",
    "What is behind that hill?",
)


def who_would_say_it(player: Any, run: Run) -> dict[str, float]:
    """Share of held-out replies whose summed loss is lowest under their own identity; chance is 1 / characters."""
    ids = [c.id for c in run.cast]
    right: list[bool] = []
    gaps: list[float] = []
    for sample in read_samples(run.data / "held-out.jsonl"):
        messages = view(sample.turns, sample.loss, sample.participants, sample.character, run.cast, sample.scenario)
        sums = []
        for identity in ids:
            told = [Message("system", system_text(run.cast, identity, sample.scenario)), *messages[1:]]
            (piece,) = player.template.sample(told, None, opening_text(run.cast, sample.scenario))
            starts = [now and not before for before, now in itertools.pairwise([False, *piece.loss])]
            reply_of = torch.tensor(starts).cumsum(0)[torch.tensor(piece.loss)] - 1
            batch = make_batch([[piece]]).to(player.engine.on.device)
            with torch.no_grad(), player.engine.on.autocast_context():
                losses = token_losses(player.engine.model, batch).cpu()
            sums.append(torch.zeros(int(reply_of.max()) + 1).index_add_(0, reply_of, losses))
        table = torch.stack(sums)  # (identities, replies)
        own = ids.index(sample.character)
        right += (table.argmin(0) == own).tolist()
        others = torch.cat([table[:own], table[own + 1 :]]).min(0).values
        gaps += (others - table[own]).tolist()
    return {"accuracy": sum(right) / len(right), "gap_nats": sum(gaps) / len(gaps), "replies": len(right)}


def main() -> None:
    path, out, *options = sys.argv[1:]
    keys = [option.split("=")[0] for option in options]
    choices = [option.split("=")[1].split(",") for option in options]
    for values in itertools.product(*choices):
        flags = dict(zip(keys, values, strict=True))
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            run = replace(load_run(Path(path), flags), folder=Path(folder))
            build_data(run)
            record = train(run)
            player = load_player(find_base(run.config.base), run.adapter, run.cast, run.config.chat)
            row: dict[str, Any] = {"options": flags, "seconds": round(time.monotonic() - began, 1)}
            row |= {k: record["measures"][k] for k in ("tokens", "seconds", "chosen_epoch", "held_out_loss")}
            row["dev_loss"] = [epoch["dev_loss"] for epoch in record["measures"]["epochs"]]
            row["who_would_say_it"] = who_would_say_it(player, run)
            row["replies"] = {q: ask_everybody(player, q, run.config.seed) for q in QUESTIONS}
        with Path(out).open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        after = sum(x["after"] for x in row["held_out_loss"].values()) / len(row["held_out_loss"])
        said = row["who_would_say_it"]["accuracy"]
        print(f"{flags}  held-out {after:.3f}  identity {said:.0%}  {row['seconds']}s", flush=True)


if __name__ == "__main__":
    main()
