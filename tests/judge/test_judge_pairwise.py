"""Who wins, held against hand-made verdicts; and a judge that looks at the place alone is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from judged import place, said
from loopback_judge import JudgeLLM, always_first
from loopback_llm import llm

from mrp.evaluate.kept import Kept
from mrp.judge.asking import Ruling, ask_all
from mrp.judge.budget import Budget
from mrp.judge.pairwise import Pair, outcome, pair_figures, pair_questions
from mrp.judge.server import JudgeServer

SIDES = ("tuned", "base")


def rulings(first: str | None, second: str | None) -> tuple[Ruling, Ruling]:
    return Ruling(first), Ruling(second)


@pytest.mark.parametrize(
    ("first", "second", "result"),
    [("A", "B", "one"), ("B", "A", "other"), ("A", "A", "tie"), ("B", "B", "tie"), ("tie", "tie", "tie"),
     ("A", "tie", "tie"), ("tie", "A", "tie"), (None, "A", None), ("A", None, None), (None, None, None)],
)  # fmt: skip
def test_a_win_counts_only_if_both_orders_agree(first: str, second: str, result: str | None) -> None:
    assert outcome(rulings(first, second)) == result


def test_the_second_question_is_the_first_with_the_replies_changed() -> None:
    one = place(1, "Ha!", "Oof.")
    (pair,) = pair_questions(said(one), [one], SIDES)
    first, second = (question.messages[1]["content"] for question in pair.questions)
    assert first.replace("Ha!", "#").replace("Oof.", "Ha!").replace("#", "Oof.") != first
    assert '"reply_A": "Ha!"' in first and '"reply_B": "Oof."' in first
    assert '"reply_A": "Oof."' in second and '"reply_B": "Ha!"' in second


def test_equal_replies_are_a_tie_that_nobody_is_asked_about() -> None:
    same, alone = place(1, "Ha!", "Ha! "), place(2, "Ha!", "Oof.", said={"tuned": "Ha!"})
    pairs = pair_questions(said(same), [same, alone], SIDES)
    assert [pair.questions for pair in pairs] == [()] and outcome(()) == "tie"


def test_figures_are_those_counted_by_hand() -> None:
    verdicts = [("A", "B"), ("A", "B"), ("B", "A"), ("A", "A"), (None, "B")]
    places = [place(k, "Ha!", "Oof.", "bajie" if k == 2 else "wukong") for k in range(5)]
    found = pair_figures([Pair(p, ()) for p in places], [rulings(*v) for v in verdicts], seed=0)
    own = found["characters"]["wukong"]
    assert own["wins"]["value"] == pytest.approx(2 / 3, abs=1e-6) and own["losses"]["value"] == 0
    assert own["score"]["value"] == pytest.approx(2.5 / 3, abs=1e-6)
    assert found["characters"]["bajie"]["losses"]["value"] == 1
    # each character counts the same: wukong 2.5 of 3, bajie 0 of 1
    assert found["all"]["score"]["value"] == pytest.approx((2.5 / 3 + 0) / 2, abs=1e-6)
    assert found["all"]["wins"]["n"] == 4 and found["without"] == 1 and found["pairs"] == 5
    assert found["position"]["value"] == pytest.approx(5 / 9, abs=1e-6)  # A A . | B A | A A | B: 5 of 9
    assert found["disagree"]["value"] == pytest.approx(1 / 4)


def test_a_judge_that_prefers_the_first_gives_ties_and_its_bias_is_seen(tmp_path: Path) -> None:
    places = [place(k, f"A longer reply {k}", "Oof.") for k in range(8)]
    pairs = pair_questions(said(*places), places, SIDES)
    asked = [question for pair in pairs for question in pair.questions]
    shown = {}
    for name, decide in (("first", always_first), ("fair", None)):
        traits = {"decide": decide} if decide else {}
        with llm(JudgeLLM, **traits) as server, Kept(tmp_path / f"{name}.jsonl") as kept:
            found = ask_all(JudgeServer(server.url, "judge"), asked, kept, Budget())
        shown[name] = pair_figures(pairs, [found[k : k + 2] for k in range(0, len(found), 2)], seed=0)
    assert shown["first"]["all"]["ties"]["value"] == 1 and shown["first"]["position"]["value"] == 1
    assert shown["first"]["position"]["low"] > 0.5 and shown["first"]["disagree"]["value"] == 1
    assert shown["fair"]["all"]["wins"]["value"] == 1 and shown["fair"]["position"]["value"] == 0.5
    assert shown["fair"]["disagree"]["value"] == 0
