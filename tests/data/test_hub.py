"""Datasets of the hub, from a small one on the loopback: which files, pinned, offline later, and its errors told."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from dialogue_rows import pair
from heard import Heard

from mrp.config import Run, load_run
from mrp.data.build import build_data, is_built
from mrp.data.check import check_data
from mrp.data.convert import convert
from mrp.data.hub import choose_files, fetch_dataset, parse_spec
from mrp.data.read import read_dialogues
from mrp.dialogue import Scene
from mrp.errors import InputError, MrpError, SetupError

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
LINE = json.dumps(pair("Who are you?", "Ha!", system="Wukong")).encode() + b"\n"


class Hub:
    """Speaks as much of the hub's API as downloading a dataset takes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"README.md": b"# x", "data/train.jsonl": LINE * 3, "data/test.jsonl": LINE}
        self.status = 200  # of every answer
        self.error_code = ""
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        self.asked.append(f"{handler.command} {path}")
        if self.status != 200:
            self.send(handler, self.status, b"{}", {"X-Error-Code": self.error_code} if self.error_code else {})
        elif path.startswith("/api/datasets/someone/talks"):
            self.info(handler, path.partition("/revision/")[2] or "main")
        elif path.startswith("/datasets/someone/talks/resolve/"):
            commit, _, name = path.removeprefix("/datasets/someone/talks/resolve/").partition("/")
            body = self.files.get(name)
            if body is None:
                self.send(handler, 404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": commit}
            self.send(handler, 200, body, headers)
        else:
            self.send(handler, 404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def info(self, handler: BaseHTTPRequestHandler, revision: str) -> None:
        commit = COMMITS.get(revision) or next((c for c in COMMITS.values() if c == revision), None)
        if commit is None:
            self.send(handler, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [{"rfilename": name, "size": len(body)} for name, body in self.files.items()]
        value = {"_id": "1", "id": "someone/talks", "sha": commit, "siblings": siblings, "tags": [], "private": False}
        self.send(handler, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, text)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("MRP_HOME", str(tmp_path / "mrp"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    thread = threading.Thread(target=hub.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    hub.http.shutdown()
    hub.http.server_close()
    thread.join()


def test_dataset_is_its_training_split_pinned_to_a_commit(hub: Hub) -> None:
    ((name, path),) = fetch_dataset("hf:someone/talks")
    assert name == f"hf:someone/talks@{COMMITS['main']}/data/train.jsonl"
    assert path.read_bytes() == LINE * 3
    assert not any("test.jsonl" in asked for asked in hub.asked)
    assert all(isinstance(result, Scene) for result in read_dialogues(path, None, name=name))


@pytest.mark.usefixtures("hub")
def test_revision_and_path_or_glob() -> None:
    assert [n.partition("@")[2] for n, _ in fetch_dataset("hf:someone/talks@v1/data/*.jsonl")] == [
        f"{COMMITS['v1']}/data/test.jsonl",
        f"{COMMITS['v1']}/data/train.jsonl",
    ]
    ((name, path),) = fetch_dataset("hf:someone/talks/README.md")  # whoever names a file gets it
    assert name.endswith("/README.md") and path.read_bytes() == b"# x"


@pytest.mark.usefixtures("hub")
def test_name_works_offline_after_the_first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    first = fetch_dataset("hf:someone/talks")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    heard = Heard()
    assert fetch_dataset("hf:someone/talks", heard) == first
    assert "cannot be reached" in heard.warnings[0]
    with pytest.raises(SetupError, match="cannot be reached") as error:
        fetch_dataset("hf:someone/talks/data/test.jsonl")
    assert "HF_ENDPOINT" in error.value.fix


def test_pinned_name_asks_nobody_the_second_time(hub: Hub) -> None:
    spec = f"hf:someone/talks@{COMMITS['v1']}"
    first = fetch_dataset(spec)
    hub.asked.clear()
    assert fetch_dataset(spec) == first
    assert hub.asked == []


def test_moved_branch_gives_the_new_commit(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_dataset("hf:someone/talks")
    monkeypatch.setitem(COMMITS, "main", "c" * 40)
    hub.files["data/train.jsonl"] = LINE
    ((name, path),) = fetch_dataset("hf:someone/talks")
    assert "c" * 40 in name and path.read_bytes() == LINE


@pytest.mark.usefixtures("hub")
def test_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SetupError, match="cannot be reached"):
        fetch_dataset("hf:someone/talks")


@pytest.mark.parametrize(
    ("status", "code", "kind", "words", "fix"),
    [
        (401, "RepoNotFound", InputError, "no dataset someone/talks", "spelling"),
        (403, "GatedRepo", SetupError, "gated", "accept its licence"),
        (429, "", SetupError, "too many requests", "wait"),
        (500, "", SetupError, "answers 500", "later"),
        (403, "", SetupError, "does not let us", "HF_TOKEN"),
    ],
)
def test_answers_of_the_hub_become_errors_that_say_what_to_do(
    hub: Hub, status: int, code: str, kind: type[MrpError], words: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.status, hub.error_code = status, code
    with pytest.raises(kind, match=words) as error:
        fetch_dataset("hf:someone/talks")
    assert fix in error.value.fix and error.value.where == "hf:someone/talks"


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hf:someone/nothing", "no dataset someone/nothing"),
        ("hf:someone/talks@v9", "no revision 'v9'"),
        ("hf:someone/talks/*.parquet", "no file of someone/talks matches"),
        ("hf:talks", "is no dataset"),
        ("hf:", "is no dataset"),
        ("hf:a/b@", "is no dataset"),
    ],
)
def test_wrong_names_are_told(spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        fetch_dataset(spec)
    assert error.value.fix


def test_dataset_without_data_names_what_it_has(hub: Hub) -> None:
    hub.files = {"README.md": b"", "dataset_infos.json": b"{}", ".x/a.jsonl": b""}
    with pytest.raises(InputError, match="has no data files") as error:
        fetch_dataset("hf:someone/talks")
    assert "README.md" in error.value.fix


def test_dataset_converts(hub: Hub, tmp_path: Path) -> None:
    hub.files = {
        "train-00000-of-00002.jsonl.gz": gzip.compress(LINE),
        "train-00001-of-00002.jsonl.gz": gzip.compress(LINE),
    }
    done = convert(["hf:someone/talks"], tmp_path / "out.jsonl", "messages")
    assert done.written == 2
    first = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["source"] == f"hf:someone/talks@{COMMITS['main']}/train-00000-of-00002.jsonl.gz:1"


@pytest.mark.parametrize(
    ("names", "pattern", "chosen"),
    [
        (["a.parquet", "a.jsonl", "README.md"], None, ["a.parquet"]),
        (
            ["x/train-0.parquet", "x/validation-0.parquet", "y/train-0.parquet"],
            None,
            ["x/train-0.parquet", "y/train-0.parquet"],
        ),
        (["talks.json", "test_set.json"], None, ["talks.json"]),
        (["test.csv"], None, ["test.csv"]),
        (["constrained.jsonl", "training.jsonl"], None, ["constrained.jsonl", "training.jsonl"]),
        (["full/a.json", "full/b.json", "test/c.json"], "full", ["full/a.json", "full/b.json"]),
        (["full/a.json", "full/b.json", "test/c.json"], "*/[bc].json", ["full/b.json", "test/c.json"]),
        (["a.jsonl.zst", ".cache/b.jsonl"], None, ["a.jsonl.zst"]),
        (["README.md"], None, []),
    ],
)
def test_files_are_chosen(names: list[str], pattern: str | None, chosen: list[str]) -> None:
    assert choose_files(names, pattern) == chosen


def test_parts_of_a_name() -> None:
    spec = parse_spec("hf:a.b/c-d@refs%2Fconvert%2Fparquet/x/*.json")
    assert (spec.repo, spec.revision, spec.pattern) == ("a.b/c-d", "refs/convert/parquet", "x/*.json")


def test_a_run_is_built_on_a_dataset_and_once_more_without_the_hub(hub: Hub, make_run: Callable[..., Run]) -> None:
    run = make_run({"wukong": [pair("Up?", "Down.", system="wukong")]}, people=["wukong"], data={"held_out": 0})
    cast = yaml.safe_load(run.cast_path.read_text(encoding="utf-8"))
    cast["dialogues"] = ["hf:someone/talks", "hf:someone/talks@v1/data/test.jsonl"]
    cast["characters"][0]["aliases"] = ["Wukong"]
    run.cast_path.write_text(yaml.safe_dump(cast), encoding="utf-8")
    hub.files["data/train.jsonl"] = LINE + json.dumps(pair("Again?", "No.", system="Wukong")).encode() + b"\n"
    run = load_run(run.path)
    assert not is_built(run)
    manifest = build_data(run)
    assert [item["path"].rpartition("/")[2] for item in manifest["inputs"]] == [
        "wukong.jsonl",
        "train.jsonl",
        "test.jsonl",
    ]
    assert COMMITS["v1"] in manifest["inputs"][2]["path"]
    assert manifest["totals"]["rejected"] == {"duplicate": 1}
    hub.asked.clear()
    assert is_built(run) and build_data(run) == manifest
    assert not hub.asked
    assert check_data([Path("hf:someone/talks")]).kept == 2
