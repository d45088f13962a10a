"""Held-out replies under each identity: against hand-computed values and losses, in voices, resumed, and swapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scripted import CAST

pytest.importorskip("torch")
pytest.importorskip("scipy")

from mrp.data.samples import Sample
from mrp.data.view import opening_text
from mrp.dialogue import Turn
from mrp.evaluate.identity import Judge, Score, identity_difference, identity_figures, score_identities
from mrp.evaluate.kept import Kept
from mrp.evaluate.lines import Line, by_character, lines_of, spread
from mrp.models.load import hardware, load_model, load_tokenizer
from mrp.models.loss import make_batch, token_losses
from mrp.models.voices import new_voices
from mrp.render import ChatTemplate

IDS = [c.id for c in CAST]


def sample(who: str, number: int, *turns: tuple[str, str]) -> Sample:
    lines = tuple(Turn(speaker, text) for speaker, text in turns)
    own = tuple(turn.speaker == who for turn in lines)
    scene = f"s{number}"
    return Sample(f"{scene}@{who}", who, scene, (who, "other"), lines, own, f"f.jsonl:{number}")


SAMPLES = [
    sample("wukong", 1, ("other", "Who are you?"), ("wukong", "Ha! Old Monkey!")),
    sample(
        "bajie", 2, ("other", "Hungry?"), ("bajie", "A bun?"), ("other", "No."), ("bajie", "Oof."), ("bajie", "Why?")
    ),
    sample("tang", 3, ("tang", "Peace to you."), ("other", "And to you."), ("tang", "Amitabha.")),
]
LINES = [line for s in SAMPLES for line in lines_of(s)]


@pytest.fixture(scope="module")
def judge(tiny_base: Path) -> Judge:
    on = hardware("fp32")
    return Judge(load_model(tiny_base, on), on, "tiny", 512)


@pytest.fixture(scope="module")
def template(tiny_base: Path) -> ChatTemplate:
    return ChatTemplate(load_tokenizer(tiny_base))


def scored(judge: Judge, template: ChatTemplate, folder: Path, lines: list[Line] = LINES) -> list[Score]:
    with Kept(folder / "losses.jsonl") as kept:
        return score_identities(judge, template, lines, CAST, kept)


def score(who: str, scene: int, **nats: float) -> Score:
    line = next(lines_of(sample(who, scene, ("other", "?"), (who, "!"))))
    return Score(line, nats, 2)


def test_lines_are_replies_with_their_place() -> None:
    assert [(line.character, line.text, line.question) for line in LINES] == [
        ("wukong", "Ha! Old Monkey!", "Who are you?"),
        ("bajie", "A bun?", "Hungry?"),
        ("bajie", "Oof.\nWhy?", "No."),
        ("tang", "Peace to you.", ""),
        ("tang", "Amitabha.", "And to you."),
    ]
    assert {who: len(own) for who, own in by_character(LINES, CAST).items()} == {"wukong": 1, "bajie": 2, "tang": 2}


def test_lines_are_spread_over_scenes() -> None:
    many = [line for k in range(4) for line in lines_of(sample("tang", k, *[("other", "?"), ("tang", "!")] * 5))]
    chosen = spread(many, 4, seed=0)
    assert {line.scene for line in chosen} == {"s0", "s1", "s2", "s3"}
    assert chosen == spread(list(reversed(many)), 4, seed=0)


def test_only_the_identity_changes_in_the_context() -> None:
    own, told = (LINES[2].messages(CAST, who) for who in ("bajie", "tang"))
    assert own[1:] == told[1:] and own[0].text != told[0].text == CAST.persona("tang")
    assert [m.loss for m in own] == [False, False, False, False, True]
    asked = LINES[2].asked(CAST, "tang")
    assert [(m.role, m.text) for m in asked] == [(m.role, m.text) for m in told[:-1]]


def test_each_score_is_the_loss_of_that_reply_alone(judge: Judge, template: ChatTemplate, tmp_path: Path) -> None:
    scores = scored(judge, template, tmp_path)
    assert [s.line for s in scores] == LINES
    for s in scores:
        for who in IDS:
            opening = opening_text(CAST, "", s.line.character)
            (one,) = template.sample(s.line.messages(CAST, who), None, opening)
            expected = float(token_losses(judge.model, make_batch([[one]])).sum())
            assert s.nats[who] == pytest.approx(expected, rel=1e-4), (s.line.id, who)
            assert s.tokens == one.labelled


def test_a_killed_scoring_goes_on_and_a_second_asks_nothing(
    judge: Judge, template: ChatTemplate, tmp_path: Path
) -> None:
    whole = scored(judge, template, tmp_path / "a")
    (tmp_path / "b").mkdir()
    lines = (tmp_path / "a" / "losses.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    text = "".join(lines[:7]) + lines[7][:20]  # killed within a line
    (tmp_path / "b" / "losses.jsonl").write_text(text, encoding="utf-8")
    assert [s.nats for s in scored(judge, template, tmp_path / "b")] == [pytest.approx(s.nats, rel=1e-4) for s in whole]
    broken = Judge(None, judge.on, judge.name, judge.max_tokens)
    assert scored(broken, template, tmp_path / "a") == whole


def test_a_voice_speaks_under_its_own_identity_alone(judge: Judge, template: ChatTemplate, tmp_path: Path) -> None:
    import torch

    plain = scored(judge, template, tmp_path / "plain")
    bank = new_voices(judge.model, ["bajie"], rank=2, alpha=2, seed=0)
    try:
        for parameter in bank.parameters().values():
            torch.nn.init.constant_(parameter, 0.05)
        with_voice = Judge(judge.model, judge.on, judge.name, judge.max_tokens, bank)
        voiced = scored(with_voice, template, tmp_path / "voiced")
    finally:
        bank.remove()
    for a, b in zip(plain, voiced, strict=True):
        assert abs(a.nats["bajie"] - b.nats["bajie"]) > 1e-3
        assert {who: a.nats[who] for who in ("wukong", "tang")} == pytest.approx(
            {who: b.nats[who] for who in ("wukong", "tang")}, rel=1e-4
        )


def test_all_identities_see_the_same_turns_where_room_is_short(template: ChatTemplate) -> None:
    from mrp.evaluate.identity import _tasks

    long = sample("bajie", 9, *[("other", "Tell me of the long road west."), ("bajie", "My feet hurt so.")] * 8)
    last = list(lines_of(long))[-1]
    on = hardware("fp32")
    tasks = _tasks(Judge(None, on, "x", 120), template, last, CAST)
    tails = set()
    for task in tasks:
        ids = task.rendered.input_ids
        assert len(ids) <= 120 and task.rendered.labelled
        text = str(template.tokenizer.decode(ids))
        tails.add(text[text.index("Tell me") :])
    assert len(tails) == 1 and len(tasks) == 3
    assert _tasks(Judge(None, on, "x", 24), template, last, CAST) == []  # not even alone


def test_figures_against_hand_computed_values() -> None:
    scores = [
        score("wukong", 1, wukong=2, bajie=4, tang=6),
        score("wukong", 2, wukong=4, bajie=2, tang=6),
        score("bajie", 3, wukong=8, bajie=8, tang=10),
        score("tang", 4, wukong=9, bajie=9, tang=3),
    ]
    found = identity_figures(scores, CAST, seed=0)
    assert found["confusion"] == [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    assert found["characters"]["wukong"]["loss"]["value"] == 1.5
    assert found["characters"]["wukong"]["gap"]["value"] == ((5 - 2) / 2 + (4 - 4) / 2) / 2
    assert found["all"]["accuracy"]["value"] == pytest.approx((0.5 + 0.5 + 1) / 3, abs=1e-6)
    assert found["all"]["loss"]["value"] == pytest.approx((1.5 + 4 + 1.5) / 3)
    assert found["chance"] == 1 / 3


def test_a_planted_confusion_is_seen() -> None:
    """A model for which two characters have changed places."""
    swapped = {"wukong": "bajie", "bajie": "wukong", "tang": "tang"}
    scores: list[Any] = [
        score(who, k, **{b: 1.0 if b == swapped[who] else 2.0 for b in IDS}) for k, who in enumerate(IDS * 5)
    ]
    found = identity_figures(scores, CAST, seed=0)
    assert found["confusion"] == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert found["characters"]["wukong"]["accuracy"]["value"] == 0 < found["characters"]["wukong"]["accuracy"]["high"]
    assert found["characters"]["wukong"]["gap"]["value"] < 0 < found["characters"]["tang"]["gap"]["value"]


def test_the_difference_of_two_models_is_paired() -> None:
    worse = [score("tang", k, wukong=1, bajie=9, tang=8 + k % 3) for k in range(9)]
    better = [score("tang", k, wukong=9, bajie=9, tang=6 + k % 3) for k in range(9)]
    found = identity_difference(better, worse, seed=0)
    assert found["loss"]["value"] == found["loss"]["low"] == found["loss"]["high"] == -1
    assert found["accuracy"]["value"] == 1
