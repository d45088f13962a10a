"""A server on the loopback that speaks the protocols of Hugging Face and of ModelScope, as their clients use them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE_BYTES = 2000  # from here on a file is "LFS": listed with its SHA-256
COMMIT = "c0ffee" * 6 + "c0de"
OLDER = "0ld".replace("l", "1") * 13 + "0"


@dataclass
class Repo:
    """A repository: its files at each commit, and what its branches and tags are."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "master": COMMIT})
    license: str | None = "apache-2.0"
    gated: bool = False

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.refs.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


class Hubs:
    """The server. What is put into `cuts`, `statuses` and `altered` befalls the next answers with bytes of a file."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str | None]] = []  # a file's name (or "look"), and the Range asked for
        self.cuts: dict[str, list[int]] = {}  # of a file: lengths after which its next answers break off
        self.statuses: list[tuple[int, dict[str, str]]] = []
        self.look_statuses: list[tuple[int, dict[str, str]]] = []
        self.altered: dict[str, list[bytes]] = {}
        self.has_cdn = False  # Hugging Face then sends files from another host
        self.tokens_at_cdn: list[str | None] = []
        self.lock = threading.Lock()
        hubs = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each small answer waits 40 ms for an acknowledgement

            def do_GET(self) -> None:
                hubs.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def add(self, repo: str, files: dict[str, bytes], **traits: Any) -> Repo:
        self.repos[repo] = Repo({COMMIT: files}, **traits)
        return self.repos[repo]

    def files_asked(self) -> list[str]:
        return [name for name, _ in self.requests if name != "look"]

    def ranges(self, name: str) -> list[str | None]:
        return [wanted for asked, wanted in self.requests if asked == name]

    # -- routes --------------------------------------------------------------------------------------------------

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(to.path)
        path, query = unquote(parts.path), {key: values[0] for key, values in parse_qs(parts.query).items()}
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self.hf_info(to, found[1], found[2] or "main")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.hf_file(to, found[1], found[2], found[3])
        if found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            self.tokens_at_cdn.append(to.headers.get("Authorization"))
            return self.send_file(to, found[3], self.repos[found[1]].commits[found[2]][found[3]])
        if found := re.fullmatch(r"/openapi/v1/models/([^/]+/[^/]+)", path):
            return self.ms_info(to, found[1])
        if found := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo/files", path):
            return self.ms_list(to, found[1], query["Revision"])
        if found := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo", path):
            return self.ms_file(to, found[1], query["Revision"], query["FilePath"])
        return self.fail(to, 404, {})

    def hf_info(self, to: BaseHTTPRequestHandler, name: str, revision: str) -> None:
        if self.is_spoilt(to):
            return None
        repo = self.repos.get(name)
        if repo is None:
            return self.fail(to, 401, {"X-Error-Code": "RepoNotFound"})
        found = repo.at(revision)
        if found is None:
            return self.fail(to, 404, {"X-Error-Code": "RevisionNotFound"})
        commit, files = found
        tags = [f"license:{repo.license}"] if repo.license else []
        siblings = [hf_sibling(path, data) for path, data in files.items()]
        info = {"_id": "1", "id": name, "modelId": name, "sha": commit, "private": False, "gated": repo.gated}
        return self.send_json(to, {**info, "downloads": 0, "likes": 0, "tags": tags, "siblings": siblings})

    def hf_file(self, to: BaseHTTPRequestHandler, name: str, revision: str, path: str) -> None:
        repo = self.repos[name]
        if repo.gated:
            return self.fail(to, 403 if to.headers.get("Authorization") else 401, {"X-Error-Code": "GatedRepo"})
        found = repo.at(revision)
        if found is None or path not in found[1]:
            return self.fail(to, 404, {"X-Error-Code": "EntryNotFound"})
        if self.has_cdn:
            host = self.url.replace("127.0.0.1", "localhost")
            return self.fail(to, 302, {"Location": f"{host}/cdn/{name}/{found[0]}/{path}?signature=1"})
        return self.send_file(to, path, found[1][path])

    def ms_info(self, to: BaseHTTPRequestHandler, name: str) -> None:
        if self.is_spoilt(to):
            return None
        if name not in self.repos:
            return self.fail(to, 404, {})
        repo = self.repos[name]
        return self.send_json(to, {"success": True, "data": {"id": name, "license": repo.license, "gated": repo.gated}})

    def ms_list(self, to: BaseHTTPRequestHandler, name: str, revision: str) -> None:
        repo = self.repos[name]
        found = repo.at(revision)
        if found is None:
            return self.fail(to, 404, {})
        files = [ms_entry(path, data, found[0]) for path, data in found[1].items()]
        return self.send_json(to, {"Code": 200, "Success": True, "Data": {"Files": files}})

    def ms_file(self, to: BaseHTTPRequestHandler, name: str, revision: str, path: str) -> None:
        repo = self.repos[name]
        if repo.gated:
            return self.fail(to, 403, {})
        found = repo.at(revision)
        if found is None or path not in found[1]:
            return self.fail(to, 404, {})
        return self.send_file(to, path, found[1][path])

    # -- answers -------------------------------------------------------------------------------------------------

    def is_spoilt(self, to: BaseHTTPRequestHandler) -> bool:
        with self.lock:
            self.requests.append(("look", None))
            spoilt = self.look_statuses.pop(0) if self.look_statuses else None
        if spoilt:
            self.fail(to, *spoilt)
        return spoilt is not None

    def fail(self, to: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        to.send_response(status)
        for key, value in headers.items():
            to.send_header(key, value)
        to.send_header("Content-Length", "0")
        to.end_headers()

    def send_json(self, to: BaseHTTPRequestHandler, value: Any) -> None:
        body = json.dumps(value).encode()
        to.send_response(200)
        to.send_header("Content-Type", "application/json")
        to.send_header("Content-Length", str(len(body)))
        to.end_headers()
        to.wfile.write(body)

    def send_file(self, to: BaseHTTPRequestHandler, path: str, data: bytes) -> None:
        wanted = to.headers.get("Range")
        with self.lock:
            self.requests.append((path, wanted))
            status = self.statuses.pop(0) if self.statuses else None
            cut = self.cuts[path].pop(0) if self.cuts.get(path) else None
            data = self.altered[path].pop(0) if self.altered.get(path) else data
        if status:
            return self.fail(to, *status)
        start = int(re.findall(r"\d+", wanted)[0]) if wanted else 0
        to.send_response(206 if wanted else 200)
        if wanted:
            to.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        to.send_header("Content-Length", str(len(data) - start))
        to.end_headers()
        to.wfile.write(data[start:] if cut is None else data[start : start + cut])
        if cut is not None:
            to.close_connection = True
        return None


def hf_sibling(path: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": blob}
    if len(data) >= LARGE_BYTES:
        entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


def ms_entry(path: str, data: bytes, commit: str) -> dict[str, Any]:
    facts = {"Path": path, "Name": path, "Type": "blob", "Size": len(data), "CommittedDate": 1, "Revision": commit}
    return {**facts, "Sha256": hashlib.sha256(data).hexdigest()}


@contextmanager
def serving() -> Iterator[Hubs]:
    hubs = Hubs()
    thread = threading.Thread(target=hubs.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hubs
    finally:
        hubs.http.shutdown()
        hubs.http.server_close()
        thread.join()
