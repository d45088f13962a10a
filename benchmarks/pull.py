"""`mrp pull` against a plain HTTP download of the same bytes from the same server on the loopback.

    python benchmarks/pull.py [--megabytes 500] [--files 4] [--rounds 3] [--line-mb-s 0] [--source hf]

The server is a process of its own that speaks the hub's protocol and hands files to the socket by `sendfile`. Plain is
httpx writing each answer to a file, one file after the other and all at once; the better of both is the server's rate.
The pull does that, hashes every byte (SHA-256), and makes and records the base folder. `--line-mb-s 100` has the server
send no faster than a gigabit line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REPO, COMMIT = "bench/model", "b" * 40
PIECE_BYTES = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--line-mb-s", type=float, default=0, help="the server's rate for all together; 0: no limit")
    parser.add_argument("--source", choices=("hf", "modelscope"), default="hf")
    parser.add_argument("--folder", type=Path, help="where files are made; default: the system's temporary folder")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.line_mb_s * 1e6)
        return
    with tempfile.TemporaryDirectory(prefix="mrp-pull-", dir=options.folder) as folder:
        source = Path(folder) / "served"
        make_model(source, options.megabytes * 10**6, options.files)
        command = [sys.executable, __file__, "--serve", str(source), "--line-mb-s", str(options.line_mb_s)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            url = server.stdout.readline().strip()
            try:
                print(json.dumps(measure(url, source, Path(folder), options.source, options.rounds)))
            finally:
                server.terminate()


def make_model(folder: Path, total_bytes: int, count: int) -> None:
    """Random shards with an index, a config and a tokenizer."""
    folder.mkdir()
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    noise = os.urandom(1 << 24)
    for i, name in enumerate(names):
        nbytes = total_bytes // count
        header = json.dumps({f"w{i}": {"dtype": "U8", "shape": [nbytes], "data_offsets": [0, nbytes]}}).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for begin in range(0, nbytes, len(noise)):
                file.write(noise[: min(len(noise), nbytes - begin)])
    weight_map = {f"w{i}": name for i, name in enumerate(names)}
    small = {"config.json": {"model_type": "llama"}, "tokenizer.json": {}}
    for name, value in (small | {"model.safetensors.index.json": {"weight_map": weight_map}}).items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8", newline="\n")


# --- The server -------------------------------------------------------------------------------------------------------


def serve(folder: Path, bytes_per_s: float) -> None:
    """Serve the files of `folder` in both hubs' protocols until killed; prints the address first."""
    listings = {"siblings": [], "Files": []}
    for path in sorted(folder.iterdir()):
        nbytes, sha256 = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        lfs = {"sha256": sha256, "size": nbytes, "pointerSize": 130}
        listings["siblings"].append({"rfilename": path.name, "size": nbytes, "blobId": "0" * 40, "lfs": lfs})
        facts = {"Path": path.name, "Type": "blob", "Size": nbytes, "CommittedDate": 1, "Revision": COMMIT}
        listings["Files"].append(facts | {"Sha256": sha256})
    line_free = [0.0]  # when the line has sent what was given to it

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each small answer waits 40 ms for an acknowledgement

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            path = unquote(parts.path)
            if path.startswith("/api/models/"):
                self.reply({"id": REPO, "sha": COMMIT, "tags": [], "siblings": listings["siblings"]})
            elif path.startswith("/openapi/"):
                self.reply({"success": True, "data": {"id": REPO, "license": None}})
            elif path.endswith("/repo/files"):
                self.reply({"Code": 200, "Data": {"Files": listings["Files"]}})
            else:
                self.send_file(folder / parse_qs(parts.query).get("FilePath", [path.rpartition("/")[2]])[0])

        def reply(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def send_file(self, path: Path) -> None:
            if not path.is_file():
                self.send_error(404)
                return
            total = path.stat().st_size
            self.send_response(200)
            self.send_header("Content-Length", str(total))
            self.end_headers()
            self.wfile.flush()
            with path.open("rb") as file:
                for begin in range(0, total, PIECE_BYTES):
                    self.connection.sendfile(file, begin, min(PIECE_BYTES, total - begin))
                    self.keep_to_line()

        def keep_to_line(self) -> None:
            """Sleep so long that all connections together are no faster than the line."""
            if bytes_per_s:
                now = time.monotonic()
                line_free[0] = max(line_free[0], now) + PIECE_BYTES / bytes_per_s
                time.sleep(line_free[0] - now)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


# --- The clients ------------------------------------------------------------------------------------------------------


def measure(url: str, source: Path, folder: Path, hub: str, rounds: int) -> dict[str, Any]:
    """Seconds of each, and the ratio of the rates; a table for people is printed."""
    os.environ |= {"HF_ENDPOINT": url, "MODELSCOPE_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    os.environ |= {"MRP_HOME": str(folder / "home"), "MODELSCOPE_HOME": str(folder / "ms")}
    names = sorted(path.name for path in source.glob("*.safetensors"))
    total = sum((source / name).stat().st_size for name in names)
    print(f"{total / 1e6:.0f} MB in {len(names)} files, {hub}")

    def pulled() -> None:
        from mrp.models.pull import pull

        model = pull(REPO, source=hub)
        assert (model / names[-1]).stat().st_size == (source / names[-1]).stat().st_size

    ways: dict[str, Callable[[], None]] = {
        "one by one": lambda: plain(url, names, folder / "plain", 1),
        "all at once": lambda: plain(url, names, folder / "plain", len(names)),
        "mrp pull": pulled,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for last in range(-1, rounds):  # the first round warms imports and caches
        for name, way in ways.items():
            for used in ("plain", "home"):
                shutil.rmtree(folder / used, ignore_errors=True)
            begin = time.perf_counter()
            way()
            taken = time.perf_counter() - begin
            if last >= 0:
                seconds[name].append(taken)
                print(f"{name:12} {taken:7.2f} s  {total / 1e6 / taken:7.0f} MB/s")
    best = {name: min(taken) for name, taken in seconds.items()}
    server = min(best["one by one"], best["all at once"])
    ratio = server / best["mrp pull"]
    print(f"rate of the pull / rate of the server: {ratio:.2f} (best of {rounds})")
    rounded = {name: [round(t, 3) for t in taken] for name, taken in seconds.items()}
    return {"bytes": total, "source": hub, "seconds": rounded, "ratio": round(ratio, 3)}


def plain(url: str, names: list[str], out: Path, at_once: int) -> None:
    """The files by httpx, written as they come."""
    import httpx

    out.mkdir()
    with httpx.Client(timeout=None) as client, ThreadPoolExecutor(at_once) as pool:

        def fetch(name: str) -> None:
            address = f"{url}/{REPO}/resolve/{COMMIT}/{name}"
            with client.stream("GET", address) as answer, (out / name).open("wb") as file:
                for chunk in answer.iter_raw():
                    file.write(chunk)

        list(pool.map(fetch, names))


if __name__ == "__main__":
    main()
