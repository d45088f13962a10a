"""`mrp eval` as a whole, on a tiny run: what it writes, that it goes on, that it repeats itself, and bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import fails, mrp
from projects import PEOPLE, change_yaml, snapshot, write_project, write_rows

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from mrp.config import load_run
from mrp.dialogue import Scene, Turn
from mrp.errors import InputError
from mrp.evaluate.evaluation import PARTS, evaluate
from mrp.files import read_json
from mrp.pipeline import run_all

FILES = ("results.json", "report.md", "report.html")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MRP_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A project whose run is finished, with held-out lines of both; not to be changed."""
    run_file = write_project(tmp_path_factory.mktemp("evaluated") / "project", tiny_base, data={"held_out": 0.34})
    run_all(load_run(run_file))
    return run_file


@pytest.fixture(scope="module")
def evaluated(finished: Path) -> Path:
    """The same, evaluated."""
    home = Path(shutil.copytree(finished.parent, finished.parent.parent / "evaluated"))
    evaluate(home / "mrp.yaml", replies=3, seed=1)
    return home / "mrp.yaml"


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.parent, tmp_path / "project")) / "mrp.yaml"


def written(run_file: Path) -> dict[str, bytes]:
    return {name: (run_file.parent / "run" / "eval" / name).read_bytes() for name in FILES}


def test_every_figure_stands_beside_the_base_with_its_interval(evaluated: Path) -> None:
    results = read_json(evaluated.parent / "run" / "eval" / "results.json")
    assert results["parts"] == list(PARTS) and set(results["sides"]) == {"base", "tuned"}
    for side in results["sides"].values():
        for key in ("identity", "voice", "swapped", "generation", "questions", "drift", "scenes"):
            assert side[key], key
        accuracy = side["identity"]["all"]["accuracy"]
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"] and accuracy["units"] > 1
        assert set(side["identity"]["characters"]) == set(PEOPLE)
        assert side["generation"]["all"]["empty"]["n"] == 3 * len(PEOPLE)
    assert results["sides"]["tuned"]["identity"]["all"]["loss"] != results["sides"]["base"]["identity"]["all"]["loss"]
    assert results["difference"]["identity"]["loss"]["value"] < 0  # trained on such lines
    assert results["counts"]["replies"] == 3 and results["seed"] == 1
    assert {"torch", "scikit-learn", "precision"} <= set(results["versions"])


