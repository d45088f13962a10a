"""Near-duplicates: cost of a signature, recall of three kinds of MinHash, time and memory by number of texts.

    python benchmarks/near.py [--texts 10000 100000 1000000] [--rows 20000000] [--skip-scale]

All texts are made here, in Chinese characters and Latin letters. The files of the scale part lie in a temporary folder
and are deleted after. datasketch is measured where it is installed; it is no part of mRP-LLM.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mrp.data.groups import connected, first_of_equal
from mrp.data.leaks import straddling
from mrp.data.near import (
    PERMUTATIONS,
    Ngrams,
    band_keys,
    banding,
    jaccard,
    minhash,
    ngrams,
    normalised_all,
    signatures,
)
from mrp.data.repeats import near_duplicates, near_groups

HAN = [chr(c) for c in range(0x4E00, 0x4E00 + 3000)]
LATIN = list("abcdefghijklmnopqrstuvwxyz      ,.")
BATCH = 64  # texts signed together
LENGTH = 200  # characters of a text in the scale part
REPEATED, COPIED, BOILERPLATE = 0.2, 0.1, 0.005  # shares of its texts: changed a little, equal, all from one text
CHANGED = 0.02  # of the characters of a repeat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument(
        "--rows", type=int, default=20_000_000, help="keys for first_of_equal; pairs are 2.5 times more"
    )
    parser.add_argument("--skip-scale", action="store_true")
    options = parser.parse_args()
    result: dict[str, Any] = {"speed": speed(), "recall": recall()}
    if not options.skip_scale:
        result["scale"] = [scale(count) for count in options.texts]
        result["groups"] = groups(options.rows)
    print(json.dumps(result))


def speed() -> list[dict[str, Any]]:
    """Microseconds a text on one core, by step, of texts signed `BATCH` at a time and alone."""
    print("microseconds a text   characters  normalised  + n-grams  + MinHash = signature   alone   Jaccard of a pair")
    rows = []
    for name, alphabet in (("Chinese", HAN), ("Latin", LATIN)):
        for length in (100, 500, 2000):
            chance = random.Random(length)
            cost = costs(["".join(chance.choices(alphabet, k=length)) for _ in range(BATCH * 8)])
            print(f"{name:21} {length:10} {cost[0]:11} {cost[1]:10} {cost[2]:22} {cost[3]:7} {cost[4]:19}")
            rows.append({"text": name, "characters": length, "microseconds": cost})
    return rows


def costs(texts: list[str]) -> list[float]:
    """Of normalising, with n-grams, with the signature too; of the signature of one text alone; of one comparison."""
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    found = ngrams(texts)
    sets = [found.of(place) for place in range(len(texts))]
    work: list[Callable[[], object]] = [
        lambda: [normalised_all(batch) for batch in batches],
        lambda: [ngrams(batch) for batch in batches],
        lambda: [signatures(batch) for batch in batches],
        lambda: [signatures([text]) for text in texts],
        lambda: [jaccard(a, sets[0]) for a in sets],
    ]
    return [round(1e6 * best(step) / len(texts), 1) for step in work]


def best(work: Callable[[], object], rounds: int = 5) -> float:
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def recall() -> list[dict[str, Any]]:
    """The share of pairs found, of random sets that are `threshold + 0.05` alike, and microseconds a signature."""
    kinds: dict[str, Callable[[Ngrams], Any]] = {"rensa": minhash, "one permutation": one_permutation}
    with suppress(ImportError):
        import datasketch  # noqa: F401

        kinds["datasketch"] = with_datasketch
    print(f"\nthreshold  bands x rows  n-grams  alike  by theory   {'   '.join(f'{kind:>22}' for kind in kinds)}")
    rows = []
    for threshold in (0.7, 0.8, 0.9):
        cut = banding(threshold)
        for size in (12, 30, 100, 500, 2000):
            found, alike = planted(size, threshold + 0.05, 600 if size < 2000 else 200)
            row: dict[str, Any] = {"threshold": threshold, "ngrams": size, "alike": round(alike, 3)}
            for kind, make in kinds.items():
                start = time.process_time()
                signature = make(found)
                cost = 1e6 * (time.process_time() - start) / (len(found.offsets) - 1)
                keys = band_keys(signature, cut)
                row[kind] = [round(float((keys[::2] == keys[1::2]).any(axis=1).mean()), 3), round(cost)]
            cells = "   ".join(f"{row[kind][0]:12.3f} {row[kind][1]:6} us" for kind in kinds)
            theory = cut.recall(alike)
            print(f"{threshold:9} {cut.bands:6} x {cut.rows:<5} {size:6} {alike:6.3f} {theory:10.3f}   {cells}")
            rows.append(row)
    return rows


def planted(size: int, alike: float, pairs: int) -> tuple[Ngrams, float]:
    """Pairs of random sets of `size` n-grams, and how alike they are."""
    common = round(2 * size * alike / (1 + alike))
    own = size - common
    values = np.random.default_rng(size).integers(0, 2**64, (pairs, common + 2 * own), np.uint64)
    hashes = np.stack((values[:, :size], np.delete(values, slice(common, size), axis=1)), axis=1)
    return Ngrams(hashes.reshape(-1), np.arange(2 * pairs + 1, dtype=np.uint64) * np.uint64(size)), common / (
        common + 2 * own
    )


def one_permutation(found: Ngrams) -> Any:
    """The smallest hash of each of 128 ranges; an empty range takes the next one's (Shrivastava and Li 2014)."""
    starts = np.arange(PERMUTATIONS, dtype=np.uint64) << np.uint64(57)
    result = np.empty((len(found.offsets) - 1, PERMUTATIONS), np.uint64)
    for place in range(len(result)):
        ordered = found.of(place)
        first = np.searchsorted(ordered, starts) % len(ordered)
        values = ordered[first]
        steps = (values >> np.uint64(57)) - np.arange(PERMUTATIONS, dtype=np.uint64)
        result[place] = values + steps * np.uint64(0x9E3779B97F4A7C15)
    return (result * np.uint64(0xFF51AFD7ED558CCD) >> np.uint64(32)).astype(np.uint32)


