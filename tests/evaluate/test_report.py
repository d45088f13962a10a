"""Reports: words follow the figures, texts stay texts, matrices and curves stand on the page; drift by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from scripted import CAST, END, TEMPLATE, ScriptedEngine
from test_voice import PHRASES, line_of, text_of

from mrp.config import ChatOptions
from mrp.dialogue import Turn
from mrp.evaluate.asking import Answer
from mrp.evaluate.blocks import Compared, Curves, Matrices, Quotes, Table, Tiles, html, markdown
from mrp.evaluate.drift import drift_figures, hold_talks
from mrp.evaluate.findings import findings, number, percent, surely
from mrp.evaluate.voice import Voices
from mrp.play.reply import Player


def figure(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 9, "units": 9}


def results(accuracy: dict[str, Any], loss: dict[str, Any]) -> dict[str, Any]:
    one = {
        "chance": 0.5,
        "confusion": [[0.75, 0.25], [0.0, 1.0]],
        "all": {"loss": figure(3, 2, 4), "gap": figure(0), "accuracy": accuracy},
    }
    base = copy.deepcopy(one)
    return {
        "parts": ["identity"],
        "characters": [{"id": "a", "name": "Ann"}, {"id": "b", "name": "Bob"}],
        "counts": {"replies": 200, "without_held_out": []},
        "sides": {"base": {"identity": base}, "tuned": {"identity": one}},
        "difference": {"identity": {"loss": loss}},
    }


def test_figures_are_written_with_their_interval() -> None:
    assert (
        percent(figure(0.616, 0.5, 0.7)) == "62 % [50, 70]" and percent(figure(1)) == "100 %" and percent(None) == "-"
    )
    assert number(figure(-0.5, -0.7, 0.1), 2, sign=True) == "-0.50 [-0.70, +0.10]"
    assert [surely(figure(0.1, *x)) for x in ((0.05, 0.2), (-0.1, 0.2), (-0.3, -0.1))] == [1, 0, -1]


@pytest.mark.parametrize(
    ("accuracy", "loss", "words"),
    [
        (figure(0.9, 0.8, 0.95), figure(-0.4, -0.5, -0.3), ("lines better than", "It follows who")),
        (figure(0.6, 0.4, 0.8), figure(0.4, 0.3, 0.5), ("lines worse than", "It does not surely follow")),
        (figure(0.45, 0.51, 0.6), figure(0.1, -0.1, 0.3), ("not surely better or worse", "It follows weakly")),
    ],
)
def test_words_follow_the_figures(accuracy: dict[str, Any], loss: dict[str, Any], words: tuple[str, str]) -> None:
    found = " ".join(findings(results(accuracy, loss)))
    for text in (*words, "25 % of the unseen lines of Ann are likeliest under the identity of Bob", "chance 50 %"):
        assert text in found, text


def test_what_was_not_measured_is_not_told() -> None:
    bare = results(figure(1), figure(0)) | {"sides": {"base": {}, "tuned": {}}, "parts": ["lore"]}
    assert findings(bare) == []


def test_texts_stay_texts_on_the_page_and_in_markdown() -> None:
    evil = "<script>alert(1)</script> | x"
    for block in (
        Compared(evil, [(evil, evil)]),
        Quotes([(evil, evil, evil)]),
        Table([evil], [[evil]]),
        Tiles([(evil, evil)]),
    ):
        assert "<script" not in str(html(block))
    assert markdown(Table(["a|b"], [["c\nd"]])) == ["| a\\|b |", "| --- |", "| c d |", ""]


def test_an_interval_is_never_broken_in_two() -> None:
    page = str(html(Table(["loss"], [["3.5 [3.3, 3.7]"]])))
    assert "[3.3,\u00a03.7]" in page and 'class="table whole"' in page
    assert "whole" not in str(html(Table(["what"], [["a long text"]])))


def test_matrices_and_curves_stand_on_the_page() -> None:
    matrix = Matrices(["Ann", "Bob"], [("tuned", [[0.9, 0.1], [0.0, 1.0]])], "likeliest under", "Row: who.")
    assert str(html(matrix)).count("<svg") == 1 and "| Ann | 90 | 10 |" in markdown(matrix)
    many = Matrices([f"c{k}" for k in range(20)], [("x", [[0.0] * 20] * 20)], "x", "y")
    assert markdown(many) == []
    lines = Curves([("arm", {"Ann": [(0, 4.0), (40, 3.0), (80, 3.5)], "Bob": [(0, 4.0), (80, 3.5)]})], "steps", "Loss.")
    page = str(html(lines))
    assert page.count("<svg") == 1 and "Ann" in page and "var(--c2)" in page and page == str(html(lines))
    assert "<svg" in str(html(Curves([("none", {})], "steps", "")))


def test_drift_goes_turn_by_turn_with_its_history() -> None:
    """Wukong is himself for six turns, then speaks as Bajie; Tang stays."""
    player = Player(ScriptedEngine(TEMPLATE, []), TEMPLATE, CAST, [END], ChatOptions())
    seen: list[list[str]] = []

    def answer(asks: Any) -> list[Answer]:
        seen.append([" / ".join(m.text for m in ask.messages[1:]) for ask in asks])
        number = len(seen) - 1
        last = number == 12
        said = {
            "wukong": "I am Zhu Bajie." if last else text_of("wukong" if number < 6 else "bajie", 200 + number),
            "tang": "I am Tang Sanzang." if last else text_of("tang", 200 + number),
        }
        return [Answer(said[ask.character], 5, False, False) for ask in asks]

    talks = hold_talks(player, ["wukong", "tang"], ["Q1?", "Q2?"], 12, 0, answer)
    assert [len(t.replies) for t in talks] == [12, 12] and len(seen) == 13
    assert seen[2][0].startswith("Q1? / ") and "/ Q2? /" in seen[2][0] and seen[2][0].endswith("/ Q1?")
    assert talks[0].turns[0] == Turn("other", "Q1?")
    voices = Voices([line_of(who, k) for who in PHRASES for k in range(30)], CAST)
    found = drift_figures(talks, voices, CAST, seed=0)
    assert found and found["early"]["value"] == 1 and found["late"]["value"] == 0.5
    assert found["change"]["value"] == -0.5 and found["still_knows"]["value"] == 0.5 and found["turns"] == 12
    assert found["by_turn"][0] == 1 and found["by_turn"][-1] == 0.5
    assert drift_figures([], voices, CAST, 0) is None


@pytest.mark.parametrize("name", ["shakespeare/orders.yaml", "shakespeare/parts.yaml", "pilgrims/parts.yaml"])
def test_the_example_experiments_are_experiments(name: str) -> None:
    from mrp.evaluate.compare import read_experiment

    experiment, trials, _ = read_experiment(Path(__file__).parents[2] / "examples" / name)
    assert len(trials) == len(experiment.arms) * len(experiment.seeds) >= 6
