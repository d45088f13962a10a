"""`mrp judge` as a whole: on replies made by hand, a server on the loopback, and no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import fails, mrp
from judged import PEOPLE, place
from loopback_judge import NONSENSE, JudgeLLM, always_first, marks
from loopback_llm import llm
from projects import snapshot, write_project

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from mrp.files import read_json, write_json
from mrp.judge.said import Place, Said, write_said
from mrp.judge.server import JudgeServer

KEY = "sk-never-to-be-written"


def evaluated(folder: Path, *places: Place, model: str = "t") -> Path:
    """A run whose evaluation made these replies."""
    run_file = write_project(folder)
    home = folder / "run" / "eval"
    models = {"base": "b" * 64, "tuned": model * 64}
    write_said(home / "said.json", Said("en", PEOPLE, places, models, "a run", {}))
    write_json(home / "results.json", {"trained": "", "models": models})
    return run_file


def places() -> list[Place]:
    return [place(k, f"Ha! I shall go to place {k} at once.", f"Oof {k}.", who) for who in PEOPLE for k in range(4)]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("mrp.judge.command._into_report", lambda _: None)  # there is no whole evaluation here
    return evaluated(tmp_path / "one", *places())


@pytest.fixture
def server() -> Iterator[JudgeLLM]:
    with llm(JudgeLLM) as one:
        yield one


def judged(project: Path, server: JudgeLLM, *flags: object) -> Any:
    return mrp("judge", project, "--base-url", server.url + "/v1", "--model", "judge-1", *flags)


def test_it_tells_the_cost_before_and_after_and_what_it_found(project: Path, server: JudgeLLM) -> None:
    done = judged(project, server, "--price-in", 1, "--price-out", 2)
    assert done.code == 0, done.err
    before, after = done.out.index("not answered yet"), done.out.index("requests now")
    assert before < after and "at the prices given" in done.out and "cost 0.0048" in done.out  # 40 x (100 + 2 x 10)
    assert "surely prefers the replies of tuned" in done.out and "No bias by place" in done.out
    results = read_json(project.parent / "run" / "eval" / "judge.json")
    assert results["pairs"]["all"]["wins"]["value"] == 1 and results["answers"]["questions"] == 16 + 16 + 8
    assert results["cost"] == pytest.approx(40 * 120 / 1e6)
    page = (project.parent / "run" / "eval" / "judge.html").read_text(encoding="utf-8")
    text = (project.parent / "run" / "eval" / "judge.md").read_text(encoding="utf-8")
    for word in ("Sun Wukong", "judge-1", "sounds like itself", "Spearman"):
        assert word in page and word in text, word


def test_a_repeated_judging_costs_nothing_and_changes_nothing(project: Path, server: JudgeLLM, tmp_path: Path) -> None:
    judged(project, server, "--threads", 4)
    asked, before = len(server.bodies), snapshot(project.parent / "run")
    again = judged(project, server, "--threads", 1, "--json")
    assert len(server.bodies) == asked and again.json["spent"]["requests"] == 0
    assert snapshot(project.parent / "run") == before
    other = evaluated(tmp_path / "two", *places())
    judged(other, server, "--threads", 2)
    reports = ("judge.json", "judge.md", "judge.html")
    for name in reports:
        one, two = ((p.parent / "run" / "eval" / name).read_bytes() for p in (project, other))
        assert one == two.replace(str(other).encode(), str(project).encode()), name


def test_the_key_comes_from_the_environment_and_goes_nowhere(
    project: Path, server: JudgeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    done = judged(project, server, "--key-env", "MY_KEY", "--json")
    assert done.code == 0 and set(server.keys) == {f"Bearer {KEY}"}
    written = b"".join(snapshot(project.parent).values())
    assert KEY.encode() not in written and KEY not in done.out + done.err
    fails(judged(project, server, "--key-env", "NO_SUCH"), 2, "NO_SUCH is not set", "--key-env")
    server.keys.clear()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judged(project, server, "--seed", 3)
    assert set(server.keys) == {None}  # another service's key is not sent to whoever is asked


def test_limits_are_refused_before_anything_is_sent(project: Path, server: JudgeLLM) -> None:
    fails(judged(project, server, "--max-requests", 39), 2, "40 requests are more than 39", "--replies")
    fails(judged(project, server, "--max-cost", 0.0001, "--price-in", 1, "--price-out", 1), 2, "--max-cost")
    fails(judged(project, server, "--max-cost", 1), 2, "--price-in")
    dry = judged(project, server, "--dry-run", "--json", "--price-in", 1, "--price-out", 1)
    assert dry.json["plan"]["to_ask"] == 40 and dry.json["cost"] > 0
    assert not server.bodies
    assert judged(project, server, "--replies", 1, "--by", "pairs", "--json").json["places"] == 2
    assert len(server.bodies) == 4


def test_a_judge_that_prefers_the_first_is_said_to(project: Path, server: JudgeLLM) -> None:
    server.decide = always_first
    done = judged(project, server, "--by", "pairs")
    assert "does not surely prefer" in done.out and "biased by place" in done.out
    assert "100 % [" in done.out.split("biased by place")[1]


def test_nonsense_is_counted_and_told(project: Path, server: JudgeLLM) -> None:
    server.decide = lambda material: NONSENSE if "reply_A" in material else marks(3)
    done = judged(project, server, "--json")
    assert done.code == 0 and done.json["answers"]["nonsense"] == 16 == done.json["answers"]["asked_again"]
    assert done.json["pairs"]["without"] == 8 and done.json["pairs"]["all"]["wins"] is None
    findings = [line for line in done.err.splitlines() if line.startswith("- ")]
    assert findings[0].startswith("- 16 of 40 answers were no verdict")  # before what is left is looked at
    assert done.json["agreement"]["marks and voice"] is None  # all marks are equal


def test_a_judge_that_is_not_there_or_silent_is_told(project: Path, server: JudgeLLM) -> None:
    server.wait_s = 2.5
    done = judged(project, server, "--timeout", 1, "--threads", 5)
    fails(done, 1, "5 times in a row", "said nothing for 1 s", "where:")
    server.wait_s, server.statuses = 0.0, [(404, {})]
    fails(judged(project, server, "--threads", 1), 1, "404", "where:")
    assert not (project.parent / "run" / "eval" / "judge.json").exists()
    for flags, words in (
        (("--by", "stars"), ("stars", "--by", "pairs")),
        (("--against", "nowhere.yaml"), ("nowhere.yaml",)),
        (("--against", project), ("same model", "--against")),
        (("--benchmark", "../eval"), ("../eval", "--benchmark", "coser")),
        (("--benchmark", "coser", "--against", project), ("--against", "leave out")),
        (("--benchmark", "coser"), ("no replies are kept", "mrp benchmark")),
    ):
        fails(judged(project, server, *flags), 2, *words)
    fails(mrp("judge", project, "--base-url", "nowhere", "--model", "m"), 2, "nowhere", "--base-url")


def test_replies_that_are_missing_broken_or_old_are_named(project: Path, server: JudgeLLM) -> None:
    file = project.parent / "run" / "eval" / "said.json"
    write_json(project.parent / "run" / "run.json", {"fingerprint": "new"})
    fails(judged(project, server), 2, "trained anew", "mrp eval")
    (project.parent / "run" / "run.json").unlink()
    write_json(file.with_name("results.json"), {"trained": "", "models": {"base": "b" * 64, "tuned": "n" * 64}})
    fails(judged(project, server), 2, "trained anew", "mrp eval")  # `mrp eval --only lore` after another training
    for text in ('{"version": 1, "people": {}}', '{"version": 2}', "[]", "{"):
        file.write_text(text, encoding="utf-8")
        fails(judged(project, server), 2, "said.json")
    file.unlink()
    fails(judged(project, server), 2, "no replies are kept", "mrp eval")
    assert not server.bodies


def test_two_runs_are_compared_where_both_spoke(project: Path, server: JudgeLLM, tmp_path: Path) -> None:
    shorter = [place(k, f"Oh {k}.", "Oof.", "wukong") for k in range(3)] + [place(9, "Alone.", "Oof.")]
    other = evaluated(tmp_path / "two", *shorter, model="o")
    done = judged(project, server, "--against", other, "--json")
    assert done.code == 0 and done.json["places"] == 3 and done.json["sides"] == ["tuned", "other"]
    assert done.json["pairs"]["all"]["wins"]["value"] == 1 and "not compared" in done.err
    assert Path(done.json["paths"]["html"]).name.startswith("judge-against-")
    assert "the replies of one/mrp.yaml: against two/mrp.yaml they win" in done.err
    assert not any("Oof." in str(material) for material in server.asked_for)
    stranger = evaluated(tmp_path / "three", place(77, "Oh.", "Oof."), model="s")
    fails(judged(project, server, "--against", stranger), 2, "share no place", "--seed")


def test_what_a_judge_writes_stays_text(project: Path, server: JudgeLLM) -> None:
    wild = "<script>alert(1)</script> | **x** \\ud83d \x1b[31m"
    server.decide = lambda material: marks(3) if "reply" in material else f'{{"why": "{wild}", "better": "A"}}'
    done = judged(project, server)
    assert done.code == 0, done.err
    home = project.parent / "run" / "eval"
    assert "<script" not in (home / "judge.html").read_text(encoding="utf-8")
    assert "\x1b" not in (home / "judge.md").read_text(encoding="utf-8") + done.out
    server.decide = lambda _: NONSENSE + " \ud83d"  # half of an emoji, as a server that cut its text sends it
    assert judged(project, server, "--seed", 7).code == 0


def test_a_stopped_judging_keeps_its_answers(project: Path, server: JudgeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = JudgeServer.ask

    def stopped(self: JudgeServer, messages: Any) -> Any:
        if len(server.bodies) == 9:
            raise KeyboardInterrupt
        return ask(self, messages)

    with monkeypatch.context() as patch:
        patch.setattr(JudgeServer, "ask", stopped)
        done = judged(project, server, "--threads", 1)
    assert done.code == 130 and "mrp judge" in done.err
    assert not (project.parent / "run" / "eval" / "judge.json").exists()
    assert judged(project, server).code == 0 and len(server.bodies) == 40
