"""How much memory `mrp data build` takes for very many lines: by default 20 million, exact dedupe, from start to end.

    python benchmarks/large_build.py DIR [--lines 20000000] [--set data.dedupe=near --set data.split=strict]

Writes four files of short dialogues into DIR (80 bytes a line; one in ten repeats an earlier one), builds them with the
product's own command, and prints the seconds and the most memory that its processes had resident: each, and together.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil

NAMES = ("tsz", "swk", "zbj", "swj")
SIGNS = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜"
REPEATED = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lines", type=int, default=20_000_000, help="in all")
    parser.add_argument("--set", action="append", default=[], help="an option of the run file: KEY=VALUE")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(NAMES):
        write_lines(options.folder / f"{name}.jsonl", options.lines // len(NAMES), seed)
    cast = {"language": "zh", "characters": [{"id": n, "name": n, "dialogues": [f"{n}.jsonl"]} for n in NAMES]}
    (options.folder / "cast.yaml").write_text(json.dumps(cast), encoding="utf-8", newline="\n")
    run = options.folder / "mrp.yaml"
    run.write_text("data: {dedupe: exact, split: scenes}\n", encoding="utf-8", newline="\n")
    settings = [word for setting in options.set for word in ("--set", setting)]
    print(json.dumps({"lines": options.lines, "set": options.set} | build(run, settings)))


def write_lines(path: Path, lines: int, seed: int) -> None:
    """One exchange a line, in XTuner's format."""
    chance = random.Random(seed)
    kept = ""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for number in range(lines):
            bits = chance.getrandbits(64)
            if not kept or bits % 1000 >= 1000 * REPEATED:
                said = [SIGNS[(bits >> shift) % len(SIGNS)] for shift in range(0, 60, 5)]
                turn = {"input": "".join(said[:5]), "output": f"{''.join(said[5:])}{number}"}
                line = json.dumps({"conversation": [turn]}, ensure_ascii=False) + "\n"
                if bits % 7 == 0:
                    kept = line
            else:
                line = kept or line
            file.write(line)


def build(run: Path, settings: list[str]) -> dict[str, object]:
    """Seconds of `mrp data build`, and its memory (GiB resident; looked at ten times a second)."""
    start = time.perf_counter()
    process = psutil.Popen([sys.executable, "-m", "mrp", "data", "build", str(run), *settings])
    largest = together = 0.0
    while process.poll() is None:
        try:
            sizes = [p.memory_info().rss / 2**30 for p in (process, *process.children(recursive=True))]
        except psutil.NoSuchProcess:
            continue
        largest, together = max(largest, *sizes), max(together, sum(sizes))
        time.sleep(0.1)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, "mrp data build")
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 1), "largest_gib": round(largest, 2), "together_gib": round(together, 2)}


if __name__ == "__main__":
    main()
