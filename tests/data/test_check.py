"""`mrp data check`: every fault in one pass, nothing written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from dialogue_rows import pair, scene

from mrp.cast import Cast
from mrp.config import Run
from mrp.data.build import build_data
from mrp.data.check import check_data
from mrp.errors import InputError

Write = Callable[[str, Iterable[Any]], Path]


def test_all_faults_of_all_files_in_one_pass(write: Write, tmp_path: Path, cast: Cast) -> None:
    rows = [scene(("tang", "a")), "{", scene(("Guard", "b")), scene(("tang", "a")), pair("x", "y", system="Nobody")]
    one = write("one.jsonl", rows)
    two = write("two.jsonl", [scene(("tang", "a"), id="two"), scene(("tang", "z"))])
    report = check_data([one, tmp_path / "missing.jsonl", two], cast)
    assert not report.ok
    assert (report.lines, report.kept) == (7, 2)
    assert report.counts == {"broken-json": 1, "no-reply": 1, "duplicate": 2, "unknown-character": 1}
    assert report.lines == report.kept + sum(report.counts.values())
    assert [fault.source for fault in report.faults] == [f"{one}:{n}" for n in (2, 3, 4, 5)] + [f"{two}:1"]
    assert [problem.what for problem in report.problems] == ["no such file: missing.jsonl"]
    assert "where: " in str(report.faults[0].as_error())
    assert report.as_json()["rejected"]["duplicate"] == 2


def test_run_is_checked_as_it_is_built(make_run: Callable[..., Run]) -> None:
    own = {"tang": [pair("a", "b"), pair("a", "b"), pair("c", "d", system="wukong")], "wukong": [pair("e", "f")]}
    run = make_run(own, [scene(("tang", "x"))])
    report = check_data([run.path])
    assert not run.folder.exists()
    totals = build_data(run)["totals"]
    assert (report.lines, report.kept, dict(report.counts)) == (totals["lines"], totals["kept"], totals["rejected"])
    assert check_data([run.path.parent]).as_json() == report.as_json()


def test_character_without_lines_is_a_problem_of_a_run(make_run: Callable[..., Run]) -> None:
    report = check_data([make_run({"tang": [pair("a", "b")]}, people=["tang", "bajie"]).path])
    assert [problem.what for problem in report.problems] == ["the character 'bajie' has no usable line"]


def test_without_a_cast_any_names_will_do(write: Write) -> None:
    path = write("a.jsonl", [pair("a", "b", system="HAMLET"), scene(("OPHELIA", "My lord?"))])
    report = check_data([path])
    assert report.ok
    assert report.kept == 2


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        check_data([tmp_path])


def test_shared_data_is_clean(shared: Path) -> None:
    paths = sorted((shared / "data" / "shakespeare").glob("*.jsonl"))
    report = check_data(paths)
    assert report.ok
    assert report.kept == 391
