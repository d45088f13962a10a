"""`mrp data recipe xiyou-2024` against the coreutils pipeline, on four files of 500,000 lines.

    python benchmarks/recipe.py [--lines 500000] [--rounds 3]

The files are made in a temporary folder and deleted after. Both are whole processes (Python's start included), run in
turns; the best round of each counts, and the results are compared byte for byte. Needs coreutils.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = ("swj", "swk", "tsz", "zbj")
PIPELINE = """cd "$1"
for name in swj swk tsz zbj; do uniq $name.jsonl | head -n 1500; uniq $name.jsonl | tail -n 1500; done > "$2"
"""
REPEATED = 0.1  # of the lines repeat the one before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=500_000, help="of each file")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mrp-recipe-") as folder:
        print(json.dumps(measure(Path(folder), options.lines, options.rounds)))


def measure(folder: Path, lines: int, rounds: int) -> dict[str, object]:
    """Seconds of both, their ratio and the size of the files; a table for people is printed."""
    for seed, name in enumerate(NAMES):
        write_lines(folder / f"{name}.jsonl", lines, seed)
    total_bytes = sum((folder / f"{name}.jsonl").stat().st_size for name in NAMES)
    ours, theirs = folder / "ours.out", folder / "theirs.out"
    commands = {
        "mrp": [sys.executable, "-m", "mrp", "data", "recipe", "xiyou-2024", str(folder), str(ours), "-q"],
        "coreutils": ["sh", "-c", PIPELINE, "sh", str(folder), str(theirs)],
    }
    seconds: dict[str, list[float]] = {who: [] for who in commands}
    for _ in range(rounds):
        for who, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"LC_ALL": "C"})
            seconds[who].append(time.perf_counter() - start)
    if not filecmp.cmp(ours, theirs, shallow=False):
        raise SystemExit("the results differ")
    best = {who: min(taken) for who, taken in seconds.items()}
    print(f"{len(NAMES)} files of {lines:,} lines, {total_bytes / 1e6:,.0f} MB; the same bytes from both")
    for who, taken in seconds.items():
        rates = f"{len(NAMES) * lines / best[who]:12,.0f} lines/s"
        print(f"{who:10} {best[who]:7.2f} s {rates}   rounds: {' '.join(f'{t:.2f}' for t in taken)}")
    print(f"coreutils / mrp: {best['coreutils'] / best['mrp']:.2f} (over 1: mrp is faster)")
    rounded = {who: [round(t, 3) for t in taken] for who, taken in seconds.items()}
    ratio = round(best["coreutils"] / best["mrp"], 3)
    return {"lines": lines, "files": len(NAMES), "bytes": total_bytes, "seconds": rounded, "ratio": ratio}


def write_lines(path: Path, lines: int, seed: int) -> None:
    """Records such as the recipe's, some 40 to 700 bytes long."""
    chance = random.Random(seed)
    line = b""
    with path.open("wb") as file:
        for number in range(lines):
            if not line or chance.random() >= REPEATED:
                turn = {"system": "孙悟空", "input": f"{number}", "output": "俺老孙来也！" * chance.randrange(1, 35)}
                line = json.dumps({"conversation": [turn]}, ensure_ascii=False).encode() + b"\n"
            file.write(line)


if __name__ == "__main__":
    main()
