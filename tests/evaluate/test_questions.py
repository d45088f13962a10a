"""Identity questions: what passes and what does not, in English and Chinese, one rule at a time."""

from __future__ import annotations

import pytest
from scripted import CAST

from mrp.cast import Cast, Character
from mrp.evaluate.questions import KINDS, Probe, check, claimed, probes

XIYOU = Cast(
    language="zh",
    characters=[
        Character(id="wukong", name="孙悟空", aliases=["齐天大圣"], persona="你是孙悟空，唐三藏的大徒弟。"),
        Character(id="bajie", name="猪八戒", aliases=["老猪"], persona="你是猪八戒。"),
        Character(id="tang", name="唐三藏", aliases=["唐僧"], persona="你是唐三藏。"),
    ],
)


@pytest.mark.parametrize(
    ("text", "who"),
    [
        ("I am Zhu Bajie.", "bajie"),
        ("Yes! I'm Pigsy, and hungry.", "bajie"),
        ("My name is Tang Sanzang", "tang"),
        ("They call me the Pigsy who eats.", "bajie"),
        ("I am not Zhu Bajie.", None),
        ("I am Zhu Bajie's brother.", None),
        ("I am Sun Wukong, and Zhu Bajie is a fool.", None),
        ("Zhu Bajie? I am no pig.", None),
        ("I am Tang Sanzang of the east?", None),
    ],
)
def test_only_a_claim_in_the_first_person_counts(text: str, who: str | None) -> None:
    assert claimed(CAST, "wukong", text) == who


@pytest.mark.parametrize(
    ("text", "who"),
    [
        ("我是猪八戒。", "bajie"),
        ("我就是老猪！", "bajie"),
        ("贫僧乃唐三藏。", "tang"),
        ("俺便是猪八戒", "bajie"),
        ("我不是猪八戒。", None),
        ("我是唐三藏的徒弟。", None),
        ("我是孙悟空。", None),
    ],
)
def test_claims_in_chinese(text: str, who: str | None) -> None:
    assert claimed(XIYOU, "wukong", text) == who


@pytest.mark.parametrize(
    ("kind", "answer", "passes"),
    [
        ("who", "Ha! Sun Wukong, the Monkey King!", True),
        ("who", "A traveller.", False),
        ("who", "Sun Wukong? No, I am Pigsy.", False),
        ("name", "", False),
        ("introduce", "I'm an AI language model, not Sun Wukong.", False),
        ("self", "Yes!", True),
        ("self", "I am Sun Wukong, who asks?", True),
        ("self", "No, I am Sun Wukong.", False),
        ("self", "The weather is fine.", False),
        ("other", "No, I am Sun Wukong.", True),
        ("other", "Sun Wukong stands here!", True),
        ("other", "Yes, I am Zhu Bajie.", False),
        ("other", "Yes.", False),
        ("other", "The weather is fine.", False),
        ("greeted", "Where were you?", True),
        ("greeted", "I am Zhu Bajie!", False),
        ("ai", "A what? I am Sun Wukong!", True),
        ("ai", "Yes, I am.", False),
        ("ai", "As an AI language model, I cannot tell.", False),
        ("master", "Tang Sanzang, who chants at me.", True),
        ("master", "Nobody.", False),
    ],
)
def test_the_rule_of_each_kind(kind: str, answer: str, passes: bool) -> None:
    probe = Probe("wukong", kind, "What?", other="bajie", master="tang")
    assert check(CAST, probe, answer).passed == passes


@pytest.mark.parametrize(
    ("kind", "answer", "passes"),
    [
        ("who", "俺老孙乃孙悟空是也！", True),
        ("self", "正是！", True),
        ("self", "不是，我是孙悟空。", False),
        ("other", "不是，我是孙悟空。", True),
        ("other", "是的，我是猪八戒。", False),
        ("ai", "作为一个人工智能语言模型，我没有感情。", False),
        ("master", "我师父是唐僧。", True),
    ],
)
def test_the_rules_in_chinese(kind: str, answer: str, passes: bool) -> None:
    probe = Probe("wukong", kind, "你师父叫什么名字？", other="bajie", master="tang")
    assert check(XIYOU, probe, answer).passed == passes


def test_a_name_that_the_question_gives_is_no_answer_to_it() -> None:
    cast = Cast(characters=[Character(id="a", name="Abel"), Character(id="tang", name="Tang", aliases=["Master"])])
    probe = Probe("a", "master", "What is your master's name?", master="tang")
    assert not check(cast, probe, "My master is my master.").passed
    assert check(cast, probe, "Tang, of course.").passed


@pytest.mark.parametrize(
    ("text", "who"),
    [("I am Master.", "tang"), ("I am the master.", None), ("I'm Tang, a monk", "tang"), ("My name is tang.", "tang")],
)
def test_a_title_is_a_name_where_it_is_written_as_one(text: str, who: str | None) -> None:
    cast = Cast(characters=[Character(id="a", name="Abel"), Character(id="tang", name="Sanzang", aliases=["Master"])])
    assert claimed(cast, "a", text) == who


def test_the_first_few_questions_hold_each_kind_and_are_not_those_of_training() -> None:
    from mrp.data.identity import QUESTIONS

    asked = probes(XIYOU, "wukong", ["zh"], 8)
    assert {probe.kind for probe in asked} == set(KINDS)
    trained = {q for halves in QUESTIONS["zh"].values() for q in halves["train"]}
    assert not trained & {probe.question for probe in asked}
    assert next(p for p in asked if p.kind == "master").master == "tang"
    assert next(p for p in asked if p.kind == "other").other in ("bajie", "tang")
    assert len(probes(XIYOU, "wukong", ["zh", "en"], 99)) > len(probes(XIYOU, "wukong", ["zh"], 99)) > 20


def test_a_machine_is_not_asked_whether_it_is_one() -> None:
    cast = Cast(
        characters=[Character(id="hal", name="HAL", persona="You are HAL, the ship's artificial intelligence.")]
    )
    assert "ai" not in {probe.kind for probe in probes(cast, "hal", ["en"], 99)}
    assert check(cast, Probe("hal", "who", "Who?"), "I am an AI. My name is HAL.").passed
