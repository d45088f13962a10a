"""`mrp serve` beside `transformers serve` and llama.cpp's server: tokens a second, time to the first one, memory.

    python benchmarks/serve_rivals.py                                         # mrp and transformers serve
    python benchmarks/serve_rivals.py --llama /tmp/llama/bin/python           # with llama-cpp-python[server] there
    python benchmarks/serve_rivals.py --clients 1 4 --servers mrp      # less

One model (the default base), one cast (examples/pilgrims), one machine, two threads, one server after another, each in
a process of its own. N clients at once ask different characters different questions, streamed and greedy, at most
`--tokens` tokens of reply; mrp is asked for the character, the others get the same system message. Tokens are counted
by the same tokenizer on what came back. Seconds to the first token: p50 and p95 over the requests. Memory is what the
server and its children hold for themselves and their share of the rest (PSS), at its most during the level.
`transformers` answers with `generate`, one request after another; `transformers-cb` with its continuous batching.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np

HERE = Path(__file__).parent
CAST = HERE.parent / "examples" / "pilgrims" / "cast.yaml"
QUESTIONS = (
    "Who are you?",
    "What do you carry on the road?",
    "A bandit stands before us. What now?",
    "Tell me of the place you come from.",
    "What will you eat tonight?",
    "Whom do you trust, and why?",
    "The river is high and there is no boat.",
    "What do you fear?",
)
SERVERS = ("mrp", "transformers", "transformers-cb", "llama.cpp")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    asked.add_argument("--tokens", type=int, default=24)
    asked.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    asked.add_argument("--llama", type=Path, help="a python that has llama-cpp-python[server]")
    asked.add_argument("--dtype", default="auto", help="of transformers serve")
    asked.add_argument("--limit", type=float, default=180, help="seconds for a level, after which it is given up")
    given = asked.parse_args()
    from mrp.models.bases import DEFAULT_BASE, KNOWN_BASES, base_folder

    folder = base_folder(KNOWN_BASES[DEFAULT_BASE])
    questions = questions_of(max(given.clients))
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="mrp-rivals-") as scratch:
        for name in given.servers:
            port = free_port()
            command = command_of(name, folder, port, given, Path(scratch))
            if command is None:
                continue
            log = Path(scratch) / f"{name}.log"
            try:
                with process(command, log) as server:
                    results[name] = measure(name, server, port, folder, given, questions)
            except (RuntimeError, httpx.HTTPError) as error:
                results[name] = {"failed": str(error)}
                print(f"{name}: {error}; {log.read_text(encoding='utf-8', errors='replace')[-400:]}", flush=True)
    from mrp.train.record import versions

    print(json.dumps({"tokens": given.tokens, "machine": platform.processor(), "versions": versions(), **results}))


def questions_of(count: int) -> list[tuple[str, str, list[dict[str, str]]]]:
    """Character, question, and both as messages: what mrp's own view makes of them."""
    from mrp.cast import OTHER, load_cast
    from mrp.data.view import view_for_reply
    from mrp.dialogue import Turn

    cast, found = load_cast(CAST), []
    ids = [c.id for c in cast]
    for number in range(count):
        who, question = ids[number % len(ids)], QUESTIONS[(number // len(ids)) % len(QUESTIONS)]
        question = question if number < len(ids) * len(QUESTIONS) else f"{question} Speak of number {number}."
        messages = view_for_reply([Turn(OTHER, question)], (who, OTHER), who, cast)
        found.append((who, question, [{"role": m.role, "content": m.text} for m in messages]))
    return found


def command_of(name: str, folder: Path, port: int, given: Any, scratch: Path) -> list[str] | None:
    """How the server is started; None where it is not asked for or not there."""
    if name == "mrp":
        flags = ["--port", str(port), "--rate", "0", "--max-running", str(max(given.clients)), "--max-waiting", "128"]
        return [sys.executable, "-m", "mrp", "serve", str(folder), "--cast", str(CAST), *flags, "-q"]
    if name == "llama.cpp":
        if given.llama is None:
            return None
        file = scratch / "model"
        export = [sys.executable, "-m", "mrp", "export", str(folder), str(file), "--to", "gguf"]
        made = subprocess.run(export, check=False, capture_output=True, text=True)
        found = sorted(file.glob("*.gguf"))
        if made.returncode or not found:
            raise SystemExit(f"the export failed: {made.stderr}")
        flags = ["--model", str(found[0]), "--port", str(port), "--n_threads", "2", "--n_ctx", "2048"]
        return [str(given.llama), "-m", "llama_cpp.server", *flags]
    there = Path(sys.executable).with_name("transformers")
    more = ["--continuous-batching"] if name.endswith("-cb") else []
    return [str(there), "serve", str(folder), "--port", str(port), "--dtype", given.dtype, *more]


def measure(
    name: str, server: subprocess.Popen[bytes], port: int, folder: Path, given: Any, questions: list[Any]
) -> dict[str, Any]:
    """A row for each number of clients."""
    from mrp.models.load import load_tokenizer

    tokenizer = load_tokenizer(folder)
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(url, server)
    ask(url, name, folder, questions[0], 4)  # a warm-up
    found: dict[str, Any] = {}
    for clients in given.clients:
        rounds = max(1, 8 // clients)
        jobs = [questions[k % len(questions)] for k in range(clients * rounds)]
        with watching([server.pid]) as memory:
            began = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                answers = list(pool.map(lambda job: ask(url, name, folder, job, given.tokens, given.limit), jobs))
            seconds = time.perf_counter() - began
        failed = [answer for answer in answers if isinstance(answer, str)]
        told = [answer for answer in answers if not isinstance(answer, str)]
        if not told:
            found[str(clients)] = {"failed": failed[0]}
            print(f"{name:16} {clients:3} clients: {failed[0][:160]}", flush=True)
            break
        tokens = sum(len(tokenizer.encode(text, add_special_tokens=False)) for _, text in told)
        first = np.array([seconds for seconds, _ in told])
        row = {
            "requests": len(jobs),
            "failed": len(failed),
            "tokens": tokens,
            "tokens_per_second": round(tokens / seconds, 2),
            "first_p50": round(float(np.quantile(first, 0.5)), 2),
            "first_p95": round(float(np.quantile(first, 0.95)), 2),
            "mib": round(max(memory)),
        }
        found[str(clients)] = row
        print(
            f"{name:16} {clients:3} clients {row['tokens_per_second']:8.2f} tokens/s   first {row['first_p50']:6.2f} s"
            f" (p95 {row['first_p95']:6.2f})   {row['mib']:6,} MiB   {len(failed)} failed",
            flush=True,
        )
    return found


def ask(url: str, name: str, folder: Path, job: Any, tokens: int, limit: float = 180) -> tuple[float, str] | str:
    """Seconds to the first text, and all of it; or what went wrong."""
    who, question, messages = job
    body: dict[str, Any] = {"stream": True, "max_tokens": tokens, "temperature": 0}
    if name == "mrp":
        body |= {"model": who, "messages": [{"role": "user", "content": question}]}
    else:
        body |= {"model": str(folder), "messages": messages}
    began, first, text = time.perf_counter(), None, ""
    try:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=limit) as answer:
            if answer.status_code != 200:
                return f"status {answer.status_code}: {answer.read().decode()[:300]}"
            for line in answer.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    return str(event["error"])[:300]
                for choice in event.get("choices", []):
                    if piece := choice["delta"].get("content"):
                        first = first if first is not None else time.perf_counter() - began
                        text += piece
                if time.perf_counter() - began > limit:
                    return "given up: too slow"
    except httpx.HTTPError as error:
        return repr(error)
    return first if first is not None else time.perf_counter() - began, text


@contextmanager
def process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    environment["HF_HUB_CACHE"] = str(log.parent)  # transformers serve lists it
    with log.open("wb") as file:
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
        try:
            yield server
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(server.pid, 9)


@contextmanager
def watching(pids: Sequence[int]) -> Iterator[list[float]]:
    """The PSS of the processes together, children included, in MiB, twice a second."""
    found, ended = [sum(map(pss_mib, pids))], threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            found.append(sum(map(pss_mib, pids)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def pss_mib(pid: int) -> float:
    """Of a process and all below it (Linux)."""
    total = 0.0
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            total += int(line.split()[1]) / 1024 if line.startswith("Pss:") else 0
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            total += sum(pss_mib(int(child)) for child in children.read_text(encoding="utf-8").split())
    return total


def wait_until_ready(url: str, server: subprocess.Popen[bytes], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}")
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/v1/models", timeout=5).status_code == 200:
                return
        time.sleep(0.3)
    raise RuntimeError("the server was not ready in time")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


if __name__ == "__main__":
    main()
