"""The router's figures by hand, with a planted confusion, and where there is nothing to measure."""

from __future__ import annotations

import pytest

pytest.importorskip("sklearn")

from scripted import CAST

from mrp.evaluate.routing import routing_figures
from mrp.play.route import Router
from mrp.play.route_classifier import Prompt, train_classifier

SCENES = {name: name for name in ["a", *(f"s{number}" for number in range(60))]}
ASKED = {"wukong": "How high did you leap?", "bajie": "Are the buns all gone?", "tang": "Which sutra comes next?"}


def prompts(*pairs: tuple[str, str]) -> list[Prompt]:
    return [Prompt(text, who, f"s{number}") for number, (text, who) in enumerate(pairs)]


def test_names_alone_by_hand() -> None:
    """Of four prompts three name who answers; the fourth names nobody and was for another than the one before."""
    held = [
        Prompt("Zhu Bajie, eat!", "bajie", "a"),
        Prompt("And now?", "bajie", "a"),
        Prompt("Sun Wukong, fly!", "wukong", "a"),
        Prompt("Where to?", "tang", "a"),
    ]
    found = routing_figures(
        Router(CAST), held, prompts(("x", "wukong"), ("y", "wukong"), ("z", "tang")), seed=0, scenes=SCENES
    )
    assert found and found["prompts"] == 4 and not found["classifier"]
    # right: bajie 2 of 2, wukong 1 of 1, tang 0 of 1; each character counts the same
    assert found["ways"]["auto"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    # the first prompt finds the most frequent one (wukong) answering: bajie 1 of 2, wukong 0, tang 0
    assert found["ways"]["keep"]["value"] == pytest.approx(1 / 6, abs=1e-6)
    assert found["ways"]["majority"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["best_plain"] == "majority"
    assert found["over_best"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["confusion"] == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_a_planted_confusion_is_seen() -> None:
    learnt = prompts(*((f"{text} {k}", who) for who, text in ASKED.items() for k in range(20)))
    router = Router(CAST, train_classifier(learnt))
    straight = prompts(*((f"{text} {k}", who) for k in range(20, 25) for who, text in ASKED.items()))
    swapped = [p._replace(character={"wukong": "bajie", "bajie": "wukong"}.get(p.character, "tang")) for p in straight]
    good, bad = (routing_figures(router, held, learnt, seed=0, scenes=SCENES) for held in (straight, swapped))
    assert good and bad
    assert good["ways"]["each for itself"]["value"] == 1 and good["over_best"]["low"] > 0
    assert bad["ways"]["each for itself"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert bad["confusion"][0][1] == 1 and bad["confusion"][2][2] == 1


def test_the_same_seed_gives_the_same_and_what_fits_anybody_is_left_out() -> None:
    held = prompts(("Go on!", "tang"), ("go on", "bajie"), ("Zhu Bajie?", "bajie"))
    one, same = (routing_figures(Router(CAST), held, [], seed=3, scenes=SCENES) for _ in range(2))
    assert one == same and one and (one["prompts"], one["fit_anybody"]) == (1, 2)
    assert routing_figures(Router(CAST), held[:2], [], seed=3, scenes=SCENES) is None
    assert routing_figures(Router(CAST), [], [], seed=3, scenes=SCENES) is None


def test_intervals_are_over_scenes() -> None:
    """Ten dialogues of one scene are one unit, and one unit has no interval."""
    held = [Prompt("Zhu Bajie, eat!", "bajie", f"s{k}") for k in range(10)]
    apart = routing_figures(Router(CAST), held, [], seed=0, scenes=SCENES)
    joined = routing_figures(Router(CAST), held, [], seed=0, scenes=dict.fromkeys(SCENES, "one"))
    assert apart and apart["ways"]["auto"]["units"] == 10 and apart["ways"]["auto"]["low"] is not None
    assert joined and joined["ways"]["auto"]["units"] == 1 and joined["ways"]["auto"]["low"] is None
