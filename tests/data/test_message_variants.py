"""Variants of ShareGPT and OpenAI messages, and a scenario below the persona in a system text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from dialogue_rows import pair

from mrp.cast import OTHER, Cast
from mrp.data.read import ReadLine, read_lines
from mrp.data.record import Names, Rejected, is_like_a_name
from mrp.dialogue import Scene, Turn

Write = Callable[[str, Iterable[Any]], Path]
SAID = (Turn(OTHER, "Who are you?"), Turn("wukong", "Ha!"))
FROM = [{"from": "human", "value": "Who are you?"}, {"from": "gpt", "value": "Ha!"}]
ROLE = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "Ha!"}]


def read_one(write: Write, cast: Cast | None, row: Any, owner: str | None = None, **more: Any) -> ReadLine:
    (line,) = read_lines(write("a.jsonl", [row]), cast, owner, **more)
    return line


@pytest.mark.parametrize("key", ["conversations", "conversation", "dialog", "dialogue", "items"])
@pytest.mark.parametrize("text_key", ["value", "text", "content"])
@pytest.mark.parametrize(
    "names", [("human", "gpt"), ("user", "chatgpt"), ("Human", "bing"), ("user", "bard"), ("human", "ai")]
)
def test_variants_of_sharegpt(write: Write, cast: Cast, key: str, text_key: str, names: tuple[str, str]) -> None:
    items = [{"from": name, text_key: item["value"]} for name, item in zip(names, FROM, strict=True)]
    line = read_one(write, cast, {"id": "1", key: items}, "wukong")
    assert isinstance(line.result, Scene), line.result
    assert (line.result.turns, line.kind) == (SAID, "sharegpt")


@pytest.mark.parametrize("name", ["tool", "function", "observation"])
def test_tools_are_refused_in_every_variant(write: Write, cast: Cast, name: str) -> None:
    line = read_one(write, cast, {"conversation": [*FROM, {"from": name, "value": "x"}]}, "wukong")
    assert isinstance(line.result, Rejected) and line.result.reason == "tool-message"
    line = read_one(write, cast, {"messages": ROLE, "functions": [{"name": "x"}]}, "wukong")
    assert isinstance(line.result, Rejected) and line.result.reason == "tool-message"


def test_reasoning_is_a_thought(write: Write, cast: Cast) -> None:
    answer = ROLE[1] | {"reasoning_content": "Who asks?", "refusal": None, "annotations": [], "audio": None}
    line = read_one(write, cast, {"messages": [ROLE[0], answer]}, "wukong")
    assert isinstance(line.result, Scene) and line.result.turns == SAID
    assert line.dropped == {"inner_thought": 1}
    line = read_one(write, cast, {"messages": [ROLE[0], ROLE[1] | {"refusal": "I cannot."}]}, "wukong")
    assert isinstance(line.result, Rejected) and "refusal" in line.result.detail


@pytest.mark.parametrize("identity", ["You are Sun Wukong.", "Monkey King", "wukong"])
@pytest.mark.parametrize("owner", [None, "wukong"])
def test_scenario_may_stand_below_the_identity(write: Write, cast: Cast, identity: str, owner: str | None) -> None:
    system = f"{identity}\n\nAn inn.\n\nLate."
    for row in (
        {"messages": [{"role": "system", "content": system}, *ROLE]},
        {"conversations": FROM, "system": system},
        pair("Who are you?", "Ha!", system=system),
        {"prompt": "Who are you?", "completion": "Ha!", "system": system},
    ):
        line = read_one(write, cast, row, owner)
        assert isinstance(line.result, Scene), line.result
        assert (line.result.turns, line.result.scenario, line.dropped) == (SAID, "An inn.\n\nLate.", {})


def test_second_scenario_of_a_scene_is_counted(write: Write, cast: Cast) -> None:
    turns = [
        {"system": f"wukong\n\n{place}", "input": "a", "output": "b"} for place in ("An inn.", "An inn.", "A gate.")
    ]
    line = read_one(write, cast, {"conversation": turns})
    assert isinstance(line.result, Scene)
    assert (line.result.scenario, line.dropped["system_text"]) == ("An inn.", 1)


def test_persona_with_empty_lines_is_known_whole() -> None:
    from mrp.cast import Character

    cast = Cast(characters=[Character(id="a", name="A", persona="One.\n\nTwo.")])
    names = Names(cast)
    assert names.identity_and_scenario("One.\n\nTwo.") == ("a", "")
    assert names.identity_and_scenario("One.\n\nTwo.\n\nThree.") == ("a", "Three.")
    assert names.identity_and_scenario("One.\n\nThree.") == (None, "")


@pytest.mark.parametrize("text", ["孙悟空", "Mr. Darcy", "Jean-Luc Picard", "O'Neil", "Dr. Watson"])
def test_names_look_like_names(text: str) -> None:
    assert is_like_a_name(text)


@pytest.mark.parametrize(
    "text", ["You are Sun Wukong", "你是孙悟空", "Be brief.", "a, b", "a\nb", "x" * 41, "who are you?"]
)
def test_instructions_do_not_look_like_names(text: str) -> None:
    assert not is_like_a_name(text)
