"""`mrp data recipe`: byte for byte what coreutils give, on real files and on odd ones."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from command import mrp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrp.data import recipe as recipe_module
from mrp.data.recipe import RecipeReport, run_recipe
from mrp.errors import InputError, ManyFaults

NAMES = ("swj.jsonl", "swk.jsonl", "tsz.jsonl", "zbj.jsonl")
PIPELINE = 'for name in swj swk tsz zbj; do uniq "$name.jsonl" | head -n 1500; uniq "$name.jsonl" | tail -n 1500; done'
Make = Callable[..., Path]
Pipeline = Callable[..., bytes]  # of a folder, and how many lines to take


@pytest.fixture(scope="session")
def coreutils() -> Pipeline:
    """What the pipeline of 2024 gives for a folder."""
    tools = ("uniq", "head", "tail")
    found = [subprocess.run([tool, "--version"], capture_output=True) for tool in tools if shutil.which(tool)]
    if [b"coreutils" in done.stdout for done in found] != [True] * len(tools):
        pytest.skip("only on systems with coreutils")

    def pipeline(folder: Path, taken: int = 1500) -> bytes:
        command = ["sh", "-c", PIPELINE.replace("1500", str(taken))]
        environment = os.environ | {"LC_ALL": "C"}
        return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True).stdout

    return pipeline


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes the four sources; those not given hold one line."""

    def write(**contents: bytes) -> Path:
        folder = tmp_path / "lines"
        folder.mkdir(exist_ok=True)
        for name in NAMES:
            stem = name.removesuffix(".jsonl")
            (folder / name).write_bytes(contents.get(stem, stem.encode() + b"\n"))
        return folder

    return write


def lines(start: int, end: int) -> bytes:
    return b"".join(b'{"line": %d}\n' % number for number in range(start, end))


def same(folder: Path, coreutils: Pipeline, taken: int = 1500) -> RecipeReport:
    """Holds our result against that of coreutils; gives back the counts."""
    out = folder.parent / "out.jsonl"
    report = run_recipe("xiyou-2024", folder, out)
    got = out.read_bytes()
    assert got == coreutils(folder, taken)
    assert got.count(b"\n") == report.lines_written
    for file in report.files:
        content = (folder / file.name).read_bytes()
        assert file.lines == content.count(b"\n") + (content[-1:] not in (b"\n", b""))
    return report


def test_real_lines(shared: Path, tmp_path: Path, coreutils: Pipeline) -> None:
    folder = tmp_path / "lines"
    folder.mkdir()
    for name in NAMES:
        shutil.copyfile(shared / "data" / "xiyou" / name, folder / name)
    report = same(folder, coreutils)
    assert sum(file.lines for file in report.files) == 1531
    assert report.lines_written == 3062  # each file has under 1,500 lines: all of them come twice


