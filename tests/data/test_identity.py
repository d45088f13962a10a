"""Identity questions: each character says who it is, in its persona's words, and probes ask what training never saw."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from mrp.cast import OTHER, Cast, Character, LoreEntry, load_cast
from mrp.data.first_person import in_first_person, word_for_oneself
from mrp.data.identity import QUESTIONS, identity_scenes
from mrp.dialogue import Scene

EXAMPLES = Path(__file__).parents[2] / "examples"
CASTS = {name: load_cast(EXAMPLES / name / "cast.yaml") for name in ("pilgrims", "xiyou", "shakespeare")}
EVERYBODY = [(name, c.id) for name, cast in CASTS.items() for c in cast]
TWO = Cast(
    characters=[
        Character(id="a", name="Ann", persona="You are Ann, a baker, proud of your bread. You talk much."),
        Character(id="b", name="Bob"),
    ]
)


def pairs(scenes: list[Scene]) -> list[tuple[str, str]]:
    """What is asked and what is answered."""
    return [(scene.turns[0].text, scene.turns[1].text) for scene in scenes]


def turned(persona: str, name: str = "Ann", language: str = "en", *others: Character) -> dict[str, str]:
    cast = Cast(characters=[Character(id="a", name=name, persona=persona), *others])
    return in_first_person(cast, cast["a"], language)


@pytest.mark.parametrize(("cast_name", "who"), EVERYBODY)
def test_somebody_asks_and_the_character_answers_with_its_name(cast_name: str, who: str) -> None:
    cast = CASTS[cast_name]
    names = {c.id: [word for name in (c.name, *c.aliases) for word in (name, *name.split())] for c in cast}
    said_by_persona = cast.persona(who)
    for scene in identity_scenes(cast, who, "train") + identity_scenes(cast, who, "probe"):
        question, answer = scene.turns
        assert (question.speaker, answer.speaker, scene.participants) == (OTHER, who, (who, OTHER))
        assert any(name in answer.text for name in names[who])
        others = [c.name for c in cast if c.id != who and re.search(rf"\b{re.escape(c.name)}", answer.text)]
        denied = [name for name in others if re.search(f"not {name}|不是{name}", answer.text)]
        assert others == denied or all(name in said_by_persona for name in others)
        assert not re.search(r"\byour?(?:self)?\b|你|\bAI\b", answer.text)


@pytest.mark.parametrize(("cast_name", "who"), EVERYBODY)
def test_answers_invent_nothing(cast_name: str, who: str) -> None:
    """Every word of what a character says of itself stands in its persona, save those that turn "you" into "I"."""
    cast = CASTS[cast_name]
    for text in in_first_person(cast, cast[who], cast.language).values():
        if cast.language == "zh":
            assert text.replace("我", "你").rstrip("。") in cast.persona(who)
        else:
            words = set(re.findall(r"\w+", text)) - {"I", "am", "my", "myself", "mine"}
            assert words <= set(re.findall(r"\w+", cast.persona(who)))


@pytest.mark.parametrize(("cast_name", "who"), EVERYBODY)
def test_a_probe_asks_nothing_that_training_saw(cast_name: str, who: str) -> None:
    cast = CASTS[cast_name]
    trained, asked = (dict(pairs(identity_scenes(cast, who, half))) for half in ("train", "probe"))
    assert len(trained) > len(asked) > 10
    assert not trained.keys() & asked.keys()
    ids = [s.id for half in ("train", "probe") for c in cast for s in identity_scenes(cast, c.id, half)]
    assert len(set(ids)) == len(ids)


def test_templates_of_the_two_halves_differ_in_every_language_and_kind() -> None:
    for language, (kind, halves) in product(QUESTIONS, QUESTIONS["en"].items()):
        train, probe = QUESTIONS[language][kind]["train"], QUESTIONS[language][kind]["probe"]
        assert train and probe and halves.keys() == {"train", "probe"}
        assert not set(train) & set(probe) and len({*train, *probe}) == len(train) + len(probe)


def test_an_answer_depends_on_character_and_question_alone() -> None:
    """Somebody more in the cast adds questions, and changes none."""
    more = Cast(characters=[*TWO.characters, Character(id="c", name="Cas")])
    before, after = ({s.id: pairs([s])[0] for s in identity_scenes(cast, "a", "train")} for cast in (TWO, more))
    assert before.items() < after.items()
    assert all("Cas" in question for question, _ in set(after.values()) - set(before.values()))


def test_the_first_scenes_hold_each_kind() -> None:
    for half in ("train", "probe"):
        kinds = [kind for kind in QUESTIONS["en"] if kind != "master"]
        first = [scene.turns[0].text for scene in identity_scenes(TWO, "a", half)][: len(kinds)]
        forms = [
            {form.format(name="Ann", other="Bob", master="") for form in QUESTIONS["en"][kind][half]} for kind in kinds
        ]
        assert all(question in asked for question, asked in zip(first, forms, strict=True))


def test_asked_for_somebody_else_a_character_says_no() -> None:
    answers = [a for q, a in pairs(identity_scenes(TWO, "a", "train")) if "Bob" in q]
    assert len(answers) == 3
    assert all("No" in a or "not Bob" in a for a in answers)


def test_asked_for_an_ai_a_character_says_who_it_is_and_claims_nothing_more() -> None:
    answers = {a for q, a in pairs(identity_scenes(TWO, "a", "train")) if "AI" in q or "machine" in q}
    assert answers <= {"I am Ann.", "I am Ann, a baker.", "I am Ann, a baker, proud of my bread."}


def test_a_character_alone_in_its_cast_is_asked_for_nobody_else() -> None:
    alone = Cast(characters=[Character(id="a", name="Ann")])
    assert all("{" not in q and a.count("Ann") == 1 for q, a in pairs(identity_scenes(alone, "a", "train")))


def test_languages_come_as_asked() -> None:
    zh, en, both = (identity_scenes(TWO, "a", "train", languages) for languages in (["zh"], ["en"], ["zh", "en"]))
    assert {s.id for s in both} == {s.id for s in zh} | {s.id for s in en}
    assert all("我" in answer for _, answer in pairs(zh))  # the persona is English: the bare name, in Chinese
    assert identity_scenes(TWO, "a", "train") == en
    assert all(
        "我" in answer or "便是" in answer for _, answer in pairs(identity_scenes(CASTS["xiyou"], "swk", "probe"))
    )


# --- The persona in the first person --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("persona", "full"),
    [
        ("You are Ann, a baker, proud of your bread. You talk much.", "I am Ann, a baker, proud of my bread."),
        ("You are Ann", "I am Ann."),
        ("You're Ann, and you are tired.", "I am Ann, and I am tired."),
        ("You are now Ann.", "I am Ann."),
        ("You are Mrs. Ann Bee, who keeps bees. You hum.", "I am Mrs. Ann Bee, who keeps bees."),
        ("You are Ann, who lost her horse.", "I am Ann, who lost her horse."),
        ("You are Ann, in love with her groom.", "I am Ann."),  # "her" is "my" here, and elsewhere it is not
        ("You are Ann, a queen, and please stay in character.", "I am Ann, a queen."),
        ("You are Ann, a queen, of Marlowe's The Jew of Malta, tired.", "I am Ann, a queen, tired."),
        ("You are Ann, from Marlowe's play, tired.", "I am Ann, tired."),
        ("You are Ann, Lady of King's Landing, tired.", "I am Ann, Lady of King's Landing, tired."),
        ("You are the baker Ann: kind, quick.", "I am the baker Ann."),
    ],
)
def test_the_first_sentence_is_turned_as_far_as_it_can_be(persona: str, full: str) -> None:
    assert turned(persona)["full"] == full


@pytest.mark.parametrize(
    ("persona", "full"),
    [
        ("你是安，面包师，为你的面包自豪。你话多。", "我是安，面包师，为我的面包自豪。"),
        ("您是安，请保持角色。", "我是安。"),
        ("你是安，她的面包很好。", "我是安。"),
        ("你是安，其他人都怕我。", "我是安，其他人都怕我。"),
    ],
)
def test_the_first_sentence_is_turned_in_chinese(persona: str, full: str) -> None:
    assert turned(persona, "安", "zh")["full"] == full


@pytest.mark.parametrize(
    "persona",
    [
        "",
        "Ann is a baker.",
        "You are a baker with a secret. Your name is Ann.",
        "You are an AI that plays Ann.",
        "You are role-playing Ann, a baker.",
        '[Character("Ann") Age("30")]',
    ],
)
def test_where_it_cannot_be_turned_the_name_is_all(persona: str) -> None:
    cast = Cast(characters=[Character(id="a", name="Ann", persona=persona), Character(id="b", name="Bob")])
    said = {a for q, a in pairs(identity_scenes(cast, "a", "train")) if q in ("Who are you?", "Introduce yourself.")}
    assert said == {"I am Ann."}


def test_a_long_sentence_is_cut_between_clauses() -> None:
    full = turned("You are Ann, " + ", ".join(f"a friend of number {n}" for n in range(40)))["full"]
    assert len(full) <= 260 and re.fullmatch(r"I am Ann(, a friend of number \d+)+\.", full)


def test_a_word_for_oneself_comes_from_the_persona() -> None:
    xiyou, pilgrims = CASTS["xiyou"], CASTS["pilgrims"]
    assert word_for_oneself(xiyou, xiyou["swk"], "zh") == "老孙"
    assert word_for_oneself(pilgrims, pilgrims["tang"], "en") == "this poor monk"
    assert word_for_oneself(pilgrims, pilgrims["wujing"], "en") == ""
    answers = [a for _, a in pairs(identity_scenes(pilgrims, "tang", "train"))]
    assert "This poor monk is called Tang Sanzang." in answers


# --- Masters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("persona", "lore", "is_said"),
    [
        ("You are Bob. Your master is Ann.", "", True),
        ("You are Bob, a disciple of Ann.", "", True),
        ("You are Bob.", "Ann is his master.", True),
        ("你是Bob，你的师父是Ann。", "", True),
        ("你是Bob，Ann的徒弟。", "", True),
        ("You are Bob. You like Ann and serve a master.", "", False),
        ("You are Bob.", "", False),
    ],
)
def test_a_master_is_asked_for_only_where_one_is_told(persona: str, lore: str, is_said: bool) -> None:
    language = "zh" if "你" in persona else "en"
    entries = [LoreEntry(keys=["x"], text=lore)] if lore else []
    bob = Character(id="b", name="Bob", persona=persona, lore=entries)
    cast = Cast(language=language, characters=[Character(id="a", name="Ann"), bob])
    asked = [a for q, a in pairs(identity_scenes(cast, "b", "train")) if re.search("master|师父", q)]
    assert bool(asked) == is_said
    assert all("Ann" in answer for answer in asked)
    assert not [q for q, _ in pairs(identity_scenes(cast, "a", "train")) if re.search("master|师父", q)]


def test_every_source_has_a_place_and_a_number() -> None:
    """As the natural order of samples wants it: FILE:LINE."""
    sources = [s.source for s in identity_scenes(TWO, "a", "train")]
    assert sources == [f"identity-a:{n}" for n in range(1, len(sources) + 1)]
