"""CoSER's books: every conversation is a scene, thoughts are heard by nobody, nothing is lost silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrp.cast import Cast
from mrp.data.coser import without_thoughts
from mrp.data.read import ReadLine, read_lines
from mrp.data.record import Rejected
from mrp.dialogue import Scene, Turn


def said(character: str, message: Any, **more: Any) -> dict[str, Any]:
    return {"character": character, "message": message, "i_p": 0, "i_c": 0, "i_u": 0} | more


def conversation(*lines: Any, **more: Any) -> dict[str, Any]:
    people = [{"name": name, "motivation": "x"} for name in ("Monkey King", "Pigsy")]
    return {"scenario": "At an inn.", "topic": "t", "key_characters": people, "dialogues": list(lines)} | more


TALK = conversation(
    said("Pigsy", "[I am so hungry.] (sighs) Food? [Let there be food.]"),
    {"character": "Environment", "message": "A door opens."},
    said("Sun Wukong", "[Always the same.]"),
    said("Innkeeper", "Ten bowls."),
    {"name": "Monkey King", "thought": "Greedy."},
    said("Monkey King", "Ha!"),
)
OTHER_TALK = conversation(said("Master", "Peace."), key_characters=["x", 7, None])


def book(*plots: Any) -> dict[str, Any]:
    return {
        "book": "B",
        "plots": list(plots),
        "character_datasets": {"Pigsy": {"profile": "a pig"}},
        "split_plot_index": 9,
    }


def plot(*conversations: Any) -> dict[str, Any]:
    return {"text": "...", "summary": "s", "key_characters": [], "chapter": "I", "conversation": list(conversations)}


def read(path: Path, text: str, cast: Cast | None) -> list[ReadLine]:
    path.write_text(text, encoding="utf-8")
    return list(read_lines(path, cast, name="b"))


def places(lines: list[ReadLine]) -> list[str]:
    return [line.result.source for line in lines]


def test_conversation_is_a_scene_without_thoughts(tmp_path: Path, cast: Cast) -> None:
    (line,) = read(tmp_path / "b.jsonl", json.dumps(TALK), cast)
    turns = (
        Turn("bajie", "(sighs) Food?"),
        Turn("Environment", "A door opens."),
        Turn("Innkeeper", "Ten bowls."),
        Turn("wukong", "Ha!"),
    )
    people = ("wukong", "bajie", "Environment", "Innkeeper")
    assert line.result == Scene("", people, turns, "At an inn.", "b:1")
    assert line.dropped == {"inner_thought": 4}
    assert line.kind == "coser"


def test_every_layout_gives_the_same_scenes(tmp_path: Path, cast: Cast) -> None:
    plots = [plot(TALK, OTHER_TALK), plot(OTHER_TALK)]
    layouts = {
        "one.json": json.dumps(book(*plots), indent=2),
        "line.json": json.dumps(book(*plots)),
        "array.json": json.dumps([book(plots[0]), book(plots[1])], indent=1),
        "lines.jsonl": json.dumps(book(plots[0])) + "\n" + json.dumps(book(plots[1])),
        "plots.jsonl": json.dumps(plots[0]) + "\n" + json.dumps(plots[1]),
        "test_set.json": json.dumps([TALK, OTHER_TALK, OTHER_TALK]),
    }
    for name, text in layouts.items():
        results = [line.result for line in read(tmp_path / name, text, cast)]
        assert all(isinstance(result, Scene) for result in results)
        assert [(r.participants, r.turns, r.scenario) for r in results if isinstance(r, Scene)] == [
            (r.participants, r.turns, r.scenario)
            for line in read(tmp_path / "x.jsonl", "\n".join(map(json.dumps, [TALK, OTHER_TALK, OTHER_TALK])), cast)
            if isinstance(r := line.result, Scene)
        ]
        assert len({r.source for r in results}) == 3


def test_places_are_lines_and_conversations_on_them(tmp_path: Path, cast: Cast) -> None:
    text = json.dumps(book(plot(TALK, TALK, TALK))) + "\n\n" + json.dumps(book(plot(TALK)))
    assert places(read(tmp_path / "b.jsonl", text, cast)) == ["b:1", "b:1#2", "b:1#3", "b:3"]
    pretty = json.dumps(book(plot(TALK, TALK), plot(TALK)), indent=1)
    found = places(read(tmp_path / "b.json", pretty, cast))
    starts = [k for k, line in enumerate(pretty.split("\n"), 1) if line == "  {"]  # of the plots
    assert found == [f"b:{starts[0]}", f"b:{starts[0]}#2", f"b:{starts[1]}"]


@pytest.mark.parametrize(
    ("reason", "value"),
    [
        ("wrong-type", book(7)),
        ("wrong-type", book(plot(7))),
        ("wrong-type", {"plots": 7}),
        ("wrong-type", book(plot() | {"conversation": "x"})),
        ("wrong-type", conversation(7)),
        ("wrong-type", conversation({})),
        ("wrong-type", conversation(said("Pigsy", 7))),
        ("wrong-type", conversation({"message": "x"})),
        ("unknown-key", conversation(said("Pigsy", "x", massage="y"))),
        ("bad-text", conversation(said("Pigsy", "a\x00"))),
        ("no-reply", conversation(said("Innkeeper", "x"))),
        ("no-reply", conversation(said("Pigsy", "[a thought]"))),
        ("no-reply", conversation()),
        ("no-reply", book()),
        ("no-reply", book(plot())),
        ("no-reply", plot()),
    ],
)
def test_bad_part_of_a_book_is_rejected_alone(tmp_path: Path, cast: Cast, reason: str, value: Any) -> None:
    text = "\n".join(json.dumps(v) for v in (TALK, value, TALK))
    first, bad, last = (line.result for line in read(tmp_path / "b.jsonl", text, cast))
    assert isinstance(first, Scene) and isinstance(bad, Rejected) and isinstance(last, Scene)
    assert (bad.reason, bad.source) == (reason, "b:2")
    mixed = book(plot(TALK), *(value["plots"] if isinstance(value.get("plots"), list) else [plot(value)]), plot(TALK))
    kept = [line.result for line in read(tmp_path / "m.jsonl", json.dumps(mixed), cast)]
    assert sum(isinstance(result, Scene) for result in kept) == 2


@pytest.mark.parametrize(
    ("text", "heard", "thoughts"),
    [
        ("[a] b [c] d", "b d", 2),
        ("[a [b] c] d", "d", 2),
        ("【想】好", "好", 1),
        ("a [b", "a [b", 0),
        ("two  blanks", "two  blanks", 0),
        ("[a]", "", 1),
    ],
)
def test_thoughts_are_taken_out(text: str, heard: str, thoughts: int) -> None:
    assert without_thoughts(text) == (heard, thoughts)
