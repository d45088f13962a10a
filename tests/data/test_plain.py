"""Plain prompts: everyday questions in two halves that share topics and no prompt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mrp.cast import load_cast
from mrp.data.plain import HOME, Half, plain_prompts

EXAMPLES = Path(__file__).parents[2] / "examples"
HALVES: tuple[Half, Half] = ("for_training", "held_out")


def topics(language: str) -> list[list[str]]:
    text = (HOME / f"{language}.txt").read_text(encoding="utf-8")
    return [block.splitlines() for block in re.split(r"^# .*\n", text, flags=re.M)[1:]]


def test_there_are_as_many_as_promised() -> None:
    for half in HALVES:
        assert [len(plain_prompts(language, half)) for language in ("en", "zh", "both")] == [100, 50, 150]
        assert plain_prompts("both", half) == plain_prompts("en", half) + plain_prompts("zh", half)


def test_no_prompt_is_in_both_halves_or_there_twice() -> None:
    everything = [prompt for half in HALVES for prompt in plain_prompts("both", half)]
    bare = [re.sub(r"\W", "", prompt.casefold()) for prompt in everything]
    assert len(set(bare)) == len(bare) == 300


@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_topic_is_in_both_halves(language: str) -> None:
    for prompts in topics(language):
        asked = [prompt for prompt in prompts if prompt]
        shares = [len(set(asked) & set(plain_prompts(language, half))) for half in HALVES]
        assert sum(shares) == len(asked) and abs(shares[0] - shares[1]) <= 1


def test_they_are_in_the_language_that_they_say() -> None:
    for half in HALVES:
        assert not [p for p in plain_prompts("en", half) if re.search(r"[\u4e00-\u9fff]", p)]
        assert not [p for p in plain_prompts("zh", half) if not re.search(r"[\u4e00-\u9fff]", p)]


@pytest.mark.parametrize("example", ["pilgrims", "xiyou", "shakespeare"])
def test_none_names_a_character(example: str) -> None:
    names = {name.casefold() for c in load_cast(EXAMPLES / example / "cast.yaml") for name in c.names}
    for prompt in (p for half in HALVES for p in plain_prompts("both", half)):
        text = prompt.casefold()
        assert not [n for n in names if (re.search(rf"\b{re.escape(n)}\b", text) if n.isascii() else n in text)]


def test_a_half_keeps_to_the_order_of_the_file() -> None:
    lines = [prompt for block in topics("en") for prompt in block]
    for half in HALVES:
        assert sorted(plain_prompts("en", half), key=lines.index) == plain_prompts("en", half)
