"""Voices: a planted confusion and a planted leak are seen, masking hides names, topics and copies are told apart."""

from __future__ import annotations

import random

import pytest
from scripted import CAST

pytest.importorskip("sklearn")

from mrp.data.samples import Sample
from mrp.dialogue import Turn
from mrp.errors import InputError
from mrp.evaluate.lines import Line
from mrp.evaluate.voice import (
    Copies,
    Said,
    Voices,
    signature_rates,
    swapped_figures,
    topic_leak,
    voice_figures,
)
from mrp.evaluate.words import MASK, Masking, first_words, signature_words, terms, words

PHRASES = {
    "wukong": ("ha", "old monkey", "smash", "staff", "cloud", "hee hee"),
    "bajie": ("oof", "hungry", "bun", "nap", "feet", "old pig"),
    "tang": ("amitabha", "peace", "mercy", "sutra", "pray", "gentle"),
}
FILLER = [
    "the",
    "road",
    "is",
    "long",
    "and",
    "we",
    "go",
    "over",
    "a",
    "hill",
    "to",
    "see",
    "what",
    "lies",
    "there",
    "before",
    "night",
]


def text_of(who: str, number: int) -> str:
    draw = random.Random(f"{who}{number}")
    return " ".join([draw.choice(PHRASES[who]), *draw.sample(FILLER, 8), draw.choice(PHRASES[who])])


def line_of(who: str, number: int, question: str = "What now?") -> Line:
    scene = f"s{number}-{who}"
    turns = (Turn("other", question), Turn(who, text_of(who, number)))
    return Line(Sample(f"{scene}@{who}", who, scene, (who, "other"), turns, (False, True), "f:1"), 1, 2)


@pytest.fixture(scope="module")
def voices() -> Voices:
    return Voices([line_of(who, k) for who in PHRASES for k in range(30)], CAST)


def said(told: dict[str, str], count: int = 12) -> list[Said]:
    """Texts of `told[who]` in the place of who."""
    return [Said(who, text_of(voice, 100 + k), f"q{k}") for who, voice in told.items() for k in range(count)]


def test_own_lines_are_consistent_and_reach_the_ceiling(voices: Voices) -> None:
    own = said({who: who for who in PHRASES})
    found = voice_figures(voices, own, seed=0, ceiling=own)
    assert found["as is"]["all"]["consistency"]["value"] > 0.95
    assert found["as is"]["all"]["of_ceiling"] == 1
    assert found["as is"]["all"]["leak"]["value"] < 0.05


def test_a_planted_confusion_is_seen(voices: Voices) -> None:
    """Labels of two characters swapped: the matrix shows the two, and the third stays."""
    found = voice_figures(voices, said({"wukong": "bajie", "bajie": "wukong", "tang": "tang"}), seed=0)["as is"]
    assert found["confusion"][0][1] > 0.9 and found["confusion"][1][0] > 0.9 and found["confusion"][2][2] > 0.9
    assert found["characters"]["wukong"]["consistency"]["value"] < 0.1


def test_a_planted_leak_is_seen(voices: Voices) -> None:
    """A third of wukong's replies are really bajie's."""
    mixed = said({"wukong": "wukong"}, 12)[:8] + said({"wukong": "bajie"}, 12)[:4]
    found = voice_figures(voices, mixed, seed=0)["as is"]["characters"]["wukong"]
    assert found["leak"]["value"] == pytest.approx(1 / 3, abs=0.01)


def test_an_empty_reply_sounds_like_nobody(voices: Voices) -> None:
    found = voice_figures(voices, [Said("tang", "", "q")], seed=0)["as is"]
    assert found["all"]["consistency"]["value"] == 0 and found["all"]["leak"]["value"] == 0
    assert found["confusion"][2] == [0, 0, 0]


def test_what_names_alone_gave_away_is_gone_when_masked() -> None:
    lines = []
    for k in range(40):
        for who, name in (("wukong", "Sun Wukong"), ("bajie", "Zhu Bajie")):
            filler = " ".join(random.Random(f"{who}{k}").sample(FILLER, 9))
            turns = (Turn("other", "?"), Turn(who, f"{name} {filler}"))
            lines.append(Line(Sample(f"{k}@{who}", who, f"{k}", (who, "other"), turns, (False, True), "f:1"), 1, 2))
    train, test = lines[:60], lines[60:]
    found = voice_figures(Voices(train, CAST), [Said(x.character, x.text, x.scene) for x in test], seed=0)
    assert found["as is"]["all"]["consistency"]["value"] == 1
    assert found["masked"]["all"]["consistency"]["value"] < 0.85


def test_told_to_be_another(voices: Voices) -> None:
    told = said({"wukong": "wukong", "bajie": "tang"}, 6)
    owners = ["tang"] * len(told)
    found = swapped_figures(voices, told, owners, seed=0)["as is"]
    assert found is not None
    assert found["as_told"]["value"] == found["as_owner"]["value"] == 0.5


def test_a_topic_that_gives_the_character_away_is_told() -> None:
    asked = {"wukong": "How is your staff?", "bajie": "Are you hungry?", "tang": "Where are the sutras?"}
    lines = [line_of(who, k, asked[who]) for who in PHRASES for k in range(10)]
    same = [line_of(who, k) for who in PHRASES for k in range(10)]
    given = topic_leak(Voices(lines, CAST), lines, seed=0)
    hidden = topic_leak(Voices(same, CAST), same, seed=0)
    assert given and given["value"] == 1
    assert hidden and hidden["value"] == pytest.approx(1 / 3)


def test_copies_are_runs_of_words_or_whole_short_lines() -> None:
    copies = Copies(["Ha! Ask any demon with a lump on its head, my friend!", "Why?"])
    assert copies.is_copied("Well: ask any demon with a lump on its shoulder")  # eight in a row
    assert not copies.is_copied("Well: ask any demon with a lump on my shoulder")  # seven
    assert copies.is_copied("why?") and not copies.is_copied("") and not copies.is_copied("demon with a lump")


def test_signature_words_and_their_rate(voices: Voices) -> None:
    assert {"hungry", "oof", "bun"} <= set(voices.signature["bajie"])
    assert not set(voices.signature["bajie"]) & {"the", "road", *voices.signature["tang"]}
    rates = signature_rates(voices, [Said("bajie", "Oof!", "1"), Said("bajie", "Hello.", "2"), Said("tang", "x", "3")])
    assert rates == {"wukong": None, "bajie": 0.5, "tang": 0.0}


def test_one_character_alone_cannot_be_told_apart() -> None:
    with pytest.raises(InputError, match="only 1 of the characters"):
        Voices([line_of("tang", k) for k in range(5)], CAST)


def test_words_of_both_languages() -> None:
    assert words("Old Monkey’s here, 老孙来也! 3") == ["old", "monkey's", "here", "老", "孙", "来", "也", "3"]
    assert first_words("Ha! Old Monkey is here.", 3) == "Ha! Old Monkey"
    assert terms("俺老孙 ha") == ["ha", "俺老", "老孙", "俺老孙"]
    texts = {"a": ["俺老孙来也", "俺老孙去也", "俺老孙在此"] * 20, "b": ["阿弥陀佛", "善哉善哉", "贫僧稽首"] * 20}
    assert "老孙" in signature_words(texts)["a"]


def test_masking_takes_whole_words_of_the_whole_cast() -> None:
    masked = Masking(CAST, {"tang": ["peace"]})("Sun Wukong, the Monkey King, saw Pigsy at peace; peaceful monkeys.")
    assert masked == f"{MASK}, the {MASK}, saw {MASK} at {MASK}; peaceful monkeys."
