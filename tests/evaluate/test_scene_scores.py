"""Scenes of several: figures by hand, plans that go round the cast, and what is kept is not played again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")

from scripted import CAST, END, TEMPLATE, scripted
from test_voice import PHRASES, line_of, text_of

from mrp.evaluate.kept import Kept
from mrp.evaluate.scenes import play_scene, scene_figures, scene_key, scene_plans
from mrp.evaluate.voice import Voices

IDS = ["wukong", "bajie", "tang"]


@pytest.fixture(scope="module")
def voices() -> Voices:
    return Voices([line_of(who, k) for who in PHRASES for k in range(30)], CAST)


def said(who: str, number: int, **more: Any) -> dict[str, Any]:
    return {"speaker": who, "text": text_of(who, 200 + number), "tokens": 9, **more}


def test_figures_by_hand(voices: Voices) -> None:
    """First scene even (two turns each, one of Bajie's cut by the guard), the second Wukong's alone but one silence."""
    even = [said(who, k) for k in range(2) for who in IDS]
    even[1]["guarded"] = True
    his = [said("wukong", k) for k in range(5)] + [{"silent": "tang", "tokens": 0}]
    plans = scene_plans(CAST, 2, 6, seed=0)
    found = scene_figures(plans, [even, his, []][:2], voices, CAST, seed=0)
    assert found and found["scenes"] == 2 and found["turns"] == 12
    own = found["characters"]
    assert own["bajie"]["guard"]["value"] == 0.5 and own["wukong"]["guard"]["value"] == 0
    assert found["all"]["guard"]["value"] == pytest.approx(0.5 / 3, abs=1e-6)
    assert found["all"]["silent"]["value"] == pytest.approx(1 / 9, abs=1e-6)  # a third of Tang's turns
    assert found["all"]["passed"]["value"] == 0
    # even: 0; the second: 5/6, 0 and 1/6 against a third each, so half of a sum of one
    assert found["all"]["uneven"]["value"] == 0.25
    assert 0 < found["all"]["uneven_by_chance"] < found["all"]["uneven"]["value"]
    assert own["wukong"]["share"]["value"] == 1.75 and own["bajie"]["share"]["value"] == 0.5
    assert own["wukong"]["own_voice"]["value"] == 1
    assert own["tang"]["own_voice"]["value"] == pytest.approx(2 / 3, abs=1e-6)


def test_a_planted_confusion_and_a_line_past_the_guard_are_seen(voices: Voices) -> None:
    events = [said("wukong", 1) | {"text": text_of("bajie", 300)}, said("bajie", 2) | {"text": "Oof!\nTang Sanzang: I"}]
    found = scene_figures(scene_plans(CAST, 1, 6, 0), [events], voices, CAST, seed=0)
    assert found and found["characters"]["wukong"]["own_voice"]["value"] == 0
    assert found["characters"]["bajie"]["passed"]["value"] == 1 and found["characters"]["tang"]["turns"] == 0
    assert scene_figures(scene_plans(CAST, 1, 6, 0), [[]], voices, CAST, seed=0) is None


def test_a_blind_director_is_as_uneven_as_chance(voices: Voices) -> None:
    """So a director of few turns is not called unfair for what nobody could help; two who take turns are even."""
    plans = scene_plans(CAST, 60, 6, seed=0)
    draw, played = random.Random(5), []
    for plan in plans:
        speakers = [draw.choice(plan.participants)]
        while len(speakers) < 6:
            speakers.append(draw.choice([who for who in plan.participants if who != speakers[-1]]))
        played.append([said(who, k) for k, who in enumerate(speakers)])
    found = scene_figures(plans, played, voices, CAST, seed=0)
    assert found
    uneven = found["all"]["uneven"]
    assert uneven["low"] <= found["all"]["uneven_by_chance"] <= uneven["high"] and uneven["low"] > 0
    two = scene_plans(CAST, 1, 6, 0)[0].model_copy(update={"participants": ["wukong", "bajie"]})
    turns = [said(who, k) for k, who in enumerate(["wukong", "bajie"] * 3)]
    pair = scene_figures([two], [turns], voices, CAST, seed=0)
    assert pair and pair["all"]["uneven_by_chance"] == 0 == pair["all"]["uneven"]["value"]


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("Oof! Tang Sanzang: run!", 1),
        ("I told Tang Sanzang: run!", 1),
        ("Tang Sanzang runs.", 0),
        ("Tangerine: one.", 0),
    ],
)
def test_anothers_name_and_a_colon_are_seen_where_the_guard_does_not_look(
    voices: Voices, text: str, passed: int
) -> None:
    events = [said("bajie", 2) | {"text": text}]
    found = scene_figures(scene_plans(CAST, 1, 6, 0), [events], voices, CAST, seed=0)
    assert found and found["all"]["passed"]["value"] == passed


def test_groups_go_round_the_cast_and_settings_round_the_cards() -> None:
    four = CAST.model_copy(
        update={
            "scenario": "At an inn.",
            "characters": [
                *CAST.characters,
                CAST["tang"].model_copy(update={"id": "ao", "scenario": "With {{user}}."}),
            ],
        }
    )
    plans = scene_plans(four, 4, 6, seed=0)
    there = [who for plan in plans for who in plan.participants]
    assert {who: there.count(who) for who in there} == dict.fromkeys([*IDS, "ao"], 3)
    assert all(len(set(plan.participants)) == 3 and plan.turns == 6 for plan in plans)
    assert {plan.scenario for plan in plans} == {"At an inn.", "With Someone."}
    assert len({plan.seed for plan in plans}) == 4 and plans == scene_plans(four, 4, 6, seed=0)


def test_a_scene_is_played_once_and_ends_at_anothers_name(tmp_path: Path, voices: Voices) -> None:
    reply = [*TEMPLATE.plain.ids("Ha!\nTang Sanzang: I\nZhu Bajie: I\nSun Wukong: I", ""), END]
    player = scripted(CAST, *[reply] * 4)
    (plan,) = scene_plans(CAST, 1, 4, seed=0)
    with Kept(tmp_path / "replies.jsonl") as kept:
        events = play_scene(player, "m", plan, kept)
        assert play_scene(player, "m", plan, kept) == events and len(player.engine.prompts) == 4
        assert scene_key(player, "other", plan) not in kept
    with Kept(tmp_path / "replies.jsonl") as kept:
        assert play_scene(player, "m", plan, kept) == events
    found = scene_figures([plan], [events], voices, CAST, seed=0)
    assert found and found["all"]["guard"]["value"] == 1 and found["all"]["passed"]["value"] == 0
    said_by = {event["speaker"]: event["text"] for event in events if "text" in event}
    assert said_by.pop("tang") == "Ha!\nTang Sanzang: I"  # his own name is nobody else's
    assert set(said_by.values()) == {"Ha!"}
