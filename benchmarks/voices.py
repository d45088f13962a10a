"""Who would say it: one shared adapter, voices over it, a contrast of identities, and an adapter for each character.

    python benchmarks/voices.py examples/pilgrims OUT                                # on a CPU
    python benchmarks/voices.py examples/shakespeare OUT --set train.max_tokens=2048 --set train.voice_rows=12 \\
        --set train.dev=0.1 --seeds 0 1 2                                            # on a GPU: about 8 minutes

Trains through the product (a training in OUT that is done is not repeated) and prints a JSON line for each model: the
loss on held-out lines (mean over characters, nats a token), and the identity accuracy. For that each held-out reply is
scored under the persona of every character in turn, with that character's voice where there is one; right is who said
it. Intervals are 95 % bootstraps over scenes. The seed decides the split too, so seeds differ in what is held out.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mrp.config import Run, load_run
from mrp.data.build import build_data
from mrp.data.manifest import HELD_OUT
from mrp.data.pack import pack
from mrp.data.samples import Sample, read_samples
from mrp.models.bases import find_base
from mrp.models.load import Hardware, hardware, load_model, load_tokenizer
from mrp.models.loss import make_batch, token_losses
from mrp.models.voices import load_voices
from mrp.render import ChatTemplate, Rendered, render_sample
from mrp.report import SILENT
from mrp.train.loop import train
from mrp.train.lora import load_adapter

# What is trained, and the names of the models that come of it: the adapter by itself, and with its voices.
ARMS: dict[str, tuple[dict[str, str], str, str]] = {
    "voices": ({"train.voices": "true", "train.epochs": "2"}, "shared", "shared + voices"),
    "short": ({"train.voices": "true", "train.epochs": "1"}, "shared, 1 pass", "shared, 1 pass + voices"),
    "contrast": (
        {"train.voices": "true", "train.epochs": "2", "train.contrast": "0.5"},
        "contrast",
        "contrast + voices",
    ),
    # voices as wide as an adapter, over one that learns nothing
    "each": (
        {
            "train.voices": "true",
            "train.epochs": "1",
            "train.learning_rate": "1e-12",
            "train.voice_rank": "16",
            "train.voice_epochs": "4",
        },
        "base",
        "an adapter each",
    ),
}
ROWS = 4  # in a pass that scores


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("run", type=Path)
    asked.add_argument("out", type=Path)
    asked.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked.add_argument("--arms", nargs="+", choices=ARMS, default=["voices", "contrast", "each"])
    asked.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = asked.parse_args()
    flags = dict(pair.split("=", 1) for pair in given.set)
    for seed in given.seeds:
        for arm in given.arms:
            own, without, with_voices = ARMS[arm]
            folder = (given.out / f"{arm}-{seed}").resolve()
            run = load_run(given.run, flags | own | {"seed": str(seed), "out": str(folder)})
            build_data(run, SILENT)
            began = time.monotonic()
            record = train(run, resume=(folder / "checkpoint").is_dir())
            took = round(time.monotonic() - began, 1)
            for name, found in score(run, record, without, with_voices).items():
                print(json.dumps({"model": name, "seed": seed, **found, "wall_seconds": took}), flush=True)


def score(run: Run, record: dict[str, Any], without: str, with_voices: str) -> dict[str, dict[str, Any]]:
    """Loss and identity accuracy of a trained run, without and with its voices."""
    on = hardware(run.config.train.precision)
    base = find_base(run.config.base, run.path.parent)
    template = ChatTemplate(load_tokenizer(base))
    samples = [s for s in read_samples(run.data / HELD_OUT) if s.character in [c.id for c in run.cast]]
    model = load_adapter(load_model(base, on), run.adapter)
    bank = load_voices(model, run.voices)
    losses = record["measures"]["held_out_loss"].values()
    log = [json.loads(line) for line in (run.folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [sum(row["seconds"] for row in log if ("voices" in row) == voiced) for voiced in (False, True)]
    dropped = [who for who, voice in record["measures"]["voices"].items() if voice["epoch"] is None]
    found = {}
    for name, key, voiced in ((without, "adapter", False), (with_voices, "after", True)):
        right, scenes = identity_right(run, template, model, bank if voiced else None, samples, on)
        found[name] = {
            "own_loss": round(float(np.mean([loss[key] for loss in losses])), 4),
            "identity_accuracy": round(float(right.mean()), 4),
            "interval": interval(right, scenes),
            "replies": len(right),
            "scenes": len(set(scenes)),
            "training_seconds": round(seconds[0] + (seconds[1] if voiced else 0), 1),
            "without_voice": dropped if voiced else None,
            "kernels": record["kernels"],
        }
    del model, bank
    gc.collect()
    if on.device == "cuda":
        torch.cuda.empty_cache()
    return found


def identity_right(
    run: Run, template: ChatTemplate, model: Any, bank: Any, samples: Sequence[Sample], on: Hardware
) -> tuple[NDArray[np.float64], list[str]]:
    """For each held-out reply whether its speaker's identity makes it likeliest (1 or 0), and its scene."""
    identities = [c.id for c in run.cast]
    limit = run.config.train.max_tokens
    pieces = {
        who: [render_sample(template, run.cast, s, limit, identity=who)[0] for s in samples] for who in identities
    }
    # a sample longer than a row may be cut elsewhere under a longer persona: then it is left out
    same = [k for k in range(len(samples)) if len({learnt(pieces[who][k]) for who in identities}) == 1]
    columns = []
    for who in identities:
        chosen = [piece for k in same for piece in pieces[who][k]]
        columns.append(reply_losses(model, bank, who, chosen, limit, on))
    own = [
        (identities.index(samples[k].character), samples[k].scene)
        for k in same
        for piece in pieces[identities[0]][k]
        for _ in range(piece.replies)
    ]
    best = np.argmin(np.stack(columns, 1), 1)
    return (best == np.array([who for who, _ in own])).astype(np.float64), [scene for _, scene in own]


