"""What `mrp eval` leaves for a judge, and that its report takes the judge's words in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import mrp
from loopback_judge import JudgeLLM
from loopback_llm import llm
from projects import PEOPLE, write_project

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from mrp.config import load_run
from mrp.data.manifest import HELD_OUT
from mrp.evaluate.evaluation import evaluate
from mrp.evaluate.lines import read_lines
from mrp.files import read_json
from mrp.judge.said import read_said
from mrp.pipeline import run_all


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MRP_HOME", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("judged") / "project"
        run_file = write_project(folder, tiny_base, data={"held_out": 0.34}, chat={"max_new_tokens": 6})
        run_all(load_run(run_file))
        evaluate(run_file, replies=3, seed=1, only=["identity", "voice"], lines=2)
        yield run_file


def test_each_reply_is_kept_in_its_place_with_what_a_judge_must_know(evaluated: Path) -> None:
    run = load_run(evaluated)
    home = run.folder / "eval"
    said, results = read_said(home / "said.json", ""), read_json(home / "results.json")
    lines = {line.id: line for line in read_lines(run.data / HELD_OUT, run.cast)}
    assert len(said.places) == 3 * len(PEOPLE) and len({place.id for place in said.places}) == len(said.places)
    for place in said.places:
        line = lines[place.id.partition("#")[0]]
        assert (place.real, place.unit, place.character) == (line.text, line.scene, line.character)
        assert place.before[-1][1] == line.question and set(place.said) == set(place.sounds) == {"base", "tuned"}
    for who, person in said.people.items():
        assert person.persona == f"You are {PEOPLE[who]}." and person.lines
        assert not {line.text for line in lines.values()} & set(person.lines)  # held-out lines are no examples
    assert said.models == results["models"] and set(said.gaps) == set(PEOPLE)
    shown = {(s["character"], s["question"], s["tuned"]) for s in results["samples"]}
    assert shown <= {(p.character, p.before[-1][1], p.said["tuned"]) for p in said.places}


def test_the_report_takes_in_what_a_judge_said_as_long_as_it_is_about_these_replies(evaluated: Path) -> None:
    home = load_run(evaluated).folder / "eval"
    with llm(JudgeLLM) as server:
        done = mrp("judge", evaluated, "--base-url", server.url, "--model", "judge-1", "--json")
    assert done.code == 0, done.err
    for name in ("report.md", "report.html"):
        assert "What a judge says" in (home / name).read_text(encoding="utf-8")
    with_judge = (home / "report.md").read_bytes()
    evaluate(evaluated, replies=3, seed=1, only=["identity", "voice"], lines=2)
    assert (home / "report.md").read_bytes() == with_judge
    evaluate(evaluated, replies=3, seed=2, only=["identity", "voice"], lines=2)
    assert "What a judge says" not in (home / "report.md").read_text(encoding="utf-8")
