"""Tokens a second of 1, 4 and 16 chats at once, against `transformers.generate` one after another; and with voices.

    OMP_WAIT_POLICY=passive python benchmarks/chat_throughput.py
    OMP_WAIT_POLICY=passive python benchmarks/chat_throughput.py --chats "" --rounds 4     # the voices alone

The default base (or --base FOLDER) in fp32 on the CPU with two threads, greedy replies to prompts of 96 tokens
(new random ones in each round, so that nothing is reused). The sides take turns in one run; medians of the rounds.
Replies are compared: `equal` counts those that are the same on both sides. With four voices against without them also
by the seconds of CPU that the process took, which other work on the machine moves less.
A table for people; the last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from mrp.models.bases import find_base
from mrp.models.load import hardware, load_model, set_threads
from mrp.models.voices import new_voices
from mrp.play.embedded import TransformersEngine
from mrp.play.engine import Request, Sampling

PROMPT = 96  # tokens
VOICES = ["wukong", "bajie", "wujing", "tangseng"]


def one_after_another(model: Any, prompts: Sequence[list[int]], reply: int) -> list[list[int]]:
    found = []
    for ids in prompts:
        given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        with torch.no_grad():
            whole = model.generate(**given, max_new_tokens=reply, min_new_tokens=reply, do_sample=False, pad_token_id=0)
        found.append(whole[0, len(ids) :].tolist())
    return found


def at_once(
    engine: TransformersEngine, prompts: Sequence[list[int]], voices: Sequence[str | None], reply: int
) -> list[list[int]]:
    def one(ids: list[int], voice: str | None) -> list[int]:
        request = Request(ids, Sampling(0, max_new_tokens=reply), voice=voice)
        return [token.id for token in engine.stream(request) if token.id is not None]

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(one, prompts, voices))


def timed(work: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    began = time.perf_counter()
    found = work()
    return sum(map(len, found)) / (time.perf_counter() - began), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reply", type=int, default=48, help="tokens of each reply")
    parser.add_argument("--chats", default="1,4,16", help='"": none, only the voices')
    parser.add_argument("--rank", type=int, default=8, help="of the voices")
    chosen = parser.parse_args()
    set_threads(2)
    on = hardware("fp32")
    model = load_model(find_base(chosen.base, Path.cwd()), on)
    model.generation_config.eos_token_id = None
    engine = TransformersEngine(model, on)
    generator = torch.Generator().manual_seed(0)

    def prompts(count: int) -> list[list[int]]:
        rows = torch.randint(1000, model.config.vocab_size - 1, (count, PROMPT), generator=generator)
        return [row.tolist() for row in rows]

    one_after_another(model, prompts(1), 4), at_once(engine, prompts(1), [None], 4)  # warm up
    results: dict[str, Any] = {}
    print(f"load at the start: {os.getloadavg()}", flush=True)
    for count in map(int, filter(None, chosen.chats.split(","))):
        sides: dict[str, list[float]] = {"generate": [], "engine": []}
        equal = 0
        for _ in range(chosen.rounds):
            given = prompts(count)
            speed, wanted = timed(lambda given=given: one_after_another(model, given, chosen.reply))
            sides["generate"].append(speed)
            speed, found = timed(lambda given=given: at_once(engine, given, [None] * len(given), chosen.reply))
            sides["engine"].append(speed)
            equal += sum(a == b for a, b in zip(found, wanted, strict=True))
        middle = {side: statistics.median(values) for side, values in sides.items()}
        ratio = statistics.median(b / a for a, b in zip(sides["generate"], sides["engine"], strict=True))
        results[f"{count} chats"] = sides | {"ratio": ratio, "equal": equal, "of": count * chosen.rounds}
        print(
            f"{count:3} chats: generate {middle['generate']:7.1f} tokens/s, engine {middle['engine']:7.1f}, "
            f"ratio {ratio:.2f}, equal {equal} of {count * chosen.rounds}, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    bank = new_voices(model, VOICES, chosen.rank, 2 * chosen.rank, seed=0)
    for name, weights in bank.parameters().items():
        weights.requires_grad_(False)
        if name.endswith("lora_B"):
            torch.nn.init.normal_(weights.data, std=0.02, generator=generator)
    voiced = TransformersEngine(model, on, bank)
    at_once(voiced, prompts(4), VOICES, 4)
    pairs: list[tuple[float, float]] = []
    cpu_pairs: list[tuple[float, float]] = []
    for _ in range(2 * chosen.rounds):
        given, marks = prompts(4), [time.process_time()]
        speeds = []
        for voices in ([None] * 4, VOICES):
            speeds.append(timed(lambda given=given, voices=voices: at_once(voiced, given, voices, chosen.reply))[0])
            marks.append(time.process_time())
        pairs.append((speeds[0], speeds[1]))
        cpu_pairs.append((marks[1] - marks[0], marks[2] - marks[1]))
    ratio = statistics.median(b / a for a, b in pairs)
    cpu_ratio = statistics.median(a / b for a, b in cpu_pairs)
    measured = {"pairs": pairs, "ratio": ratio, "cpu_pairs": cpu_pairs, "cpu_ratio": cpu_ratio}
    results["4 chats, 4 voices"] = measured | {"rank": chosen.rank}
    middle_of = [statistics.median(side) for side in zip(*pairs, strict=True)]
    print(
        f"  4 voices (r={chosen.rank}): without {middle_of[0]:.1f} tokens/s, with {middle_of[1]:.1f}, ratio {ratio:.2f}"
        f" (by CPU seconds {cpu_ratio:.2f})"
    )
    print(f"load at the end: {os.getloadavg()}, reused {engine.stats.reused} tokens")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    print(json.dumps({"versions": versions, "results": results}))


if __name__ == "__main__":
    main()
