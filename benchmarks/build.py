"""`mrp data build` against the same work written plainly with Hugging Face `datasets`, on four files of 500,000 lines.

    python benchmarks/build.py [--lines 500000] [--rounds 1] [--strict]

The work: parse XTuner lines, drop empty turns, lint (by mrp's own rules in both), leave out equal scenes, hold out a
tenth of each character's scenes, make samples, mix them, write JSON lines. Both are whole processes with two workers,
run in turns; the best round of each counts. `--strict` lets mrp also keep near-duplicates on one side (its default),
which the other does not do. Needs the package `datasets`. The files are made in a temporary folder and deleted after.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CAST = {"tsz": "唐三藏", "swk": "孙悟空", "zbj": "猪八戒", "swj": "沙悟净"}
WORDS = ["师父", "徒弟", "妖怪", "山前", "河边", "取经", "西天", "老孙", "贫僧", "行李", "白马", "化斋", "洞里", "大王"]
REPEATED, EMPTY = 0.1, 0.03  # of the lines repeat the one before; of the replies hold nothing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=500_000, help="of each file")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--strict", action="store_true", help="let mrp split strictly, as it does by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mrp-build-") as folder:
        print(json.dumps(measure(Path(folder), options.lines, options.rounds, options.strict)))


def measure(folder: Path, lines: int, rounds: int, strict: bool) -> dict[str, object]:
    """Seconds of both and their ratio; a table for people is printed."""
    write_project(folder, lines, strict)
    size = sum((folder / f"{name}.jsonl").stat().st_size for name in CAST)
    here = Path(__file__).parent
    commands = {
        "mrp": [sys.executable, "-m", "mrp", "data", "build", str(folder / "mrp.yaml"), "-q"],
        "datasets": [sys.executable, str(here / "plain_datasets.py"), str(folder), str(folder / "theirs")],
    }
    seconds: dict[str, list[float]] = {who: [] for who in commands}
    for _ in range(rounds):
        for who, command in commands.items():
            for name in ("run", "theirs", "cache"):
                subprocess.run(["rm", "-rf", str(folder / name)], check=True)
            start = time.perf_counter()
            environment = os.environ | {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
            seconds[who].append(time.perf_counter() - start)
            if who == "mrp":
                ours = samples(folder / "run" / "data")
    theirs = samples(folder / "theirs")
    best = {who: min(taken) for who, taken in seconds.items()}
    print(f"{len(CAST)} files of {lines:,} lines, {size / 1e6:,.0f} MB")
    for who, taken in seconds.items():
        rate = len(CAST) * lines / best[who]
        print(f"{who:10} {best[who]:8.1f} s {rate:10,.0f} lines/s   rounds: {' '.join(f'{t:.1f}' for t in taken)}")
    ratio = best["datasets"] / best["mrp"]
    print(f"samples written: mrp {ours}, datasets {theirs}; datasets / mrp: {ratio:.2f} (over 1: mrp is faster)")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"lines": lines, "bytes": size, "strict": strict, "seconds": seconds, "ratio": ratio, "peak_gib": peak}


def samples(folder: Path) -> dict[str, int]:
    """How many samples lie on either side."""
    found = {}
    for name in ("train.jsonl", "held-out.jsonl"):
        with (folder / name).open("rb") as file:
            found[name] = sum(1 for _ in file)
    return found


def write_project(folder: Path, lines: int, strict: bool) -> None:
    """A cast of four, a file of each, and a run file."""
    for seed, name in enumerate(CAST):
        write_lines(folder / f"{name}.jsonl", lines, seed)
    characters = [{"id": i, "name": n, "persona": f"你是{n}。", "dialogues": [f"{i}.jsonl"]} for i, n in CAST.items()]
    cast = {"language": "zh", "characters": characters}
    (folder / "cast.yaml").write_text(json.dumps(cast, ensure_ascii=False), encoding="utf-8")
    split = "strict" if strict else "scenes"
    (folder / "mrp.yaml").write_text(f"data: {{split: {split}}}\n", encoding="utf-8")


def write_lines(path: Path, lines: int, seed: int) -> None:
    """Dialogues of one to four exchanges, some 700 bytes a line, in XTuner's format."""
    chance = random.Random(seed)
    name = CAST[path.stem]
    line = ""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for _ in range(lines):
            if not line or chance.random() >= REPEATED:
                turns = [
                    {
                        "system": name,
                        "input": "，".join(chance.choices(WORDS, k=chance.randrange(2, 16))) + "？",
                        "output": "" if chance.random() < EMPTY else "，".join(chance.choices(WORDS, k=18)) + "。",
                    }
                    for _ in range(chance.choice((1, 2, 2, 3, 4)))
                ]
                line = json.dumps({"conversation": turns}, ensure_ascii=False) + "\n"
            file.write(line)


if __name__ == "__main__":
    main()
