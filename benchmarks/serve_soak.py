"""A long run of `mrp serve`: 32 clients, some of whom leave in the middle, and a server behind that is killed.

    python benchmarks/serve_soak.py examples/pilgrims --minutes 30            # in front of a server that is killed
    python benchmarks/serve_soak.py examples/pilgrims --minutes 10 --embedded --set train.precision=fp32

The server is the command itself, in a process of its own. Behind it (without `--embedded`) stands a small
OpenAI-compatible process that says each prompt's nonce back, token by token; it is killed with SIGKILL every 5 to 20
seconds and comes back after up to 2. With `--embedded` the model answers itself, greedily: the same question must
always be answered alike. Each request ends in one of

- whole: the very nonce (or the known answer), a finish reason, `[DONE]`;
- left: the client went away in the middle;
- told: an error that the client can see, before or in the stream, and never a finish reason beside it;

anything else is a fault, which is printed and makes the script end with 1: a mixed reply, an end without either, a
status of 500. Memory is the server's resident size each 10 seconds; its slope is that of a line through all after the
first fifth. The last line is JSON. The short form of it is `tests/serve/test_soak.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np

CLIENTS = 32
LEAVES, STREAMS = 0.25, 0.75  # shares: of streams that are left, of requests that stream
QUESTIONS = ("Who are you?", "What do you carry?", "Is there a village near?", "What shall we eat?")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("run", nargs="?", type=Path)
    asked.add_argument("--minutes", type=float, default=30.0)
    asked.add_argument("--embedded", action="store_true", help="the model answers itself; nothing is killed")
    asked.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    asked.add_argument("--upstream", type=int, help=argparse.SUPPRESS)  # be the server behind, on this port
    given = asked.parse_args()
    if given.upstream:
        ThreadingHTTPServer(("127.0.0.1", given.upstream), Echo).serve_forever()
    if given.run is None:
        asked.error("name a run")
    found = soak(given.run, given.minutes * 60, given.embedded, given.set)
    print(json.dumps(found))
    sys.exit(1 if found["faults"] else 0)


def soak(run: Path, seconds: float, embedded: bool, options: list[str]) -> dict[str, Any]:
    """Counts of how requests ended, by kind; what was killed; memory."""
    behind, port = free_port(), free_port()
    command = [sys.executable, "-m", "mrp", "serve", str(run), "--port", str(port), "--rate", "0", "-q"]
    command += [part for pair in options for part in ("--set", pair)]
    if not embedded:
        command += ["--engine", "openai", "--base-url", f"http://127.0.0.1:{behind}/v1"]
    tally, kills, ended = Tally(), 0, threading.Event()
    memory: list[tuple[float, float]] = []
    with upstream(behind, embedded) as server_behind, process(command) as server:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, server)
        cast = [m["id"] for m in httpx.get(f"{url}/v1/models").json()["data"] if m["id"] != "auto"]
        cast = [name for name in cast if not name.startswith("scene:")]
        clients = [
            threading.Thread(target=client, args=(url, cast, seed, embedded, tally, ended)) for seed in range(CLIENTS)
        ]
        for thread in clients:
            thread.start()
        chance, began = random.Random(0), time.monotonic()
        next_kill, next_look = began + chance.uniform(5, 20), began
        while time.monotonic() < began + seconds and server.poll() is None:
            time.sleep(0.5)
            now = time.monotonic()
            if now >= next_look:
                memory.append((now - began, resident_mib(server.pid)))
                next_look = now + 10
                print(f"{now - began:6.0f} s  {memory[-1][1]:7.1f} MiB  kills {kills}  {tally.told()}", flush=True)
            if not embedded and now >= next_kill:
                server_behind.restart(chance.uniform(0, 2))
                kills += 1
                next_kill = time.monotonic() + chance.uniform(5, 20)
        died = server.poll()
        ended.set()
        for thread in clients:
            thread.join(120)
        alive = sum(thread.is_alive() for thread in clients)
        if died is not None or alive:
            tally.fault(f"server's exit code {died}, clients that never ended {alive}")
    times, sizes = np.array(memory[len(memory) // 5 :]).T
    slope = float(np.polyfit(times / 3600, sizes, 1)[0]) if len(times) > 2 else None
    counts = dict(tally.counts)
    return {
        "minutes": round(seconds / 60, 2),
        "clients": CLIENTS,
        "requests": sum(counts.values()),
        **counts,
        "statuses": dict(tally.statuses),
        "kills": kills,
        "faults": tally.faults,
        "mib_first": memory[0][1],
        "mib_last": memory[-1][1],
        "mib_most": max(size for _, size in memory),
        "mib_an_hour": round(slope, 2) if slope is not None else None,
    }


class Tally:
    """How requests ended; several threads count."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.faults: list[str] = []
        self.known: dict[tuple[str, str], str] = {}  # the answer to each question, of the model itself
        self._lock = threading.Lock()

    def add(self, kind: str, status: int) -> None:
        with self._lock:
            self.counts[kind] += 1
            self.statuses[status] += 1
            if status == 500:
                self.faults.append("status 500")

    def fault(self, what: str) -> None:
        with self._lock:
            self.counts["fault"] += 1
            self.faults.append(what)
        print(f"FAULT: {what}", flush=True)

    def expected(self, character: str, question: str, text: str) -> str:
        """What that question was answered with the first time."""
        with self._lock:
            return self.known.setdefault((character, question), text)

    def told(self) -> str:
        with self._lock:
            return ", ".join(f"{kind} {count:,}" for kind, count in sorted(self.counts.items()))