def with_datasketch(found: Ngrams) -> Any:
    import datasketch

    result = []
    for place in range(len(found.offsets) - 1):
        signature = datasketch.MinHash(PERMUTATIONS, hashfunc=lambda value: value, seed=1)
        signature.update_batch((found.of(place) >> np.uint64(32)).tolist())
        result.append(signature.hashvalues)
    return np.array(result).astype(np.uint32)


class Rows:
    """Texts in a file of rows of 16-bit characters."""

    def __init__(self, path: Path) -> None:
        self._rows = np.load(path, mmap_mode="r")

    def __call__(self, item: int) -> str:
        return self._rows[item].tobytes().decode("utf-16-le")


def scale(count: int, threshold: float = 0.8) -> dict[str, Any]:
    """Seconds, memory and disk of each step with so many texts, of which a known share repeats others."""
    with tempfile.TemporaryDirectory(prefix="mrp-near-") as name:
        folder = Path(name)
        write_texts(folder / "texts.npy", count)
        load, cut = Rows(folder / "texts.npy"), banding(threshold)
        steps: dict[str, dict[str, float]] = {}
        with measured(steps, "keys"):
            bands = [
                np.lib.format.open_memmap(folder / f"{k}.npy", "w+", np.uint64, (count,)) for k in range(cut.bands)
            ]
            for start in range(0, count, BATCH):
                texts = [load(item) for item in range(start, min(count, start + BATCH))]
                for band, keys in zip(bands, band_keys(signatures(texts), cut).T, strict=True):
                    band[start : start + BATCH] = keys
        bands = [np.load(folder / f"{k}.npy", mmap_mode="r") for k in range(cut.bands)]
        with measured(steps, "near_duplicates"):
            found = near_duplicates(bands, load, threshold, scratch=folder)
        with measured(steps, "near_groups"):
            labels = near_groups(bands, load, threshold)
        sides = (labels.astype(np.int64) * 2654435761 >> 7) % 10 == 0
        with measured(steps, "straddling"):
            leaks = straddling(sides, load, threshold)
    disk = count * cut.bands * 12 / 1e6
    cells = "   ".join(f"{step} {m['seconds']:.1f} s, {m['mib']:.0f} MiB" for step, m in steps.items())
    print(f"\n{count:,} texts, {len(found.dropped):,} repeats, {len(leaks):,} leaks, {disk:,.0f} MB on disk: {cells}")
    return {"texts": count, "repeats": len(found.dropped), "leaks": len(leaks), "disk_mb": round(disk), "steps": steps}


