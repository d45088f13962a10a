"""Replies to judge, made by hand."""

from __future__ import annotations

from mrp.judge.said import Person, Place, Said

PEOPLE = {"wukong": Person("Sun Wukong", "You are Sun Wukong.", ("Ha!",)), "bajie": Person("Zhu Bajie", "You are Zhu.")}


def place(number: int, tuned: str, base: str, character: str = "wukong", **traits: object) -> Place:
    made: dict[str, object] = {
        "id": f"{character}/{number}#0",
        "unit": f"scene {number} of {character}",
        "character": character,
        "scenario": "",
        "before": (("Tang", f"Question {number}?"),),
        "real": "Ha! A real line.",
        "said": {"tuned": tuned, "base": base},
        "sounds": {"tuned": min(1.0, len(tuned) / 100), "base": min(1.0, len(base) / 100)},
    }
    return Place(**(made | traits))  # type: ignore[arg-type]


def said(*places: Place, language: str = "en") -> Said:
    return Said(language, PEOPLE, places, {"base": "b" * 64, "tuned": "t" * 64}, "a run", {"wukong": 0.3})  # type: ignore[arg-type]