def client(url: str, cast: list[str], seed: int, embedded: bool, tally: Tally, ended: threading.Event) -> None:
    """Ask until `ended`."""
    chance = random.Random(seed)
    with httpx.Client(base_url=url, timeout=120) as http:
        while not ended.is_set():
            character = chance.choice(cast)
            nonce = chance.choice(QUESTIONS) if embedded else uuid.UUID(int=chance.getrandbits(128)).hex
            body: dict[str, Any] = {"model": character, "messages": [{"role": "user", "content": nonce}]}
            body |= {"max_tokens": 16 if embedded else 200, "temperature": 0}
            leaves = chance.random() < LEAVES
            try:
                if chance.random() < STREAMS:
                    kind, status, text = stream(http, body, leaves)
                else:
                    kind, status, text = whole(http, body)
            except httpx.HTTPError as error:  # nothing is done to this server that would excuse it
                tally.fault(f"the connection broke: {error!r}")
                continue
            wanted = tally.expected(character, nonce, text) if embedded and kind == "whole" else nonce
            if (kind == "whole" and text != wanted) or (kind == "left" and not embedded and not nonce.startswith(text)):
                tally.fault(f"asked {wanted!r}, {kind}, and got {text!r}")
            elif kind.startswith("fault"):
                tally.fault(kind)
            else:
                tally.add(kind, status)
            if kind == "told":
                time.sleep(chance.uniform(0.05, 0.3))


def whole(http: httpx.Client, body: dict[str, Any]) -> tuple[str, int, str]:
    answer = http.post("/v1/chat/completions", json=body)
    if answer.status_code == 200:
        said = answer.json()
        choice = said["choices"][0]
        if said["mrp"]["character"] != body["model"]:
            return f"fault: {said['mrp']['character']!r} answered for {body['model']!r}", 200, ""
        if choice["finish_reason"] not in ("stop", "length"):
            return f"fault: finish reason {choice['finish_reason']!r}", 200, ""
        return "whole", 200, choice["message"]["content"]
    message = answer.json().get("error", {}).get("message")
    return ("told" if message else f"fault: status {answer.status_code} without a message"), answer.status_code, ""


def stream(http: httpx.Client, body: dict[str, Any], leaves: bool) -> tuple[str, int, str]:
    text, finish, last = "", None, ""
    with http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as answer:
        if answer.status_code != 200:
            told = json.loads(answer.read()).get("error", {}).get("message")
            return ("told" if told else "fault: an error without a message"), answer.status_code, ""
        for line in answer.iter_lines():
            last = line or last
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                return ("told" if finish is None else "fault: an error after a finish reason"), 200, text
            choice = event["choices"][0]
            text += choice["delta"].get("content") or ""
            finish = choice["finish_reason"] or finish
            if leaves and len(text) > 3:
                return "left", 200, text
    if finish not in ("stop", "length") or last != "data: [DONE]":
        return f"fault: a stream that ended with {finish!r} and {last!r}", 200, text
    return "whole", 200, text


class Echo(BaseHTTPRequestHandler):
    """Behind: says the last message back, four letters a piece. It takes messages only, so it needs no tokenizer."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._json(200, {"object": "list", "data": [{"id": "echo", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            self._json(404, {"error": {"message": "only chat completions here"}})
            return
        text = body["messages"][-1]["content"].split()[-1]
        text = text[-32:]
        pieces = [text[at : at + 4] for at in range(0, len(text), 4)]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for number, piece in enumerate([*pieces, ""]):
                finish = "stop" if number == len(pieces) else None
                choice = {"index": 0, "delta": {"content": piece}, "finish_reason": finish}
                self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
                self.wfile.flush()
                time.sleep(0.01)
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            pass  # the reader went away
        self.close_connection = True

    def _json(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Upstream:
    """The process behind."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, __file__, "--upstream", str(self.port)])
        while socket.socket().connect_ex(("127.0.0.1", self.port)):
            time.sleep(0.05)

    def restart(self, pause_s: float) -> None:
        self.kill()
        time.sleep(pause_s)
        self.start()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def upstream(port: int, embedded: bool) -> Iterator[Any]:
    if embedded:
        yield None
        return
    behind = Upstream(port)
    try:
        yield behind
    finally:
        behind.kill()


@contextmanager
def process(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    started = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(60)
        except subprocess.TimeoutExpired:
            started.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"the server ended: {server.returncode}")


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return round(int(line.split()[1]) / 1024, 1)
    raise SystemExit("no VmRSS: this script needs Linux")


if __name__ == "__main__":
    main()