def write_texts(path: Path, count: int) -> None:
    """Rows of two-character words, common ones more often, so that strangers share some n-grams as they do in life."""
    chance = np.random.default_rng(count)
    words = chance.integers(0x4E00, 0x4E00 + 3000, (20_000, 2), dtype=np.uint16)
    rows = np.lib.format.open_memmap(path, "w+", np.uint16, (count, LENGTH))
    for start in range(0, count, 1000):
        block = min(1000, count - start)
        rank = (20_000 ** chance.random((block, LENGTH // 2))).astype(np.int64) % 20_000
        texts = words[rank].reshape(block, LENGTH)
        kind = chance.random(block)
        near = (kind < REPEATED + COPIED) & (start > 0)
        texts[near] = rows[chance.integers(0, max(1, start), int(near.sum()))]
        of_one = kind > 1 - BOILERPLATE
        texts[of_one] = rows[0] if start else texts[0]
        changed = chance.random((block, LENGTH)) < CHANGED
        changed &= ((near & (kind < REPEATED)) | of_one)[:, None]
        texts[changed] = chance.integers(0x4E00, 0x4E00 + 3000, int(changed.sum()), dtype=np.uint16)
        rows[start : start + block] = texts
    rows.flush()


def groups(rows: int) -> dict[str, Any]:
    """Equal keys and connected pairs of so many items, keys in files, pairs made as they are asked for."""
    steps: dict[str, dict[str, float]] = {}
    chance = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="mrp-near-") as folder:
        keys = chance.integers(0, 2**64, rows, np.uint64)
        keys[::3] = keys[0]
        for name in ("high", "low"):
            np.save(Path(folder) / f"{name}.npy", keys)
        del keys
        high, low = (np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in ("high", "low"))
        with measured(steps, "64-bit keys"):
            first_of_equal(high)
        with measured(steps, "128-bit keys"):
            first_of_equal((high, low))
    chunk = max(1, rows // 20)
    with measured(steps, "connected"):
        connected(((chance.integers(0, rows, chunk), chance.integers(0, rows, chunk)) for _ in range(50)), rows)
    cells = "   ".join(f"{step} {m['seconds']:.1f} s, {m['mib']:.0f} MiB" for step, m in steps.items())
    print(f"\n{rows:,} items, {50 * chunk:,} pairs: {cells}\n")
    return {"items": rows, "pairs": 50 * chunk, "steps": steps}


@contextmanager
def measured(into: dict[str, dict[str, float]], name: str) -> Iterator[None]:
    """Seconds of the block, and the most memory it took beyond what there was (mapped files do not count)."""

    def own_bytes() -> int:
        memory = psutil.Process().memory_info()
        return int(memory.rss - getattr(memory, "shared", 0))

    before = peak = own_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, own_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    yield
    into[name] = {"seconds": round(time.perf_counter() - start, 2)}
    done.set()
    watcher.join()
    into[name]["mib"] = round((peak - before) / 2**20)


if __name__ == "__main__":
    main()
