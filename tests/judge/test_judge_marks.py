"""Marks and agreement, held against values reckoned by hand, and a judge that follows the classifier."""

from __future__ import annotations

import itertools

import pytest
from judged import place, said

pytest.importorskip("scipy")

from mrp.judge.agreement import agreement, correlation
from mrp.judge.asking import Ruling
from mrp.judge.marks import MEAN, REAL, mark_figures, mark_questions, mean_of
from mrp.judge.pairwise import pair_questions
from mrp.judge.rubric import IDS

SIDES = ("tuned", "base")


def marked(mark: int, **other: int) -> Ruling:
    return Ruling(dict.fromkeys(IDS, mark) | other)


def test_each_reply_is_marked_and_a_real_line_once() -> None:
    places = [place(1, "a", "b"), place(1, "c", "d", id="wukong/1#1"), place(2, "e", "f", real="Another.")]
    asked = mark_questions(said(*places), places, SIDES)
    assert [m.side for m in asked] == ["tuned", "base", REAL, "tuned", "base", "tuned", "base", REAL]


def test_means_and_paired_differences_are_those_counted_by_hand() -> None:
    places = [place(1, "a", "b", real=""), place(2, "c", "d", real=""), place(3, "e", "f", "bajie", real="")]
    asked = mark_questions(said(*places), places, SIDES)
    rulings = [marked(4), marked(2), marked(3, voice=5), marked(3), marked(1), Ruling(None, why="nonsense")]
    found = mark_figures(asked, rulings, SIDES, seed=0)
    tuned = found["sides"]["tuned"]
    assert tuned["characters"]["wukong"]["voice"]["value"] == 4.5
    assert tuned["characters"]["wukong"][MEAN]["value"] == pytest.approx((4 + (3 * 6 + 5) / 7) / 2, abs=1e-6)
    assert tuned["all"]["role"]["value"] == pytest.approx((3.5 + 1) / 2)  # each character counts the same
    assert found["sides"]["base"]["all"]["role"]["value"] == 2.5 and set(found["sides"]["base"]["characters"]) == {
        "wukong"
    }
    assert found["difference"]["voice"]["value"] == 2 and found["difference"]["voice"]["n"] == 2  # bajie has no pair
    assert found["without"] == 1 and found["replies"] == 6 and REAL not in found["sides"]


def test_correlations_are_those_of_the_definitions() -> None:
    x, y = [1, 2, 3, 4, 5, 5], [2, 1, 4, 3, 7, 9]
    found = correlation(x, y, list("abcdef"), seed=0)
    assert found
    concordant = [(a - b) * (c - d) for (a, c), (b, d) in itertools.combinations(zip(x, y, strict=True), 2)]
    untied = sum(v != 0 for v in concordant)
    kendall = (sum(v > 0 for v in concordant) - sum(v < 0 for v in concordant)) / (15 * untied) ** 0.5
    assert found["kendall"] == pytest.approx(kendall, abs=1e-6)
    ranks, other = [1, 2, 3, 4, 5.5, 5.5], [2, 1, 4, 3, 5, 6]
    mean = 3.5
    top = sum((a - mean) * (b - mean) for a, b in zip(ranks, other, strict=True))
    bottom = (sum((a - mean) ** 2 for a in ranks) * sum((b - mean) ** 2 for b in other)) ** 0.5
    assert found["spearman"] == pytest.approx(top / bottom, abs=1e-6)
    assert found["low"] < found["spearman"] <= found["high"] and (found["n"], found["units"]) == (6, 6)
    assert correlation(x, y, list("abcdef"), seed=0) == found


@pytest.mark.parametrize(("x", "y"), [([1, 2, 3, 4], [1, 2, 3, 4]), ([1] * 6, [1, 2, 3, 4, 5, 6]), ([], [])])
def test_too_few_or_equal_values_have_no_correlation(x: list[float], y: list[float]) -> None:
    assert correlation(x, y, list(map(str, range(len(x)))), seed=0) is None


def test_a_judge_that_follows_the_classifier_is_seen_to_and_one_against_it_too() -> None:
    places = [place(k, "x", "y", sounds={"tuned": k / 10, "base": (9 - k) / 10}, real="") for k in range(10)]
    asked, pairs = mark_questions(said(*places), places, SIDES), pair_questions(said(*places), places, SIDES)
    for sign in (1, -1):
        marks = [marked(3 + sign * (1 if m.place.sounds[m.side] > 0.45 else -1)) for m in asked]
        wins = ("A", "B") if sign == 1 else ("B", "A")
        won = [
            tuple(map(Ruling, wins if p.place.sounds["tuned"] > p.place.sounds["base"] else wins[::-1])) for p in pairs
        ]
        found = agreement(said(*places), pairs, won, asked, marks, SIDES, seed=0)
        for name in ("marks and voice", "pairs and voice"):
            assert found[name] and found[name]["spearman"] * sign > 0.8, name
            assert found[name]["low"] * sign > 0 and found[name]["high"] * sign > 0
        assert found["marks and gap"] is None  # one character alone
    assert mean_of(dict.fromkeys(IDS, 4)) == 4
