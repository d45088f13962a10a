"""Does a way of training reach the same held-out loss? The options of a run, varied, over several seeds.

    python benchmarks/numerics.py examples/shakespeare OUT.jsonl --seeds 0,1,2 --at-once 6 \\
        plain=train.kernels=plain fast=train.kernels=fast bf16-adapter=train.kernels=fast,train.adapter_bits=16

Each variant is NAME=KEY=VALUE,KEY=VALUE. Every training is a process of its own; a line of OUT holds its losses. The
table: held-out loss after the last epoch, mean over characters and then over seeds, and what each variant differs by
from the first one at the same seed (mean, and the standard deviation over seeds).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any


def one(path: Path, flags: dict[str, str]) -> dict[str, Any]:
    """Train once, in this process."""
    from mrp.config import load_run
    from mrp.data.build import build_data
    from mrp.train.loop import train

    with tempfile.TemporaryDirectory() as folder:
        run = replace(load_run(path, flags), folder=Path(folder))
        build_data(run)
        record = train(run)
    measures = record["measures"]
    held = [statistics.mean(epoch["held_out_loss"].values()) for epoch in measures["epochs"]]
    kept = {key: measures[key] for key in ("steps", "tokens", "seconds", "tokens_per_second")}
    return kept | {"held_out": held, "dev": [e["dev_loss"] for e in measures["epochs"]], "kernels": record["kernels"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("variants", nargs="*")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE for every variant")
    parser.add_argument("--one", help="a JSON object of flags: train once and print the result")
    given = parser.parse_intermixed_args()
    if given.one:
        print(json.dumps(one(given.run, json.loads(given.one))))
        return
    common = dict(pair.split("=", 1) for pair in given.set)
    variants = {}
    for text in given.variants:
        name, _, options = text.partition("=")
        variants[name] = dict(pair.split("=", 1) for pair in options.split(",") if pair)

    def start(name: str, seed: str) -> dict[str, Any]:
        flags = common | variants[name] | {"seed": seed}
        command = [sys.executable, __file__, str(given.run), str(given.out), "--one", json.dumps(flags)]
        done = subprocess.run(command, capture_output=True, text=True)
        result = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"error": done.stderr[-2000:]}
        row = {"variant": name, "seed": seed, "flags": flags} | result
        with given.out.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row) + "\n")
        print(name, seed, result, flush=True)
        return row

    with ThreadPoolExecutor(given.at_once) as pool:
        jobs = [pool.submit(start, name, seed) for seed in given.seeds.split(",") for name in variants]
        rows = [job.result() for job in jobs]
    tell(rows, list(variants))


def tell(rows: list[dict[str, Any]], names: list[str]) -> None:
    """The table, and as the last line the same as JSON."""
    last = {(row["variant"], row["seed"]): row["held_out"][-1] for row in rows if "held_out" in row}
    summary = {}
    for name in names:
        found = {seed: loss for (variant, seed), loss in last.items() if variant == name}
        differences = [loss - last[names[0], seed] for seed, loss in found.items() if (names[0], seed) in last]
        if not differences:
            continue
        spread = statistics.stdev(differences) if len(differences) > 1 else 0.0
        mean = statistics.mean(found.values())
        summary[name] = {"held_out": mean, "difference": statistics.mean(differences), "sd": spread, "seeds": found}
        print(f"{name:24} {mean:.4f}  {statistics.mean(differences):+.4f} +- {spread:.4f}")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