CONTENTS = {
    "under 1,500 lines": lines(0, 700),
    "under 3,000 lines": lines(0, 2000),
    "exactly 1,500": lines(0, 1500),
    "1,501": lines(0, 1501),
    "2,999": lines(0, 2999),
    "exactly 3,000": lines(0, 3000),
    "over 3,000": lines(0, 3001),
    "many": lines(0, 40_000),
    "adjacent repeats": b"".join(b"%d\n" % (k // 7) for k in range(30_000)),
    "all lines equal": b"same\n" * 5000,
    "far repeats": lines(0, 1000) * 5,
    "repeats at the seams": lines(0, 1499) + lines(1499, 1500) * 9 + lines(1500, 3100) + lines(3099, 3100) * 1600,
    "no final newline": lines(0, 3100) + b"end",
    "no final newline, repeat": b"a\nb\nb",
    "CRLF": lines(0, 3100).replace(b"\n", b"\r\n"),
    "CRLF and LF are other lines": b"a\r\na\na\r\na",
    "empty": b"",
    "one newline": b"\n",
    "empty lines": b"\n\n\na\n\n\nb\n\n",
    "NUL bytes": b"a\0b\na\0c\na\0c\n\0\n\0\n\0\0",
    "no UTF-8": b"\xff\xfe\n\xff\xfe\n\x80\xe4\xbd\n" + "行\n行\n".encode("gbk"),
    "no newline at all": b"x" * 300_000,
    "long lines": b"".join(bytes([65 + k // 2]) * 200_000 + b"\n" for k in range(8)),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_made_files(make: Make, content: bytes, coreutils: Pipeline) -> None:
    same(make(swk=content, zbj=content), coreutils)


@pytest.mark.parametrize("block_bytes", [1, 2, 7])
def test_where_a_block_ends_makes_no_difference(
    make: Make, coreutils: Pipeline, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(recipe_module, "BLOCK_BYTES", block_bytes)
    content = b"\n\nab\nab\n\nabc\r\nabc\nabc\nlonger than a block\nlonger than a block\n\0\n"
    same(make(swj=content, tsz=content + b"\0", zbj=lines(0, 40)), coreutils)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary() | st.lists(st.sampled_from([b"a\n", b"b\n", b"\n", b"a", b"\r\n", b"\0"])).map(b"".join))
@pytest.mark.parametrize("taken", [1, 3, 1500])
def test_any_bytes(make: Make, coreutils: Pipeline, taken: int, data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe_module, "BLOCK_BYTES", 3)
        patch.setattr(recipe_module, "TAKEN", taken)
        same(make(swk=data), coreutils, taken)


def test_counts(make: Make, tmp_path: Path) -> None:
    folder = make(swj=lines(0, 2000) + lines(1999, 2000), swk=lines(0, 3000), tsz=lines(0, 1500), zbj=b"")
    done = mrp("data", "recipe", "xiyou-2024", folder, tmp_path / "out.jsonl", "--json")
    assert done.code == 0
    assert [list(file.values()) for file in done.json["files"]] == [
        ["swj.jsonl", 2001, 1, 1500, 1500, 1000],
        ["swk.jsonl", 3000, 0, 1500, 1500, 0],
        ["tsz.jsonl", 1500, 0, 1500, 1500, 1500],
        ["zbj.jsonl", 0, 0, 0, 0, 0],
    ]
    assert done.json["lines_written"] == 9000
    assert "twice: swj.jsonl (1,000), tsz.jsonl (1,500)" in done.err


def test_shuffle_is_a_permutation_of_the_same_lines(make: Make, tmp_path: Path) -> None:
    folder = make(swj=lines(0, 100), swk=lines(50, 4000) + b"no end")
    plain, one, again, two = (tmp_path / name for name in ("plain", "one", "again", "two"))
    run_recipe("xiyou-2024", folder, plain)
    for out, seed in ((one, 1), (again, 1), (two, 2)):
        run_recipe("xiyou-2024", folder, out, shuffle=seed)
    assert one.read_bytes() == again.read_bytes()
    assert len({out.read_bytes() for out in (plain, one, two)}) == 3
    assert sorted(one.read_bytes().split(b"\n")) == sorted(plain.read_bytes().split(b"\n"))


def test_shuffle_is_the_same_on_every_machine(make: Make, tmp_path: Path) -> None:
    run_recipe("xiyou-2024", make(), tmp_path / "out", shuffle=0)
    assert (tmp_path / "out").read_bytes() == b"zbj\ntsz\nswk\nswk\nzbj\nswj\ntsz\nswj\n"


def test_out_is_replaced_and_the_sources_stay(make: Make, tmp_path: Path) -> None:
    folder = make(swk=lines(0, 10))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    out = tmp_path / "new" / "out.jsonl"
    for _ in range(2):
        run_recipe("xiyou-2024", folder, out)
        assert out.read_bytes().count(b"\n") == 26
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


def test_out_may_lie_among_the_sources_but_be_none(make: Make) -> None:
    folder = make()
    run_recipe("xiyou-2024", folder, folder / "out.jsonl")
    (folder / "other.jsonl").hardlink_to(folder / "swk.jsonl")
    (folder / "link.jsonl").symlink_to(folder / "zbj.jsonl")
    for name in ("tsz.jsonl", "other.jsonl", "link.jsonl"):
        with pytest.raises(InputError, match="is one of the sources"):
            run_recipe("xiyou-2024", folder, folder / name)
    assert (folder / "tsz.jsonl").read_bytes() == b"tsz\n"


def test_all_unusable_sources_are_named_in_one_pass(make: Make, tmp_path: Path) -> None:
    folder = make()
    for name in ("swj.jsonl", "swk.jsonl", "tsz.jsonl"):
        (folder / name).unlink()
    (folder / "swk.jsonl").mkdir()
    os.mkfifo(folder / "tsz.jsonl")
    (tmp_path / "out").write_bytes(b"before")
    with pytest.raises(ManyFaults) as caught:
        run_recipe("xiyou-2024", folder, tmp_path / "out")
    assert [fault.what for fault in caught.value.faults] == [
        "no such file: swj.jsonl",
        "swk.jsonl is a folder, not a file",
        "tsz.jsonl is a pipe or device, not a file",
    ]
    assert (tmp_path / "out").read_bytes() == b"before"


def test_folder_that_is_none(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, what in (("nowhere", "no such folder: nowhere"), ("file", "file is no folder")):
        with pytest.raises(InputError, match=what):
            run_recipe("xiyou-2024", tmp_path / name, tmp_path / "out")
    os.mkfifo(tmp_path / "pipe")
    for name, what in (("pipe", "a pipe or device"), (".", "a folder")):
        with pytest.raises(InputError, match=what):
            run_recipe("xiyou-2024", make(), tmp_path / name)


def test_unknown_recipe(make: Make, tmp_path: Path) -> None:
    done = mrp("data", "recipe", "xiyou2024", make(), tmp_path / "out")
    assert done.code == 2
    assert "did you mean 'xiyou-2024'?" in done.err
