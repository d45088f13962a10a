"""What `mrp plan` predicts beside what a GPU takes: trainings of 1.8B and 7B, each in a process of its own.

    python benchmarks/plan_error.py                 # the twelve of the table in docs/memory.md, and some more
    python benchmarks/plan_error.py --only 7B+8192
    python benchmarks/plan_error.py --voices        # the contrast, and the second stage: voices (gpu_voices.py)

Random weights in the true shapes (gpu_train.py makes them), NF4, LoRA r=64 on all linear layers, dropout 0.1, one row a
pass, checkpointing: plain, with 8-bit AdamW, and with offload, in rows of 2048 and 8192 tokens. The predictions are the
planner's for typical rows, as a user gets them. Which rows are held out was written down before they were measured. A
table for people; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from gpu_train import MIB, Configuration, measure
from gpu_voices import CASES, measure_case

from mrp.config import TrainOptions
from mrp.plan.passes import RowShape
from mrp.plan.shapes import KNOWN_SHAPES
from mrp.plan.training import predict_training, predict_voices

NAMES = {"1.8B": "internlm2-chat-1_8b", "7B": "internlm2-chat-7b"}
HELD_OUT = {("1.8B", 2048, "8-bit"), ("1.8B", 8192, "offload"), ("7B", 2048, "plain"), ("7B", 8192, "8-bit")}
KINDS = {
    "plain": {},
    "8-bit": {"optimizer": "adamw-8bit"},
    "offload": {"offload": True},
    "adapter 16": {"adapter_bits": 16},
    "none kept back": {"checkpointing": False},
}
MORE = (("1.8B", 2048, "adapter 16"), ("7B", 2048, "adapter 16"), ("7B", 2048, "none kept back"))


def chosen() -> list[tuple[str, int, str]]:
    twelve = [(s, t, kind) for s in NAMES for t in (2048, 8192) for kind in ("plain", "8-bit", "offload")]
    return [*twelve, *MORE]


def one(shape: str, tokens: int, kind: str) -> dict[str, object]:
    """Measured and predicted MiB of a configuration."""
    settings = {"checkpointing": True} | KINDS[kind]
    row = measure(Configuration("ours", shape, tokens=tokens, **settings), 1, 2, False)  # type: ignore[arg-type]
    options = TrainOptions(bits=4, rank=64, alpha=16, dropout=0.1, max_tokens=tokens, **settings)  # type: ignore[arg-type]
    found = predict_training(KNOWN_SHAPES[NAMES[shape]], options, RowShape.typical(options))
    predicted = {"allocated": found.allocated / MIB, "reserved": found.reserved / MIB, "in_all": found.in_all / MIB}
    return {
        "shape": shape,
        "tokens": tokens,
        "kind": kind,
        "held_out": (shape, tokens, kind) in HELD_OUT,
        "measured": {key: row[f"{key}_mib"] for key in predicted},
        "predicted": predicted,
    }


def one_voiced(name: str) -> dict[str, object]:
    """The same of a case of gpu_voices.py, with its speed."""
    case = next(case for case in CASES if case.name == name)
    row = measure_case(case)
    predict = predict_voices if case.stage == "voices" else predict_training  # no adapter's stage comes before it
    typical = RowShape.typical(case.options)
    found = predict(KNOWN_SHAPES[case.known_shape], case.options, typical, case.kernels)
    predicted = {"allocated": found.allocated / MIB, "reserved": found.reserved / MIB, "in_all": found.in_all / MIB}
    return row | {"measured": {key: row[f"{key}_mib"] for key in predicted}, "predicted": predicted, "held_out": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="words that a row must hold, with + between them")
    parser.add_argument("--voices", action="store_true", help="the contrast and the voices instead")
    parser.add_argument("--one", nargs="+", metavar="WHAT", help="this one, in this process: shape, tokens, kind")
    options = parser.parse_args()
    if options.one:
        what = options.one
        print(json.dumps(one_voiced(what[0]) if options.voices else one(what[0], int(what[1]), what[2])))
        return
    results = []
    asked = {f"{shape}, {tokens}, {kind}": [shape, str(tokens), kind] for shape, tokens, kind in chosen()}
    if options.voices:
        asked = {case.name: [case.name, "--voices"] for case in CASES}
    print(f"{'model, tokens, saving':44} {'alloc':>8} {'predicted':>10} {'in all':>8} {'predicted':>10}", flush=True)
    for name, words in asked.items():
        if not all(word in name for word in options.only.split("+")):
            continue
        command = [sys.executable, __file__, "--one", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name:44} {(done.stderr.strip().splitlines() or ['?'])[-1][:200]}", flush=True)
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        results.append(row)
        told = "{tokens_per_second:8,.0f} tok/s, losses {loss:.4f} {contrast:.4f} "
        cells = [told.format_map(row)] if options.voices else []
        for key in ("allocated", "in_all"):
            real, told = row["measured"][key], row["predicted"][key]
            cells.append(f"{real:8,.0f} {told:8,.0f} ({100 * (told / real - 1):+.1f} %)")
        print(f"{name:44} {' '.join(cells)}{'  held out' if row['held_out'] else ''}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
