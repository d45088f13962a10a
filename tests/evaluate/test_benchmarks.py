"""`mrp benchmark` as a whole, on a tiny run: both sides play, figures and files are written, a judge can go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from benchmark_data import charactereval, coser, rolebench, write
from command import fails, mrp
from loopback_judge import JudgeLLM
from loopback_llm import llm
from projects import snapshot, write_project

pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from mrp.config import load_run
from mrp.evaluate.benchmark import BenchmarkFlags, benchmark_command, some_items
from mrp.evaluate.benchmark_files import read_benchmark
from mrp.evaluate.benchmark_rouge import rouge_l
from mrp.files import read_json
from mrp.judge.said import read_said
from mrp.pipeline import run_all
from mrp.report import SILENT


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MRP_HOME", str(tmp_path_factory.mktemp("cache")))
        run_file = write_project(tmp_path_factory.mktemp("benchmarks") / "project", tiny_base)
        run_all(load_run(run_file))
        yield run_file


@pytest.fixture(scope="module")
def played(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that played all three benchmarks."""
    data = tmp_path_factory.mktemp("data")
    named = [f"charactereval={charactereval(data / 'c')}", f"rolebench={rolebench(data / 'r')}"]
    named.append(f"coser={coser(data / 's')}")
    return finished, benchmark_command(finished, named, {}, BenchmarkFlags(items=0), SILENT)


def test_both_sides_play_every_place_and_figures_have_intervals(played: tuple[Path, dict[str, Any]]) -> None:
    run_file, found = played
    assert {name: (one["items"], one["of"]) for name, one in found.items()} == {
        "charactereval": (3, 3), "rolebench": (8, 8), "coser": (3, 3)
    }  # fmt: skip
    for name, one in found.items():
        home = run_file.parent / "run" / "benchmarks" / name
        assert set(one["sides"]) == {"tuned", "base"} and one["files"]
        assert one["sides"]["tuned"]["empty"]["n"] == one["items"]
        page, text = ((home / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
        assert one["samples"][0]["question"] in page and one["samples"][0]["question"].split("\n")[0] in text
        assert "not figures to set beside" in page and f"# {name} played by" in text
    assert found["rolebench"]["own_roles"] == ["Sun Wukong"] and found["charactereval"]["own_roles"] == []
    assert found["charactereval"]["sides"]["tuned"]["rouge_l"] is None  # it has no references


def test_rouge_is_that_of_the_replies_to_the_nearest_reference(played: tuple[Path, dict[str, Any]]) -> None:
    run_file, found = played
    said = read_said(run_file.parent / "run" / "benchmarks" / "rolebench" / "said.json", "")
    values: dict[str, list[float]] = {}
    for place in said.places:
        references = (place.real, "Nobody.")
        values.setdefault(place.character, []).append(max(rouge_l(place.said["tuned"], r) for r in references))
    expected = sum(sum(own) / len(own) for own in values.values()) / len(values)
    assert found["rolebench"]["sides"]["tuned"]["rouge_l"]["value"] == pytest.approx(expected, abs=1e-6)
    assert set(found["rolebench"]["sides"]["tuned"]["groups"]) == {"Sun Wukong", "Old Mason"}


def test_each_side_leaves_what_the_benchmarks_own_scorer_reads(played: tuple[Path, dict[str, Any]]) -> None:
    home = played[0].parent / "run" / "benchmarks"
    for side in ("tuned", "base"):
        rows = read_json(home / "charactereval" / side / "generation.jsonl")
        assert [row["id"] for row in rows] == [7, 8, 9] and all("model_output" in row for row in rows)
        lines = (home / "rolebench" / side / "generated.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 8 and all(set(json.loads(x)) == {"role", "question", "generated"} for x in lines)
        (scene,) = read_json(home / "coser" / side / "simulation.json")
        assert len(scene["simulation"]) == 5


def test_a_repeated_benchmark_asks_nothing_and_writes_the_same(
    played: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = played[0].parent / "run" / "benchmarks"
    before = snapshot(home)
    monkeypatch.setattr("mrp.play.embedded.TransformersEngine.stream", None)
    named = [f"coser={coser(tmp_path)}"]
    benchmark_command(played[0], named, {}, BenchmarkFlags(items=0, threads=1), SILENT)
    after = snapshot(home)
    assert before.keys() == after.keys()
    differing = {name for name in before if before[name] != after[name]}
    assert differing <= {"coser/results.json", "coser/report.md", "coser/report.html"}  # the command names another path


def test_a_judge_goes_on_where_the_benchmark_ended(played: tuple[Path, dict[str, Any]]) -> None:
    home = played[0].parent / "run" / "benchmarks" / "charactereval"
    with llm(JudgeLLM) as server:
        done = mrp(
            "judge", played[0], "--benchmark", "charactereval", "--base-url", server.url, "--model", "j", "--json"
        )
        assert done.code == 0, done.err
        asked = server.asked_for
    assert done.json["places"] == 3 and (home / "judge.html").is_file()
    assert {material["character"] for material in asked} == {"孙悟空", "石匠"}
    assert any("你会唱歌吗" in str(material["before"]) for material in asked)
    assert "你是角色扮演的评判者" in server.bodies[0][1]["messages"][0]["content"]


def test_places_that_no_context_holds_are_left_out_and_told(finished: Path, tmp_path: Path) -> None:
    run_file = Path(shutil.copytree(finished.parent, tmp_path / "project")) / "mrp.yaml"
    folder = charactereval(tmp_path / "c")
    rows = read_json(folder / "data" / "test_data.jsonl")
    rows[0]["context"] = "师父：" + "山高路远，" * 200
    write(folder / "data" / "test_data.jsonl", rows)
    done = mrp("benchmark", run_file, f"charactereval={folder}", "--json")
    assert done.code == 0, done.err
    assert done.json["charactereval"]["items"] == 2 and done.json["charactereval"]["too_long"] == 1
    assert "1 places did not fit" in done.err
    write(folder / "data" / "test_data.jsonl", rows[:1])
    fails(mrp("benchmark", run_file, f"charactereval={folder}"), 2, "no place of charactereval fits", "context_tokens")


def test_what_is_wrong_with_the_command_is_told_before_a_model_is_loaded(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrp.models.load.load_model", None)
    for named, words in (
        (["coser"], ("NAME=PATH", "coser")),
        (["cosr=x"], ("cosr", "did you mean 'coser'")),
        ([f"coser={tmp_path}/none.json"], ("none.json", "Neph0s/CoSER")),
        ([f"coser={tmp_path}", f"coser={tmp_path}"], ("twice",)),
    ):
        fails(mrp("benchmark", finished, *named), 2, *words)
    untrained = write_project(tmp_path / "fresh", finished.parent)
    fails(mrp("benchmark", untrained, f"coser={coser(tmp_path)}"), 2)


def test_some_items_are_of_as_many_roles_as_can_be_and_the_same_for_a_seed(tmp_path: Path) -> None:
    found = read_benchmark("rolebench", rolebench(tmp_path))
    two = some_items(found, 2, 0)
    assert {item.person for item in two} == {"Sun Wukong", "Old Mason"} and some_items(found, 2, 0) == two
    assert some_items(found, 4, 0)[:2] == two and some_items(found, 0, 0) == list(found.items)
    assert len({tuple(item.id for item in some_items(found, 2, seed)) for seed in range(9)}) > 1
