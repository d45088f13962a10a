"""Law 1: a speaker is a fact, a role is a view; and what play shows is what training saw."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mrp.data
from mrp.cast import OTHER, Cast, Character
from mrp.data.view import Message, opening_text, system_text, view, view_for_reply
from mrp.dialogue import Turn

CAST = Cast(
    characters=[
        Character(id="tang", name="Tang Sanzang", persona="You are Tang, a monk."),
        Character(id="wukong", name="Sun Wukong"),
        Character(id="bajie", name="Zhu Bajie"),
    ]
)
ZH = Cast(
    language="zh",
    scenario="夜里。",
    characters=[Character(id="tsz", name="唐三藏"), Character(id="swk", name="孙悟空")],
)


def see(*turns: Turn, head: tuple[str, ...], me: str = "tang", cast: Cast = CAST, scenario: str = "") -> list[str]:
    """The training view as "role|text" lines, without the system message."""
    own = [t.speaker == me for t in turns]
    return [f"{m.role}|{m.text}" for m in view(turns, own, head, me, cast, scenario)[1:]]


def test_own_lines_are_assistant_with_loss_and_others_are_user() -> None:
    turns = (Turn(OTHER, "Who are you?"), Turn("tang", "A monk."))
    assert view(turns, (False, True), ("tang", OTHER), "tang", CAST) == [
        Message("system", "You are Tang, a monk.", False),
        Message("user", "Who are you?", False),
        Message("assistant", "A monk.", True),
    ]


def test_one_scene_teaches_every_character_in_it() -> None:
    turns = (Turn("tang", "Come."), Turn("wukong", "Coming."), Turn("tang", "Good."))
    head = ("tang", "wukong")
    assert see(*turns, head=head, me="tang") == ["assistant|Come.", "user|Coming.", "assistant|Good."]
    assert see(*turns, head=head, me="wukong") == ["user|Come.", "assistant|Coming."]


def test_adjacent_lines_of_one_speaker_are_one_turn() -> None:
    turns = (Turn(OTHER, "a"), Turn(OTHER, "b"), Turn("tang", "c"), Turn("tang", "d"))
    assert see(*turns, head=("tang", OTHER)) == ["user|a\nb", "assistant|c\nd"]
    three = (Turn("wukong", "a"), Turn("wukong", "b"), Turn("bajie", "c"), Turn("tang", "d"))
    assert see(*three, head=("tang", "wukong", "bajie")) == [
        "user|Sun Wukong: a\nb\nZhu Bajie: c",
        "assistant|d",
    ]


def test_names_come_with_the_third_participant_and_from_then_on() -> None:
    turns = (
        Turn("wukong", "a"),
        Turn("tang", "b"),
        Turn("wukong", "c"),
        Turn("Guard", enters=True),
        Turn("wukong", "d"),
        Turn(OTHER, "e"),
        Turn("tang", "f"),
    )
    assert see(*turns, head=("tang", "wukong")) == [
        "user|a",
        "assistant|b",
        "user|c\nSun Wukong: d\nSomeone: e",
        "assistant|f",
    ]


def test_names_are_there_from_the_start_where_three_are_declared_and_two_speak() -> None:
    turns = (Turn("wukong", "a"), Turn("tang", "b"))
    assert see(*turns, head=("tang", "wukong", "Guard"))[0] == "user|Sun Wukong: a"


def test_a_character_is_shown_only_what_is_said_while_it_is_there() -> None:
    turns = (
        Turn("wukong", "before"),
        Turn("tang", enters=True),
        Turn("wukong", "a"),
        Turn("tang", "b"),
        Turn("tang", leaves=True),
        Turn("wukong", "secret"),
        Turn("bajie", "c"),
        Turn("tang", enters=True),
        Turn("bajie", "d"),
        Turn("tang", "e"),
    )
    heads = ("wukong", "bajie")
    assert see(*turns, head=heads) == ["user|Sun Wukong: a", "assistant|b", "user|Zhu Bajie: d", "assistant|e"]
    played = view_for_reply(turns[:9], heads, "tang", CAST)
    assert [m.text for m in played[1:]] == ["Sun Wukong: a", "b", "Zhu Bajie: d"]
    bystander = see(*turns, Turn("bajie", "f"), head=heads, me="bajie")
    assert bystander[0].startswith("user|before\nSun Wukong: a\nTang Sanzang: b\nSun Wukong: secret")


def test_a_speaker_heard_anew_after_an_absence_is_named_anew() -> None:
    turns = (Turn("bajie", "a"), Turn("tang", leaves=True), Turn("bajie", "b"), Turn("tang", enters=True))
    assert see(*turns, Turn("bajie", "c"), Turn("tang", "d"), head=("tang", "wukong", "bajie")) == [
        "user|Zhu Bajie: a\nZhu Bajie: c",
        "assistant|d",
    ]


def test_chinese_names_and_the_neutral_name() -> None:
    turns = (Turn("swk", "师父"), Turn(OTHER, "谁？"), Turn("tsz", "善哉。"))
    assert see(*turns, head=("tsz", "swk", OTHER), me="tsz", cast=ZH)[0] == "user|孙悟空：师父\n旁人：谁？"


def test_scene_may_open_with_the_own_line() -> None:
    turns = (Turn("tang", "I begin."), Turn(OTHER, "And I end."))
    assert see(*turns, head=("tang", OTHER)) == ["assistant|I begin."]


@pytest.mark.parametrize("masked", [0, 1])
def test_turn_is_learnt_only_if_all_its_lines_are(masked: int) -> None:
    turns = (Turn("tang", "a"), Turn("tang", "b"), Turn(OTHER, "c"), Turn("tang", "d"))
    loss = [i != masked for i in range(4)]  # true even for the line of somebody else, which is never learnt
    messages = view(turns, loss, ("tang", OTHER), "tang", CAST)
    assert [m.loss for m in messages] == [False, False, False, True]


def test_system_message_is_identity_then_scenario() -> None:
    assert system_text(CAST, "tang") == "You are Tang, a monk."
    assert system_text(CAST, "wukong", " At night. ") == "You are Sun Wukong.\n\nAt night."
    assert system_text(ZH, "tsz") == "你是唐三藏。\n\n夜里。"
    assert system_text(ZH, "tsz", "白天。") == "你是唐三藏。\n\n白天。"


def test_opening_text_is_the_scenario_or_a_neutral_line() -> None:
    assert opening_text(CAST, "At night.") == "At night."
    assert opening_text(CAST) == "(The scene begins.)"
    assert opening_text(ZH) == "夜里。"


def test_view_for_reply_where_nothing_was_said_and_after_an_own_line() -> None:
    assert [m.role for m in view_for_reply((), ("tang", OTHER), "tang", CAST)] == ["system"]
    after = view_for_reply((Turn("tang", "a"),), ("tang", OTHER), "tang", CAST)
    assert [(m.role, m.text) for m in after[1:]] == [("assistant", "a")]


def test_sample_without_an_own_line_shows_the_system_message_alone() -> None:
    assert see(Turn(OTHER, "Hello?"), head=("tang", OTHER)) == []


def test_loss_must_go_with_the_turns() -> None:
    with pytest.raises(ValueError, match="zip"):
        view((Turn("tang", "a"),), (), ("tang",), "tang", CAST)


speakers = st.sampled_from(["tang", "wukong", "bajie", "Guard", OTHER])
turns_in = st.lists(
    st.builds(Turn, speakers, st.sampled_from(["a", "b c", "d\ne"]))
    | st.builds(Turn, speakers, enters=st.just(True))
    | st.builds(Turn, speakers, leaves=st.just(True)),
    max_size=14,
)
heads = st.lists(speakers, max_size=4, unique=True)


@given(turns=turns_in, head=heads, scenario=st.sampled_from(["", "At night."]))
def test_what_play_shows_is_a_prefix_of_what_training_saw(turns: list[Turn], head: list[str], scenario: str) -> None:
    own = [t.speaker == "tang" and t.is_line for t in turns]
    trained = view(turns, own, head, "tang", CAST, scenario)
    last = len(own) - own[::-1].index(True) if True in own else 0
    for k, turn in enumerate(turns[:last]):
        shown = view_for_reply(turns[:k], head, "tang", CAST, scenario)
        assert shown[:-1] == trained[: len(shown) - 1]
        part, whole = shown[-1], trained[len(shown) - 1]
        assert part.role == whole.role
        assert whole.text.startswith(part.text)
        if turn.is_line and own[k] and part.role != "assistant":  # here the character speaks next
            assert shown == trained[: len(shown)]
            assert trained[len(shown)].role == "assistant"


@given(turns=turns_in, head=heads)
def test_roles_alternate_and_only_own_lines_are_learnt(turns: list[Turn], head: list[str]) -> None:
    own = [t.speaker == "tang" and t.is_line for t in turns]
    messages = view(turns, own, head, "tang", CAST)
    roles = [m.role for m in messages]
    assert roles[0] == "system"
    assert "system" not in roles[1:]
    assert all(a != b for a, b in pairwise(roles))
    assert all(m.loss == (m.role == "assistant") for m in messages)
    learnt = "\n".join(m.text for m in messages if m.loss)
    assert learnt == "\n".join(t.text for t, mine in zip(turns, own, strict=True) if mine)


@given(turns=turns_in, later=turns_in, head=heads)
def test_later_turns_never_change_how_earlier_ones_look(turns: list[Turn], later: list[Turn], head: list[str]) -> None:
    end = [Turn("tang", "end")]
    before = view_for_reply([*turns, *end], head, "tang", CAST)
    after = view_for_reply([*turns, *end, *later], head, "tang", CAST)
    assert after[: len(before) - 1] == before[:-1]


def test_roles_are_spoken_of_in_the_view_alone() -> None:
    for path in Path(mrp.data.__file__).parent.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name != "view.py":
            assert '"assistant"' not in text, path.name
            assert '"user"' not in text, path.name