def learnt(pieces: list[Rendered]) -> str:
    """The labelled tokens of a sample, to be compared."""
    return str([[token for token, is_learnt in zip(p.input_ids, p.loss, strict=True) if is_learnt] for p in pieces])


def reply_losses(
    model: Any, bank: Any, who: str, pieces: Sequence[Rendered], limit: int, on: Hardware
) -> NDArray[np.float64]:
    """(R,) nats of each reply of `pieces`, spoken by the voice of `who` (or by none)."""
    rows = pack([len(piece.input_ids) for piece in pieces], limit)
    sums: list[float] = []
    for at in range(0, len(rows), ROWS):
        chosen = [[pieces[k] for k in row] for row in rows[at : at + ROWS]]
        batch = make_batch(chosen).to(on.device)
        speaking = bank.speaking([who]) if bank else torch.no_grad()
        with speaking, torch.no_grad(), on.autocast_context():
            losses = token_losses(model, batch).double().cpu().numpy()
        place = 0
        for piece in (piece for row in chosen for piece in row):
            before = False
            for labelled in piece.loss:
                if labelled:
                    sums = sums if before else [*sums, 0.0]
                    sums[-1] += losses[place]
                    place += 1
                before = labelled
    return np.array(sums)


def interval(right: NDArray[np.float64], scenes: list[str]) -> list[float]:
    """95 % bootstrap of the mean, over scenes."""
    names = sorted(set(scenes))
    hits = np.array([sum(right[k] for k, s in enumerate(scenes) if s == name) for name in names])
    counts = np.array([scenes.count(name) for name in names])
    drawn = np.random.default_rng(0).integers(0, len(names), (2000, len(names)))
    means = hits[drawn].sum(1) / counts[drawn].sum(1)
    return [round(float(value), 4) for value in np.quantile(means, [0.025, 0.975])]


if __name__ == "__main__":
    main()
