"""Tokens a second of one chat in onnxruntime-genai (`mrp chat --engine onnx`) against the embedded engine, on the CPU.

    OMP_WAIT_POLICY=passive python benchmarks/onnx_engine.py

The default base (or --base FOLDER) in fp32 with two threads, greedy replies to random prompts, and 4 chats at once. The
sides take turns in one run; medians of the rounds, of wall time and of the seconds of CPU that the process took (which
other work on the machine moves less). `equal` counts replies that are the same on both sides. A table for people; the
last line is JSON. Needs the extra `onnx`; the model is converted first (not timed).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from mrp.models.bases import find_base
from mrp.models.load import hardware, load_model, set_threads
from mrp.play.embedded import TransformersEngine
from mrp.play.engine import Engine, Request, Sampling
from mrp.play.onnx import OnnxEngine, onnx_folder

CASES = ((1, 96, 48), (1, 512, 48), (4, 96, 24))  # chats, tokens of a prompt, tokens of a reply


def replies(engine: Engine, prompts: list[list[int]], count: int) -> tuple[float, float, list[list[int | None]]]:
    """Seconds, seconds of CPU, and what was said."""
    wall, cpu = time.perf_counter(), time.process_time()

    def one(ids: list[int]) -> list[int | None]:
        return [token.id for token in engine.stream(Request(ids, Sampling(0, max_new_tokens=count)))]

    with ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(one, prompts))
    return time.perf_counter() - wall, time.process_time() - cpu, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    threads = set_threads(2)
    folder = find_base(chosen.base, Path.cwd())
    model = load_model(folder, hardware("fp32"))
    sides: dict[str, Engine] = {
        "embedded": TransformersEngine(model, hardware("fp32")),
        "onnx": OnnxEngine(onnx_folder(folder), 1024, threads),
    }
    generator = torch.Generator().manual_seed(0)
    results: list[dict[str, Any]] = []
    for chats, length, count in CASES:
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        equal = 0
        for round_number in range(-1, chosen.rounds):  # the first warms up
            rows = torch.randint(1000, model.config.vocab_size - 1, (chats, length), generator=generator)
            said = []
            for name, engine in sides.items():
                wall, cpu, found = replies(engine, rows.tolist(), count)
                said.append(found)
                if round_number >= 0:
                    measured[name].append((wall, cpu))
            equal += sum(a == b for a, b in zip(*said, strict=True)) if round_number >= 0 else 0
        pairs = list(zip(measured["embedded"], measured["onnx"], strict=True))
        faster, less_cpu = (statistics.median(a[k] / b[k] for a, b in pairs) for k in (0, 1))
        results.append({"chats": chats, "prompt": length, "reply": count, "seconds": measured, "equal": equal})
        print(
            f"{chats} chats, prompts of {length}, replies of {count}: onnx {faster:.2f} times as fast "
            f"(by CPU seconds {less_cpu:.2f}), equal {equal} of {chats * chosen.rounds}, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "onnxruntime-genai")}
    print(json.dumps({"versions": versions, "results": results}))


if __name__ == "__main__":
    main()
