"""Who speaks next, by each strategy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from scripted import CAST, TEMPLATE, prompt_text, scripted

from mrp.dialogue import Turn
from mrp.play.director import Choice, choose
from mrp.play.scene import Stage
from mrp.play.scene_plan import ScenePlan

ALL = ["tang", "wukong", "bajie"]


def stage_after(*turns: Turn, **plan: Any) -> Stage:
    stage = Stage(scripted(CAST), ScenePlan(**({"participants": ALL} | plan)))
    for turn in turns:
        stage.apply(turn.row())
    return stage


def test_round_robin_goes_round_and_takes_in_who_enters() -> None:
    stage = stage_after(director="round-robin", participants=["tang", "wukong"])
    order = []
    for k in range(7):
        if k == 3:
            stage.enter("bajie")
        choice = choose(stage)
        assert choice is not None
        order.append(choice.speaker)
        stage.say(choice.speaker, "Hm.")
    assert order == ["tang", "wukong", "tang", "bajie", "wukong", "tang", "bajie"]


@pytest.mark.parametrize(
    ("text", "speaker"),
    [
        ("What do you say, Pigsy?", "bajie"),
        ("Pigsy told me, great monkey king!", "wukong"),
        ("Tang Sanzang asks you, Zhu Bajie.", "bajie"),
    ],
)
def test_natural_gives_the_word_to_whom_the_line_ends_with(text: str, speaker: str) -> None:
    assert choose(stage_after(Turn("tang", text))) == Choice(speaker, "was mentioned")


def test_natural_draws_by_talkativeness_never_the_last_speaker_and_the_same_for_a_seed() -> None:
    def drawn(seed: int) -> str:
        stage = stage_after(Turn("tang", "Hm."), seed=seed, talkativeness={"wukong": 0.9, "bajie": 0.1})
        choice = choose(stage)
        assert choice is not None
        assert choose(stage) == choice
        return choice.speaker

    counts = Counter(drawn(seed) for seed in range(200))
    assert counts["tang"] == 0
    assert counts["wukong"] > 2 * counts["bajie"] > 0


def test_a_characters_own_talkativeness_counts_unless_the_scene_says_another() -> None:
    own = {"wukong": 1.0, "bajie": 0.0}
    cast = CAST.model_copy(
        update={"characters": [c.model_copy(update={"talkativeness": own.get(c.id, 0.5)}) for c in CAST.characters]}
    )

    def drawn(**plan: Any) -> set[str]:
        chosen = set()
        for seed in range(30):
            stage = Stage(scripted(cast), ScenePlan(participants=ALL, seed=seed, **plan))
            stage.say("tang", "Hm.")
            choice = choose(stage)
            assert choice is not None
            chosen.add(choice.speaker)
        return chosen

    assert drawn() == {"wukong"}
    assert drawn(talkativeness={"bajie": 0.9, "wukong": 0.0}) == {"bajie"}


def test_talkativeness_of_nobody_is_no_fault() -> None:
    stage = stage_after(Turn("tang", "Hm."), talkativeness=dict.fromkeys(ALL, 0.0))
    choice = choose(stage)
    assert choice is not None and choice.speaker != "tang"


def test_the_model_scores_the_names_after_one_shared_prompt() -> None:
    stage = stage_after(Turn("tang", "Who ate the bun?"), director="model")
    engine = stage.player.engine
    engine.scores = [[[-3.0, -1.0], [-0.5, -0.5]]]  # type: ignore[attr-defined]
    assert choose(stage) == Choice("bajie", "the model: 95%")
    (tails,) = engine.asked  # type: ignore[attr-defined]
    assert [TEMPLATE.tokenizer.decode(tail) for tail in tails] == ["Sun Wukong<|im_end|>", "Zhu Bajie<|im_end|>"]
    asked = prompt_text(stage.player)  # type: ignore[arg-type]
    assert "Tang Sanzang: Who ate the bun?" in asked and asked.endswith("<|im_start|>assistant\n")
    assert engine.voices == [None]  # type: ignore[attr-defined]


def test_one_alone_speaks_and_manual_leaves_it_to_a_person() -> None:
    assert choose(stage_after(Turn("tang", "Hm."), participants=["tang"])) == Choice("tang", "nobody else can")
    assert choose(stage_after(director="manual")) is None
