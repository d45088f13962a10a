"""One `mrp serve` with four characters against four with one each: tokens a second, time to the first one, memory.

    python benchmarks/serve_cast.py
    python benchmarks/serve_cast.py --quick

The rival design runs a model of its own for each character. Both sides are `mrp serve` of the default base with the
characters of examples/pilgrims, so weights, prompts and code are the same; only the number of processes differs. The
four get one thread each and, as a side of its own, two each. The load is the same for all: N clients at once, streamed
and greedy, `even` over the characters or all of them to `one`. The sides take turns, started anew in each round, and a
level is run after a warm-up; medians of the rounds. Memory is the sum of the processes' PSS, when they are warm and
idle and at its most during a level. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from serve_rivals import CAST, ask, free_port, process, pss_mib, questions_of, wait_until_ready, watching

SIDES = {"one process, 2 threads": (1, 2), "four, 1 thread each": (4, 1), "four, 2 threads each": (4, 2)}
Level = tuple[str, int]  # the spread of the load, clients


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--clients", type=int, nargs="+", default=[4, 16])
    asked.add_argument("--tokens", type=int, default=24, help="of each reply, at most")
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--quick", action="store_true", help="one round, 4 clients, 8 tokens")
    given = asked.parse_args()
    if given.quick:
        given.clients, given.tokens, given.rounds = [4], 8, 1
    from mrp.models.bases import DEFAULT_BASE, KNOWN_BASES, base_folder
    from mrp.train.record import versions

    folder = base_folder(KNOWN_BASES[DEFAULT_BASE])
    levels = [(spread, clients) for clients in given.clients for spread in ("even", "one")]
    found: dict[str, dict[str, list[dict[str, Any]]]] = {side: {} for side in SIDES}
    loads = [os.getloadavg()[0]]
    for number in range(given.rounds):
        order = list(SIDES) if number % 2 == 0 else list(SIDES)[::-1]
        for side in order:
            for key, row in one_round(folder, *SIDES[side], levels, given.tokens).items():
                found[side].setdefault(key, []).append(row)
        loads.append(os.getloadavg()[0])
    table = {side: {key: middle(rows) for key, rows in levels_of.items()} for side, levels_of in found.items()}
    for side, rows in table.items():
        print(f"{side}: {rows['idle']['mib']:,.0f} MiB when idle")
        for key, row in rows.items():
            if key != "idle":
                print(
                    f"  {key:18} {row['tokens_per_second']:8.2f} tokens/s   first {row['first_p50']:6.2f} s "
                    f"(p95 {row['first_p95']:6.2f})   {row['mib']:6,.0f} MiB   {row['failed']:.0f} failed"
                )
    told = {"tokens": given.tokens, "rounds": given.rounds, "load": loads, "versions": versions()}
    print(json.dumps({**told, "medians": table, "each": found}))


def middle(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]}


def one_round(
    folder: Path, processes: int, threads: int, levels: Sequence[Level], tokens: int
) -> dict[str, dict[str, Any]]:
    """A row for each level, and one for the idle processes; they are started and ended here."""
    from mrp.models.load import load_tokenizer

    questions, tokenizer = questions_of(max(clients for _, clients in levels)), load_tokenizer(folder)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="mrp-cast-") as scratch, ExitStack() as stack:
        urls, servers = {}, []
        for part in parts(processes):
            port = free_port()
            names = "-".join(character["id"] for character in part)
            cast = Path(scratch) / f"{names}.yaml"
            cast.write_text(json.dumps({"language": "en", "characters": part}), encoding="utf-8")
            flags = ["--port", str(port), "--rate", "0", "--max-running", "16", "--max-waiting", "128", "-q"]
            command = [sys.executable, "-m", "mrp", "serve", str(folder), "--cast", str(cast), *flags]
            command = ["env", f"OMP_NUM_THREADS={threads}", *command]
            servers.append(stack.enter_context(process(command, Path(scratch) / f"{names}.log")))
            urls |= {character["id"]: f"http://127.0.0.1:{port}" for character in part}
        for url, server in zip(dict.fromkeys(urls.values()), servers, strict=True):
            wait_until_ready(url, server)
        for job in questions[: len(urls)]:
            ask(urls[job[0]], "mrp", folder, job, 4)
        pids = [server.pid for server in servers]
        found["idle"] = {"mib": sum(map(pss_mib, pids))}
        for spread, clients in levels:
            row = one_level(urls, pids, folder, jobs_of(questions, spread, clients), clients, tokens, tokenizer)
            found[f"{clients} clients, {spread}"] = row
    return found


def parts(processes: int) -> list[list[dict[str, str]]]:
    """The characters of each process: who they are, without lore (whose files are elsewhere)."""
    from mrp.cast import load_cast

    everybody = [{"id": c.id, "name": c.name, "persona": c.persona} for c in load_cast(CAST)]
    return [everybody] if processes == 1 else [[character] for character in everybody]


def jobs_of(questions: Sequence[Any], spread: str, clients: int) -> list[Any]:
    """Two questions for each client."""
    if spread == "even":
        return [questions[number % len(questions)] for number in range(2 * clients)]
    of_one = [job for job in questions if job[0] == questions[0][0]]
    return [of_one[number % len(of_one)] for number in range(2 * clients)]


def one_level(
    urls: dict[str, str],
    pids: Sequence[int],
    folder: Path,
    jobs: Sequence[Any],
    clients: int,
    tokens: int,
    tokenizer: Any,
) -> dict[str, Any]:
    with watching(pids) as memory:
        began = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(lambda job: ask(urls[job[0]], "mrp", folder, job, tokens), jobs))
        seconds = time.perf_counter() - began
    told = [answer for answer in answers if not isinstance(answer, str)]
    if not told:
        raise SystemExit(f"nothing was answered: {answers[0]}")
    said = sum(len(tokenizer.encode(text, add_special_tokens=False)) for _, text in told)
    first = np.array([waited for waited, _ in told])
    return {
        "tokens_per_second": said / seconds,
        "first_p50": float(np.quantile(first, 0.5)),
        "first_p95": float(np.quantile(first, 0.95)),
        "mib": max(memory),
        "failed": len(jobs) - len(told),
    }


if __name__ == "__main__":
    main()
