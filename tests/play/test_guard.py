"""Law 10: a reply ends where it would begin another speaker's line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrp.cast import OTHER, Cast, Character
from mrp.play.guard import SpeakerGuard
from mrp.play.reply import names_of_others

OTHERS = ["Zhu Bajie", "bajie", "Tang", "猪八戒", "Someone"]


def guarded(text: str, pieces: int = 1, others: list[str] = OTHERS) -> tuple[str, bool]:
    """What a guard lets through of `text` given in pieces of so many letters, and whether it stopped."""
    guard = SpeakerGuard(others)
    shown = "".join(guard.add(text[at : at + pieces]) for at in range(0, len(text), pieces))
    return shown + guard.end(), guard.stopped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ha!\nZhu Bajie: Oof", "Ha!"),
        ("Ha!\n\nZhu Bajie: Oof", "Ha!\n"),
        ("Zhu Bajie: Oof", ""),
        ("  **Zhu Bajie**: Oof", ""),
        ("Ha!\n* zhu bajie : Oof", "Ha!"),
        ("Ha!\nbajie:Oof", "Ha!"),
        ("哈！\n猪八戒：哎哟", "哈！"),
        ("哈！\n猪八戒:哎哟", "哈！"),
        ("Ha!\nSomeone: And you?", "Ha!"),
        ("Ha!\nTANG: Peace", "Ha!"),
        (f"Ha!\n{' ' * 50}Tang{' ' * 50}: Peace", "Ha!"),
        ("Ha!\n*Tang*: Peace", "Ha!"),
        ("Ha!\n[Tang]: Peace", "Ha!"),
        ("Ha!\n[Tang] Peace", "Ha!"),
        ("哈！\n【猪八戒】哎哟", "哈！"),
        ("哈！\n「猪八戒」：哎哟", "哈！"),
        ('Ha!\n> "Tang": Peace', "Ha!"),
        ("Ha!\n- Tang: Peace", "Ha!"),
        ("Ha!\n\u200bTang\u3000﹕ Peace", "Ha!"),
        ("Ha!\u2028Tang: Peace", "Ha!"),
    ],
)
@pytest.mark.parametrize("pieces", [1, 3, 100])
def test_a_line_that_begins_with_anothers_name_ends_the_reply(text: str, shown: str, pieces: int) -> None:
    assert guarded(text, pieces) == (shown, True)


@pytest.mark.parametrize(
    "text",
    [
        "I know Zhu Bajie: he eats.",  # within a line
        "Zhu Bajie eats.\nTang walks: slowly",  # no colon after the name
        "Sun Wukong: Ha!",  # the own name
        "Pigsy: that is what they call him",  # an alias that the guard was not told
        "Tangerine: a fruit",  # longer than the name
        "I saw [Tang] there, and *Tang*: he walked.",  # within a line
        "[Tang walks in] Peace",  # a direction, no name alone
        "(Tang) walks, and Tang [Tang] too",  # round brackets make no speaker
        "Tang\nSun: no",  # a name is on one line
        "a\nZhu Ba",  # held back, then the end
        "\n\n",
        "",
    ],
)
@pytest.mark.parametrize("pieces", [1, 4])
def test_everything_else_is_shown_whole(text: str, pieces: int) -> None:
    assert guarded(text, pieces) == (text, False)


def test_what_may_become_a_name_is_held_back_and_the_rest_is_not() -> None:
    guard = SpeakerGuard(OTHERS)
    assert guard.add("Ha!\nZhu Ba") == "Ha!"
    assert guard.add("nana") == "\nZhu Banana"
    assert guard.add(" is\n  *") == " is"
    assert guard.add("* no name") == "\n  ** no name"
    assert guard.add("\nTang") == ""
    assert guard.add(":") == ""
    assert guard.stopped
    assert guard.add("more") == guard.end() == ""


def test_without_others_nothing_is_held_back() -> None:
    guard = SpeakerGuard(["", " "])
    assert guard.add("\nZhu Bajie:") == "\nZhu Bajie:"


LINES = st.lists(
    st.sampled_from(
        [
            "Zhu ",
            "Bajie",
            ":",
            "：",
            "\n",
            " ",
            "*",
            "[",
            "]",
            "\u2028",
            "Tang",
            "猪八",
            "戒",
            "a",
            "ba",
            "jie",
            "Some",
            "one",
        ]
    )
)


@given(LINES, st.integers(1, 5))
def test_pieces_make_no_difference_and_no_foreign_line_is_shown(parts: list[str], size: int) -> None:
    text = "".join(parts)
    whole, stopped = guarded(text, max(len(text), 1))
    assert guarded(text, size) == (whole, stopped)
    assert text.startswith(whole)
    assert stopped or whole == text
    assert guarded(whole, size) == (whole, False)


def pilgrims() -> Cast:
    return Cast(
        characters=[
            Character(id="wukong", name="Sun Wukong", aliases=["Monkey", "Disciple"]),
            Character(id="bajie", name="Zhu Bajie", aliases=["Pigsy", "Disciple"]),
        ]
    )


@pytest.mark.parametrize("name", ["Zhu Bajie", "bajie", "Pigsy", "PIGSY"])
def test_a_line_under_any_name_of_another_ends_the_reply_and_one_within_a_line_does_not(name: str) -> None:
    others = names_of_others(pilgrims(), ["wukong", "bajie", OTHER], "wukong")
    assert guarded(f"Ha!\n{name}: Oof", others=others) == ("Ha!", True)
    assert guarded(f"Ha, {name}: oof", others=others) == (f"Ha, {name}: oof", False)


@pytest.mark.parametrize("name", ["Sun Wukong", "wukong", "Monkey", "Disciple"])
def test_a_name_that_the_character_bears_itself_never_ends_its_reply(name: str) -> None:
    others = names_of_others(pilgrims(), ["wukong", "bajie", OTHER], "wukong")
    assert guarded(f"{name}: Ha!", others=others) == (f"{name}: Ha!", False)


def test_whoever_else_is_there_counts_and_without_a_cast_nobody_does() -> None:
    there = ["wukong", "Guanyin"]
    assert guarded("Ha!\nguanyin: Peace", others=names_of_others(pilgrims(), there, "wukong")) == ("Ha!", True)
    assert names_of_others(None, there, "wukong") == []
