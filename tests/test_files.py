"""Files are written whole or not at all, and one command at a time works in a folder."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from projects import HOLD, held_by_another_process

from mrp import files
from mrp.errors import InputError, SetupError
from mrp.files import (
    LOCK_NAME,
    disk_error,
    fingerprint,
    folder_lock,
    is_safe_id,
    need_space,
    read_json,
    replacing,
    replacing_folder,
    sampled_sha256,
    settle_folder,
    size_text,
    write_json,
    write_jsonl,
)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# -- whole or not at all -------------------------------------------------------------------------------------------


def test_a_file_takes_its_place_only_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "file.txt"
    with replacing(path) as file:
        file.write("old\n")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write("new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_takes_its_place_only_when_the_block_ends_well(tmp_path: Path) -> None:
    place = tmp_path / "data"
    with replacing_folder(place) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing_folder(place) as folder:
        (folder / "a").write_text("new")
        raise ZeroDivisionError
    assert (place / "a").read_text() == "old"
    with replacing_folder(place) as folder:
        (folder / "b").write_text("new")
    assert [p.name for p in place.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [place]


def test_a_full_disk_keeps_the_earlier_file_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "a.json", 1)
    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(SetupError, match=r"no space left on the disk while writing a\.json") as caught:
        write_json(tmp_path / "a.json", 2)
    assert caught.value.fix and caught.value.where == str(tmp_path / "a.json")
    assert read_json(tmp_path / "a.json") == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_that_a_library_reports_in_its_own_words_is_told_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "adapter" / "a.json", 1)
    monkeypatch.setattr(files, "_is_full", lambda _: True)
    with pytest.raises(SetupError, match="no space left"), replacing_folder(tmp_path / "adapter"):
        raise RuntimeError("PytorchStreamWriter failed writing file data.pkl: file write failed")
    assert read_json(tmp_path / "adapter" / "a.json") == 1


def test_an_error_that_is_not_about_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    for error in (FileNotFoundError(errno.ENOENT, "x"), ValueError("x"), InputError("x")):
        assert disk_error(error, tmp_path / "a") is error


def test_no_permission_and_things_in_the_way_are_told(tmp_path: Path) -> None:
    assert "cannot write a: Read-only" in str(disk_error(OSError(errno.EROFS, "x"), tmp_path / "a"))
    (tmp_path / "file").write_text("x")
    for write in (
        lambda: write_json(tmp_path / "file" / "a.json", 1),
        lambda: replacing_folder(tmp_path / "file" / "data").__enter__(),
        lambda: folder_lock(tmp_path / "file").__enter__(),
    ):
        with pytest.raises(SetupError, match="a file stands where a folder is wanted"):
            write()
    (tmp_path / "folder").mkdir()
    with pytest.raises(SetupError, match="a folder where a file is"):
        write_json(tmp_path / "folder", 1)
    assert (tmp_path / "file").read_text() == "x"


def test_too_little_space_is_told_before_writing(tmp_path: Path) -> None:
    need_space(tmp_path / "not" / "there", 1, "x")
    with pytest.raises(SetupError, match=r"the model needs .* TB, but only .* are free"):
        need_space(tmp_path / "not" / "there", 10**18, "the model")


def test_lines_are_utf8_with_plain_line_ends(tmp_path: Path) -> None:
    count = write_jsonl(tmp_path / "a.jsonl", [{"text": "悟空\n"}, {"b": 1}])
    assert count == 2
    assert (tmp_path / "a.jsonl").read_bytes() == '{"text":"悟空\\n"}\n{"b":1}\n'.encode()


def test_broken_or_missing_json_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file: a\.json"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b'{"a":')
    with pytest.raises(InputError, match="not a JSON file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not a JSON file"):
        read_json(tmp_path / "a.json")


# -- one command at a time -----------------------------------------------------------------------------------------


def test_a_second_process_is_refused_and_may_come_when_the_first_is_done(tmp_path: Path) -> None:
    with held_by_another_process(tmp_path), pytest.raises(SetupError, match="another mrp command is working") as caught:
        folder_lock(tmp_path).__enter__()
    assert caught.value.where == str(tmp_path) and "out:" in caught.value.fix
    with folder_lock(tmp_path):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    with held_by_another_process(tmp_path) as process:
        process.kill()
        process.wait()
        with folder_lock(tmp_path):
            pass


def test_one_process_may_nest_its_blocks_and_keeps_the_folder_until_the_outer_ends(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        with folder_lock(tmp_path):
            pass
        probe = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], input="", capture_output=True, text=True)
        assert "another mrp command" in probe.stderr


def test_what_a_killed_command_left_half_written_is_settled_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".mrp-old-adapter").mkdir()  # killed between the two renames
    (tmp_path / ".mrp-old-adapter" / "weights").write_text("old")
    (tmp_path / ".mrp-adapter-x1").mkdir()
    (tmp_path / "data").mkdir()  # killed after them
    (tmp_path / ".mrp-old-data").mkdir()
    (tmp_path / ".mrp-abc.part").write_text("half")
    with folder_lock(tmp_path):
        assert (tmp_path / "adapter" / "weights").read_text() == "old"
        assert sorted(p.name for p in tmp_path.iterdir()) == [LOCK_NAME, "adapter", "data"]
        with replacing(tmp_path / "a.json") as file, folder_lock(tmp_path):  # a block within does not clear away
            file.write("1")
        assert (tmp_path / "a.json").read_text() == "1"


def test_settling_leaves_a_whole_folder_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "data" / "a.json", 1)
    settle_folder(tmp_path / "data")
    assert read_json(tmp_path / "data" / "a.json") == 1


# -- small things --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "A_b-c", "0", "x.y", "a" * 64])
def test_ids_that_can_be_file_names(name: str) -> None:
    assert is_safe_id(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "-a", "a.", "a/b", "a b", "悟空", "con", "NUL", "com1.txt", "a" * 65]
)
def test_ids_that_cannot(name: str) -> None:
    assert not is_safe_id(name)


def test_fingerprints_depend_on_the_value_alone() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
    assert json.loads(json.dumps(fingerprint([]))) == fingerprint([])


def test_a_sampled_hash_sees_length_and_content(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"abc")
    first = sampled_sha256(small)
    small.write_bytes(b"abd")
    assert sampled_sha256(small) != first
    large.write_bytes(bytes(3 * 2**20))
    first = sampled_sha256(large)
    with large.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert sampled_sha256(large) != first


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (98_362_432, "98.4 MB"), (2e9, "2.0 GB"), (3e15, "3000.0 TB")]
)
def test_sizes_for_people(count: float, text: str) -> None:
    assert size_text(count) == text
