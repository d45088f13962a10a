"""SillyTavern's chats: one scene a file, whole or in whole parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from dialogue_rows import pair

from mrp.cast import OTHER, Cast
from mrp.config import Run
from mrp.data.build import build_data
from mrp.data.check import check_data
from mrp.data.read import read_lines
from mrp.data.record import Rejected
from mrp.dialogue import Scene, Turn

Write = Callable[[str, Iterable[Any]], Path]
HEAD = {"user_name": "Ann", "character_name": "Monkey King", "create_date": "2024-06-25", "chat_metadata": {"x": 1}}


def said(name: str, text: Any, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "is_user": name in ("Ann", "You"),
        "is_system": False,
        "send_date": 1719268981,
        "mes": text,
    } | more


CHAT = [
    HEAD,
    said("Monkey King", "Ha!", swipes=["Ho!", "Ha!", "Hm."], swipe_id=1, extra={"model": "x"}),
    said("Ann", "Who are you?\r\n"),
    said("Note", "hidden", is_system=True),
    said("Ann", ""),
    said("Monkey King", "Sun Wukong."),
]


def test_chat_is_one_scene(write: Write, cast: Cast) -> None:
    (line,) = read_lines(write("chat.jsonl", CHAT), cast, name="chat.jsonl")
    turns = (Turn("wukong", "Ha!"), Turn("Ann", "Who are you?"), Turn("wukong", "Sun Wukong."))
    assert line.result == Scene("", ("wukong", "Ann"), turns, source="chat.jsonl:1")
    assert line.dropped == {"unused_swipe": 2, "hidden_message": 1, "empty_prompt": 1}
    assert line.kind == "sillytavern"


@pytest.mark.parametrize("head", [[], [{"chat_metadata": {}, "user_name": "unused", "character_name": "unused"}]])
def test_head_may_be_missing_and_you_is_nobody_known(write: Write, cast: Cast, head: list[Any]) -> None:
    (line,) = read_lines(write("chat.jsonl", [*head, said("You", "Hi."), said("Pigsy", "Food?")]), cast)
    assert isinstance(line.result, Scene)
    assert [turn.speaker for turn in line.result.turns] == [OTHER, "bajie"]


def test_group_chat_keeps_every_speaker(write: Write, cast: Cast) -> None:
    rows = [{"chat_metadata": {}}, said("Pigsy", "Food?"), said("Guard", "No."), said("Master", "Peace.")]
    (line,) = read_lines(write("chat.jsonl", rows), cast)
    assert isinstance(line.result, Scene)
    assert line.result.participants == ("bajie", "Guard", "tang")


def test_lines_of_another_format_are_no_chat(write: Write, cast: Cast) -> None:
    row = pair("a", "b") | {"user_name": "Ann", "character_name": "tang"}
    (line,) = read_lines(write("a.jsonl", [row]), cast, "tang")
    assert line.kind == "xtuner"


def test_card_of_another_name_is_the_owner(write: Write, cast: Cast) -> None:
    rows = [HEAD | {"character_name": "The Ape v2"}, said("The Ape v2", "Ha!"), said("Guard", "No."), said("Ann", "?")]
    (line,) = read_lines(write("chat.jsonl", rows), cast, "wukong")
    assert isinstance(line.result, Scene)
    assert [turn.speaker for turn in line.result.turns] == ["wukong", "Guard", "Ann"]


@pytest.mark.parametrize(
    ("reason", "bad"),
    [
        ("broken-json", "{"),
        ("wrong-type", {"name": "Ann", "is_user": True}),
        ("wrong-type", said("Ann", 7)),
        ("wrong-type", said("", "x")),
        ("wrong-type", said("Ann", "x", is_user="yes")),
        ("wrong-type", "[1]"),
        ("bad-text", said("Ann", "a\x00")),
    ],
)
def test_bad_message_parts_the_chat(write: Write, cast: Cast, reason: str, bad: Any) -> None:
    path = write("chat.jsonl", [*CHAT, bad, *CHAT[1:3], said("Monkey King", "Again?")])
    first, rejected, second = (line.result for line in read_lines(path, cast, name="c"))
    assert isinstance(first, Scene) and isinstance(rejected, Rejected) and isinstance(second, Scene)
    assert (first.source, len(first.turns)) == ("c:1", 3)
    assert (rejected.source, rejected.reason) == ("c:7", reason)
    assert (second.source, len(second.turns)) == ("c:8", 3)


def test_chat_without_a_reply_is_rejected(write: Write, cast: Cast) -> None:
    for rows in ([HEAD], [HEAD, said("Ann", "Hello?")], [HEAD, said("Guard", "No.")]):
        (line,) = read_lines(write("chat.jsonl", rows), cast)
        assert isinstance(line.result, Rejected)
        assert line.result.reason == "no-reply"


def test_counts_add_up(write: Write, cast: Cast) -> None:
    report = check_data([write("a.jsonl", [*CHAT, "{", *CHAT[1:]]), write("b.jsonl", CHAT)], cast)
    assert report.lines == 4 == report.kept + sum(report.counts.values())
    assert report.counts == {"broken-json": 1, "duplicate": 2}
    assert report.formats == {"sillytavern": 4}


def test_built_beside_other_files(make_run: Callable[..., Run]) -> None:
    run = make_run({"wukong": CHAT, "tang": [pair(f"q{k}", f"a{k}") for k in range(6)]})
    manifest = build_data(run)
    assert manifest["totals"]["formats"] == {"sillytavern": 1, "xtuner": 6}
    assert manifest["characters"]["wukong"]["train"]["replies"] == 2


def test_long_chat_is_parted_and_a_line_that_is_too_long_rejected(
    write: Write, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrp.data.chat.MAX_LINE_BYTES", 3000)
    monkeypatch.setattr("mrp.data.stream.MAX_LINE_BYTES", 2**20)
    rows = [HEAD, *(said("Monkey King", f"{k} " + "x" * 1000) for k in range(7)), said("Ann", "x" * 2**21), CHAT[1]]
    results = [line.result for line in read_lines(write("chat.jsonl", rows), cast, name="c")]
    turns = [len(result.turns) if isinstance(result, Scene) else result.reason for result in results]
    assert turns == [3, 3, 1, "too-long", 1]
    assert [result.source for result in results] == ["c:1", "c:5", "c:8", "c:9", "c:10"]
