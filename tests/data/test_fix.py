"""Mending: once is enough, what is not at fault stays as it is, and everything that is taken out is counted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrp.cast import OTHER, Cast, Character
from mrp.data.fix import NO_REPLY, TAKEN_OUT, is_mendable, repaired, scene_row
from mrp.data.lint import Linter
from mrp.dialogue import Scene, Turn

CAST = Cast(characters=[Character(id="wukong", name="Sun Wukong"), Character(id="bajie", name="Zhu Bajie")])
LINTER = Linter(CAST)
PIECES = (
    "Ha! I am the Monkey King.",
    "Who is there, in the dark, at this hour?",
    "As an AI language model, I cannot say.",
    "cafÃ©",
    "ä½\xa0å¥½",
    "Ã¢â‚¬â„¢",
    "你好，我是孙悟空。",
    "锟斤拷",
    "<|im_end|>",
    "<|im_start|>user\n",
    "[INST]",
    "</s>",
    "Ha!<br>",
    "&nbsp;",
    "<a href='x'>",
    "&amp;lt;/s&gt;",
    "Bajie: Oof",
    "User: what",
    "Sun Wukong: Ha!",
    " ",
    "\n",
    "說",
    "们",
)


def scene(*turns: tuple[str, str], scene_id: str = "s") -> Scene:
    spoken = tuple(Turn(speaker, text) for speaker, text in turns)
    return Scene(scene_id, tuple(dict.fromkeys(t.speaker for t in spoken)), spoken, source="f:1")


def mend(*turns: tuple[str, str]) -> tuple[list[tuple[str, str]] | None, dict[str, int]]:
    before = scene(*turns)
    after, done = repaired(before, LINTER.lint(before), LINTER)
    return after and [(t.speaker, t.text) for t in after.turns], dict(done)


KNOCK = "Who is it that knocks at the gate so late?"
ASK, ANSWER = (OTHER, "Who are you?"), ("wukong", "The Monkey King!")


@pytest.mark.parametrize(
    ("bad", "good", "done"),
    [
        ([ASK, ("wukong", "cafÃ©")], [ASK, ("wukong", "café")], {"mojibake": 1}),
        ([ASK, ("wukong", "Ha!<|im_end|>")], [ASK, ("wukong", "Ha!")], {"echoed-control-token": 1}),
        ([ASK, ("wukong", "Ha!\nBajie: Oof")], [ASK, ("wukong", "Ha!")], {"speaks-for-another": 1}),
        ([ASK, ("wukong", "Ha!<br>&quot;Ho!&quot;")], [ASK, ("wukong", 'Ha!\n"Ho!"')], {"html": 1}),
        ([ASK, ("wukong", " Ha!\n")], [ASK, ("wukong", "Ha!")], {"outer-blanks": 1}),
        (
            [ASK, ("wukong", "As an AI, I have no name."), (OTHER, "Really?"), ANSWER],
            [(OTHER, "Really?"), ANSWER],
            {"assistant-ism": 1, TAKEN_OUT: 2},
        ),
        (
            [ANSWER, ("bajie", "As an AI, I have no name.")],  # what another character said well stays
            [ANSWER],
            {"assistant-ism": 1, TAKEN_OUT: 1},
        ),
        (
            [(OTHER, KNOCK), ("wukong", KNOCK.lower()), ANSWER],
            [(OTHER, KNOCK), ANSWER],
            {"same-text": 1, TAKEN_OUT: 1},
        ),
        ([ASK, ("wukong", "Bajie: Oof"), ASK, ANSWER], [ASK, ANSWER], {"speaks-for-another": 1, TAKEN_OUT: 2}),
        ([ASK, ("wukong", "  "), ASK, ANSWER], [ASK, ASK, ANSWER], {TAKEN_OUT: 1}),
        (
            [ASK, ("wukong", "Itâ€™s me!<|im_end|>\nBajie: Oof")],
            [ASK, ("wukong", "It’s me!")],
            {"mojibake": 1, "echoed-control-token": 1, "speaks-for-another": 1},
        ),
        ([ASK, ("wukong", "As an AI, I have no name.")], None, {"assistant-ism": 1, TAKEN_OUT: 2, NO_REPLY: 1}),
    ],
)
def test_each_fault_is_mended_and_counted(bad: Any, good: Any, done: dict[str, int]) -> None:
    after, counted = mend(*bad)
    assert after == good
    assert {key: count for key, count in counted.items() if count} == done


@pytest.mark.parametrize("text", ["锟斤拷", "我们說好了", "word " * 9, "Ha! Bajie: Oof", "I <s>hate</s> love it"])
def test_what_cannot_be_mended_surely_stays_as_it_is(text: str) -> None:
    before = scene(ASK, ("wukong", text.strip()))
    linter = Linter(CAST, max_tokens=5)
    after, done = repaired(before, linter.lint(before), linter)
    assert after is before and not done


texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)
turns = st.builds(Turn, st.sampled_from([OTHER, "wukong", "bajie", "Innkeeper"]), texts)
entrances = st.builds(lambda who: Turn(who, enters=True), st.sampled_from(["bajie", "Innkeeper"]))
scenes = st.lists(turns | entrances, min_size=1, max_size=6).map(
    lambda ts: Scene("s", tuple(dict.fromkeys(t.speaker for t in ts)), tuple(ts), source="f:1")
)


@given(scenes)
def test_a_mended_scene_has_nothing_left_to_mend(before: Scene) -> None:
    findings = LINTER.lint(before)
    after, done = repaired(before, findings, LINTER)
    if after is None:
        assert done[NO_REPLY] == 1 and done[TAKEN_OUT]
        return
    left = LINTER.lint(after)
    assert not [f for f in left if is_mendable(after, f)]
    again, nothing = repaired(after, left, LINTER)
    assert again is after and not +nothing
    assert len(before.turns) - len(after.turns) == done[TAKEN_OUT]
    blanks = any(not t.enters and t.text != t.text.strip() for t in before.turns)
    if not blanks and not any(is_mendable(before, f) for f in findings):
        assert after is before


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_can_be_linted_and_mended(prompt: str, reply: str) -> None:
    before = scene((OTHER, prompt), ("wukong", reply), ("Sun Wukng", prompt))
    after, _ = repaired(before, LINTER.lint(before), LINTER)
    assert after is None or len(after.turns) <= 3


@pytest.mark.parametrize(
    "piece",
    [
        "作为基于x的",
        "基于x的",
        " ",
        "<|start_header_id|> ",
        "</s> ",
        "<a ",
        "amp;",
        "<s>",
        "<br ",
        "&",
        "<br>\n \n",
        "as a large ",
        "Ã",
        "é’”",
        "浣犲",
        "【",
        "Bajie ",
        "我是由x",
        "<p a=",
        "\n:",
        "[INST]",
        "說们",
    ],
)
def test_no_text_takes_long(piece: str) -> None:
    """Patterns that try again and again would need hours for these."""
    text = piece * (30_000 // len(piece))
    for whole in (
        text,
        "作为" + text,
        "&" + text,
        text + text.replace("<", "</"),
        "<|start_header_id|>" + text + "<br>",
        "Ã©" + text,
    ):
        before = scene((OTHER, whole), ("wukong", whole))
        start = time.monotonic()
        repaired(before, LINTER.lint(before), LINTER)
        assert time.monotonic() - start < 20


def test_the_written_copy_reads_as_the_same_scenes(
    write: Callable[[str, Iterable[Any]], Path],
) -> None:
    from mrp.data.read import read_dialogues

    turns = (Turn(OTHER, "Who is it?\nSpeak!"), Turn("bajie", enters=True), Turn("bajie", "Oof"), Turn("Ann", "他說"))
    before = [Scene("a", (OTHER, "Ann"), turns, "An inn."), Scene("b", ("wukong",), (Turn("wukong", "Ha!"),))]
    path = write("fixed.jsonl", [scene_row(s) for s in before])
    read = [s for s in read_dialogues(path, CAST) if isinstance(s, Scene)]
    assert [scene_row(s) for s in read] == [scene_row(s) for s in before]
    assert [(s.id, s.participants, s.turns, s.scenario) for s in read] == [
        (s.id, s.participants, s.turns, s.scenario) for s in before
    ]
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[1]).keys() == {"id", "participants", "turns"}
