"""Law 10: a reply ends where it would begin another speaker's line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrp.play.guard import SpeakerGuard

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
    st.sampled_from(["Zhu ", "Bajie", ":", "：", "\n", " ", "*", "Tang", "猪八", "戒", "a", "ba", "jie", "Some", "one"])
)


@given(LINES, st.integers(1, 5))
def test_pieces_make_no_difference_and_no_foreign_line_is_shown(parts: list[str], size: int) -> None:
    text = "".join(parts)
    whole, stopped = guarded(text, max(len(text), 1))
    assert guarded(text, size) == (whole, stopped)
    assert text.startswith(whole)
    assert stopped or whole == text
    assert guarded(whole, size) == (whole, False)