def test_the_page_needs_nothing_from_elsewhere(evaluated: Path) -> None:
    page = (evaluated.parent / "run" / "eval" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and "Sun Wukong" in page
    for mark in ("http://", "https://", "<script", "<link", "src="):
        assert mark not in page.replace("http://www.w3.org/", ""), mark


def test_no_finding_without_its_figure(evaluated: Path) -> None:
    import re

    text = (evaluated.parent / "run" / "eval" / "report.md").read_text(encoding="utf-8")
    found = text.split("## What was found")[1].split("\n## ")[0]
    lines = [line for line in found.splitlines() if line.startswith("- ")]
    assert len(lines) >= 8 and all(re.search(r"\d", line) for line in lines)


def test_equal_seeds_give_equal_reports_and_a_second_run_asks_nothing(
    evaluated: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(project, replies=3, seed=1, threads=1)
    assert written(project) == written(evaluated)
    before = snapshot(project.parent / "run" / "eval")
    monkeypatch.setattr("mrp.play.embedded.TransformersEngine.stream", None)
    monkeypatch.setattr("mrp.models.loss.token_losses", None)
    evaluate(project, replies=3, seed=1)
    assert snapshot(project.parent / "run" / "eval") == before
    monkeypatch.undo()
    evaluate(project, replies=3, seed=2)
    assert written(project) != written(evaluated)


def test_a_killed_evaluation_goes_on(evaluated: Path, project: Path) -> None:
    """As after a kill: the first lines of what was kept, the last of them cut off."""
    folder = project.parent / "run" / "eval"
    folder.mkdir()
    for name in ("losses.jsonl", "replies.jsonl"):
        whole = (evaluated.parent / "run" / "eval" / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / name).write_text("".join(whole[: len(whole) // 2]) + whole[-1][:9], encoding="utf-8")
    evaluate(project, replies=3, seed=1)
    assert written(project) == written(evaluated)


def test_an_adapter_without_its_merged_model_is_measured_too(evaluated: Path, project: Path) -> None:
    shutil.rmtree(project.parent / "run" / "merged")
    results = evaluate(project, only=["identity", "retention"])
    merged = read_json(evaluated.parent / "run" / "eval" / "results.json")
    for key in ("identity",):
        loss, other = (r["sides"]["tuned"][key]["all"]["loss"]["value"] for r in (results, merged))
        assert loss == pytest.approx(other, abs=1e-3)
    assert "voice" not in results["sides"]["tuned"]


def test_one_model_in_memory_at_a_time_gives_the_same_figures(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = (Turn("other", "Name a colour."), Turn("plain", "Blue is a colour."))
    scenes = [Scene("own-reply-1", ("plain", "other"), turns)]  # the tiny base's own replies never end
    monkeypatch.setattr("mrp.evaluate.evaluation._Evaluation._plain_scenes", lambda _: scenes)
    found = []
    for apart in (False, True):
        monkeypatch.setattr("mrp.evaluate.evaluation._Evaluation._apart", apart)
        results = evaluate(project, only=["retention"], kept=tmp_path / str(apart))
        found.append(results["sides"]["tuned"]["retention"])
    assert found[0] == found[1] and found[0]["replies"] == 1
    assert not list((project.parent / "run").glob("tmp*"))


def test_the_command_tells_what_it_found_and_where(project: Path) -> None:
    done = mrp("eval", project, "--only", "identity", "--lines", 2, "--json", "--seed", 5)
    assert done.code == 0, done.err
    assert Path(done.json["paths"]["page"]).is_file() and done.json["seed"] == 5
    assert done.json["command"] == f"mrp eval {project} --lines 2 --only identity --seed 5"
    told = mrp("eval", project.parent / "run", "--only", "identity", "--lines", 2)
    assert told.code == 0 and "nats a token" in told.out and "report.html" in told.out


def test_the_model_card_says_what_was_found_until_the_run_is_trained_anew(project: Path) -> None:
    from mrp.evaluate.findings import findings_of
    from mrp.files import write_json
    from mrp.models.model_card import facts_of, model_card

    run = load_run(project)
    assert findings_of(run) == []
    evaluate(project, only=["identity"], lines=2)
    found = findings_of(run)
    card = model_card(facts_of("x", run.merged, run.cast, run), [])
    assert found and all(f"- {text}" in card for text in found)
    write_json(run.record, read_json(run.record) | {"fingerprint": "trained anew"})
    assert findings_of(run) == [] and "mrp eval" not in model_card(facts_of("x", run.merged, run.cast, run), [])


def test_ctrl_c_ends_it_and_the_same_command_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mrp.play.embedded import TransformersEngine
    from mrp.play.engine import Request

    calls = []

    def interrupted(self: Any, request: Request) -> Any:
        calls.append(request)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return stream(self, request)

    stream = TransformersEngine.stream
    monkeypatch.setattr(TransformersEngine, "stream", interrupted)
    arguments = ("eval", project, "--only", "questions", "--threads", 1)
    stopped = mrp(*arguments)
    assert stopped.code == 130 and "what is done is kept" in stopped.err
    assert f"mrp eval {project} --only questions" in stopped.err
    done, before = mrp(*arguments), len(calls)
    assert done.code == 0
    kept = (project.parent / "run" / "eval" / "replies.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) == before - 1  # nothing was asked twice but the one that was cut off


# -- bad input -----------------------------------------------------------------------------------------------------


def test_without_held_out_lines(project: Path) -> None:
    change_yaml(project, data__held_out=0)
    run_all(load_run(project))
    fails(mrp("eval", project), 2, "no line of any character is held out", "held-out.jsonl", "data.held_out")


def test_with_one_character(project: Path) -> None:
    import yaml

    cast = project.parent / "cast.yaml"
    value = yaml.safe_load(cast.read_text(encoding="utf-8"))
    cast.write_text(yaml.safe_dump(value | {"characters": value["characters"][:1]}), encoding="utf-8")
    fails(mrp("eval", project), 2, "one character", "cast.yaml", "second character")


def test_without_a_run_data_or_model(tmp_path: Path, tiny_base: Path, finished: Path) -> None:
    fails(mrp("eval", tmp_path / "nothing"), 2, "nothing")
    fails(mrp("eval", tiny_base), 2, "a model's folder", "name the run file")
    run_file = write_project(tmp_path / "fresh", tiny_base)
    fails(mrp("eval", run_file), 2, "no data is built", "mrp run")
    fails(mrp("eval", finished, "--only", "voices"), 2, "no part", "did you mean 'voice'?")
    from mrp.data.build import build_data

    build_data(load_run(run_file))
    fails(mrp("eval", run_file), 2, "nothing")


def test_data_built_anew_after_training_is_refused(project: Path) -> None:
    rows = [
        {"turns": [{"speaker": "other", "text": f"Why {k}?"}, {"speaker": "bajie", "text": f"Because {k}, oof!"}]}
        for k in range(9)
    ]
    write_rows(project.parent / "bajie.jsonl", rows)
    from mrp.data.build import build_data

    build_data(load_run(project))
    with pytest.raises(InputError, match="not what the model was trained with"):
        evaluate(project)


def test_results_are_json_for_other_programs(evaluated: Path) -> None:
    text = (evaluated.parent / "run" / "eval" / "results.json").read_text(encoding="utf-8")
    assert "NaN" not in text and json.loads(text)["version"] == 1
