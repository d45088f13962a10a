"""A judge's answer is what was asked for, or it is nothing."""

from __future__ import annotations

import json

import pytest
from loopback_judge import NONSENSE, choice, marks

from mrp.judge.rubric import IDS, RUBRIC
from mrp.judge.verdicts import NoVerdict, read_choice, read_scores


@pytest.mark.parametrize("text", ["{}", " \n{}\n", "```json\n{}\n```", "```\n{}\n```", "<think>A? No.</think>\n{}"])
def test_the_object_may_stand_in_a_fence_or_after_thoughts(text: str) -> None:
    assert read_choice(text.replace("{}", choice("B"))) == "B"


@pytest.mark.parametrize(
    "text",
    [
        "",
        NONSENSE,
        "A",
        "[]",
        "null",
        '"A"',
        choice("C"),
        choice("a"),
        '{"better": "A"}',
        '{"why": 1, "better": "A"}',
        '{"why": "", "better": ["A"]}',
        '{"why": "", "better": "A", "score": 5}',
        '{"why": "", "better": "A", "better": "B"}',
        f"The better one: {choice('A')}",
        f"{choice('A')}\n{choice('B')}",
        "[" * 100_000,
    ],
)
def test_whatever_else_is_no_choice(text: str) -> None:
    with pytest.raises(NoVerdict) as caught:
        read_choice(text)
    assert str(caught.value)


def test_marks_are_whole_numbers_for_exactly_the_dimensions_asked_for() -> None:
    assert read_scores(marks(4)) == dict.fromkeys(IDS, 4)
    wrong: list[object] = [0, 6, 3.5, "4", True, None, [4]]
    for mark in wrong:
        with pytest.raises(NoVerdict, match="voice"):
            read_scores(json.dumps({"why": "", "scores": dict.fromkeys(IDS, 3) | {"voice": mark}}))
    for scores in ({**dict.fromkeys(IDS, 3), "charm": 5}, {}, [], dict.fromkeys(IDS[1:], 3)):
        with pytest.raises(NoVerdict, match="exactly"):
            read_scores(json.dumps({"why": "", "scores": scores}))


def test_both_languages_ask_for_the_same_dimensions() -> None:
    assert tuple(d.id for d in RUBRIC["zh"]) == tuple(d.id for d in RUBRIC["en"]) == IDS
    assert all(d.asks and d.low and d.high for own in RUBRIC.values() for d in own)
