"""Where base models are looked for, and what makes a folder one."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from mrp.errors import InputError, ManyFaults, SetupError
from mrp.models.bases import (
    DEFAULT_BASE,
    KNOWN_BASES,
    base_folder,
    cache_folder,
    check_base_folder,
    find_base,
    is_pulled,
)


def write_safetensors(path: Path, missing_bytes: int = 0) -> None:
    header = json.dumps({"w": {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]}, "__metadata__": {}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64 - missing_bytes))


def make_base(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    write_safetensors(folder / "model.safetensors")
    return folder


def make_pulled(folder: Path) -> Path:
    """A folder whose record agrees with the table of known bases."""
    base = KNOWN_BASES[DEFAULT_BASE]
    make_base(folder)
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    record = {"format": 1, "wheel_sha256": base.wheel_sha256, "gguf_sha256": base.gguf_sha256, "files": files}
    (folder / "mrp-base.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a working directory that holds nothing."""
    monkeypatch.setenv("MRP_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


# --- The cache ------------------------------------------------------------------------------------------------------


def test_mrp_home_is_the_cache(tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "home"
    assert base_folder(KNOWN_BASES[DEFAULT_BASE]) == tmp_path / "home" / "bases" / DEFAULT_BASE


@pytest.mark.parametrize(
    ("platform", "environment", "below_home"),
    [
        ("linux", {}, ".cache/mrp"),
        ("linux", {"XDG_CACHE_HOME": "{home}/elsewhere"}, "elsewhere/mrp"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, ".cache/mrp"),
        ("darwin", {"XDG_CACHE_HOME": "{home}/elsewhere"}, "Library/Caches/mrp"),
        ("win32", {"LOCALAPPDATA": "{home}/local"}, "local/mrp"),
        ("win32", {}, "AppData/Local/mrp"),
    ],
)
def test_without_mrp_home_the_cache_is_where_the_system_keeps_caches(
    platform: str, environment: dict[str, str], below_home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MRP_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(home=tmp_path))
    monkeypatch.setattr("mrp.models.bases.sys.platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / below_home


# --- Finding --------------------------------------------------------------------------------------------------------


def test_a_path_is_found_from_the_run_file_first_then_from_here(tmp_path: Path) -> None:
    here, near = make_base(tmp_path / "work" / "base"), make_base(tmp_path / "run" / "base")
    assert find_base("base", near=tmp_path / "run") == near
    assert find_base("./base") == here
    assert find_base("../work/base", near=tmp_path / "elsewhere").samefile(here)
    assert find_base(str(near)) == near


def test_a_known_name_is_its_cache_folder_once_pulled(home: Path) -> None:
    with pytest.raises(SetupError, match="is not in the cache") as error:
        find_base(DEFAULT_BASE)
    assert error.value.fix == f"mrp pull {DEFAULT_BASE}"
    folder = make_pulled(home / "bases" / DEFAULT_BASE)
    assert find_base(DEFAULT_BASE) == folder


def test_an_output_folder_of_the_same_name_does_not_hide_a_known_base(home: Path) -> None:
    Path(DEFAULT_BASE).mkdir()
    pulled = make_pulled(home / "bases" / DEFAULT_BASE)
    assert find_base(DEFAULT_BASE) == pulled


@pytest.mark.parametrize("key", ["format", "wheel_sha256", "gguf_sha256"])
def test_a_base_made_from_other_files_or_by_an_older_conversion_is_not_pulled(home: Path, key: str) -> None:
    folder = make_pulled(home / "bases" / DEFAULT_BASE)
    record = json.loads((folder / "mrp-base.json").read_text(encoding="utf-8"))
    (folder / "mrp-base.json").write_text(json.dumps(record | {key: "other"}), encoding="utf-8")
    assert not is_pulled(KNOWN_BASES[DEFAULT_BASE])


@pytest.mark.parametrize("name", ["smollm2-135m-instuct", "someone/some-model", ""])
def test_an_unknown_name_is_answered_with_what_would_work(name: str) -> None:
    with pytest.raises(InputError, match="unknown base model") as error:
        find_base(name)
    assert DEFAULT_BASE in error.value.fix
    assert "any local folder in Hugging Face format" in error.value.fix


def test_a_file_is_not_a_base(tmp_path: Path) -> None:
    (tmp_path / "work" / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"model\.gguf is a file"):
        find_base("model.gguf")


# --- What a folder must hold ----------------------------------------------------------------------------------------


def test_a_whole_folder_passes(tmp_path: Path) -> None:
    check_base_folder(make_base(tmp_path / "base"))


def test_an_index_with_all_its_shards_passes(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    (base / "model.safetensors").unlink()
    for shard in ("a.safetensors", "b.safetensors"):
        write_safetensors(base / shard)
    (base / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}', encoding="utf-8"
    )
    check_base_folder(base)


def test_all_faults_are_told_in_one_pass(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ManyFaults) as error:
        find_base(str(empty))
    assert [fault.what.split(" (")[0].split(":")[0] for fault in error.value.faults] == [
        "no config.json",
        "no tokenizer",
        "no weights",
    ]


def test_every_missing_shard_is_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    shards = {f"layer{i}": f"model-0000{i}.safetensors" for i in (1, 2, 3)}
    write_safetensors(base / "model-00002.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}), encoding="utf-8")
    with pytest.raises(ManyFaults) as error:
        check_base_folder(base)
    assert [Path(fault.where).name for fault in error.value.faults] == [
        "model-00001.safetensors",
        "model-00003.safetensors",
    ]


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        ("model.safetensors", b"", "is not a safetensors file, or is cut off"),
        ("model.safetensors", struct.pack("<Q", 50) + b'{"w": {"dtype"', "is not a safetensors file, or is cut off"),
        ("model.safetensors", struct.pack("<Q", 8) + b'{"w": 1}', "is not a safetensors file, or is cut off"),
        ("model.safetensors", struct.pack("<Q", 2**62), "is not a safetensors file, or is cut off"),
        ("model.safetensors.index.json", b"{}", "the index of the weights names no shard"),
        ("config.json", b"[]", "config.json is not a JSON object"),
        ("config.json", b"\xff{", "config.json is not a JSON object"),
        ("config.json", b"{}", "config.json names no model_type"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, file: str, content: bytes, what: str) -> None:
    base = make_base(tmp_path / "base")
    (base / file).write_bytes(content)
    with pytest.raises(InputError, match=what) as error:
        check_base_folder(base)
    assert file in error.value.where


def test_weights_that_are_cut_off_are_noticed_without_reading_them(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    write_safetensors(base / "model.safetensors", missing_bytes=10)
    with pytest.raises(InputError, match="cut off: 10 bytes are missing"):
        check_base_folder(base)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    base = make_base(tmp_path / "base")
    (base / "model.safetensors").rename(base / name)
    with pytest.raises(InputError, match="not supported yet by this version"):
        check_base_folder(base)


def test_a_shard_without_its_index_is_explained(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    (base / "model.safetensors").rename(base / "model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        check_base_folder(base)


@pytest.mark.parametrize(
    ("file", "fix"), [("adapter_config.json", "give the base model it was trained on"), ("x.gguf", "GGUF")]
)
def test_a_folder_that_is_something_else_is_recognised(tmp_path: Path, file: str, fix: str) -> None:
    base = make_base(tmp_path / "base")
    (base / "config.json").rename(base / file)
    with pytest.raises(InputError, match=r"no config\.json") as error:
        check_base_folder(base)
    assert fix in error.value.fix


@pytest.mark.parametrize("files", [["tokenizer.model"], ["vocab.json", "merges.txt"]])
def test_each_form_of_tokenizer_is_accepted(tmp_path: Path, files: list[str]) -> None:
    base = make_base(tmp_path / "base")
    (base / "tokenizer.json").unlink()
    for name in files:
        (base / name).touch()
    check_base_folder(base)
