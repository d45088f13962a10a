"""A scene at a terminal: a person's turns, the commands, Ctrl-C and going on."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from heard import Heard
from scripted import CAST, ScriptedPlayer, scripted

from mrp.errors import InputError, Stopped
from mrp.lore import LoreEntry
from mrp.play.engine import Request, Token
from mrp.play.scene_command import Asked, play_scene
from mrp.report import ConsoleReporter


def play(
    player: ScriptedPlayer, asked: Asked, *lines: str, out: Path | None = None, resume: Path | None = None
) -> tuple[dict[str, Any], list[str], str]:
    """What came back, was printed, and was printed as an error; `lines` come from a pipe."""
    report = ConsoleReporter(io.StringIO())
    report.err.file = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        result = play_scene(player, asked, out, resume, report)
    return result, report.out.file.getvalue().splitlines(), report.err.file.getvalue()  # type: ignore[attr-defined]


def test_a_scene_plays_to_its_end_and_is_exported(tmp_path: Path) -> None:
    out = tmp_path / "inn.jsonl"
    asked = Asked(with_="tang,wukong", director="round-robin", turns=2)
    result, printed, _ = play(scripted(CAST, "Who is there?", "Me!"), asked, out=out)
    assert printed[:3] == ["Tang Sanzang: Who is there?", "Sun Wukong: Me!", "(the end: 2 lines were said)"]
    assert result["by_speaker"] == {"tang": 1, "wukong": 1}
    assert {p.name for p in tmp_path.iterdir()} == {"inn.jsonl", "inn.scene.jsonl", "inn.md"}


def test_a_person_speaks_skips_lets_others_speak_and_ends() -> None:
    asked = Asked(with_="Guard,wukong", director="round-robin", me="Guard")
    player = scripted(CAST, "Ha!", "Again, ha!", "Ho!")
    result, _, err = play(player, asked, "Halt!", "/skip", "/as Monkey King", "/nonsense", "/end")
    said = [(turn["speaker"], turn["text"]) for turn in result["turns"]]
    assert said == [("Guard", "Halt!"), ("wukong", "Ha!"), ("wukong", "Again, ha!"), ("wukong", "Ho!")]
    assert result["end"] == "a person ended it"
    assert "unknown command '/nonsense'" in err


def test_the_end_of_input_ends_the_scene() -> None:
    result, _, _ = play(scripted(CAST), Asked(with_="tang", me="Guard", director="manual"))
    assert (result["turns"], result["end"]) == ([], "a person ended it")


def test_manual_asks_who_speaks_and_people_come_and_go() -> None:
    asked = Asked(with_="tang,wukong", director="manual")
    player = scripted(CAST, "Peace.", "Food?")
    lines = ("tang", "/enter Pigsy", "Pigsy", "/leave tang", "tang", "nobody", "/end")
    result, printed, err = play(player, asked, *lines)
    assert result["turns"] == [
        {"speaker": "tang", "text": "Peace."},
        {"enter": "bajie"},
        {"speaker": "bajie", "text": "Food?"},
        {"leave": "tang"},
    ]
    assert "(Tang Sanzang leaves)" in printed
    assert "'tang' is not there" in err and "'nobody' is not there" in err


def test_lore_and_memory_are_shown() -> None:
    cast = CAST.model_copy(update={"lore": [LoreEntry(keys=["staff"], text="It is heavy.")]})
    asked = Asked(with_="Guard,wukong", director="round-robin", me="Guard")
    lines = ("Your staff!", "/lore", "/lore wukong", "/memory wukong", "/memory wukong x")
    _, printed, err = play(scripted(cast, "Ha!"), asked, *lines)
    assert printed.count("cast.lore[0] (staff): It is heavy.") == 2
    assert "(0 messages dropped) nothing" in printed
    assert "still sees everything" in err


def test_ctrl_c_stops_and_the_same_file_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "inn.jsonl"
    asked = Asked(with_="tang,wukong", director="round-robin", turns=3)
    whole, _, _ = play(scripted(CAST, "One.", "Two words.", "Three."), asked, out=tmp_path / "whole.jsonl")
    player = scripted(CAST, "One.", "Two words.")
    player.engine.interrupt_at = len(player.engine.replies[0]) + 1  # so in the second, which is longer
    assert len(player.engine.replies[1]) > len(player.engine.replies[0]) + 1
    with pytest.raises(Stopped) as caught:
        play(player, asked, out=out)
    assert f"--resume {out}" in caught.value.fix
    done = out.read_text(encoding="utf-8").count('"text"')
    rest = scripted(CAST, *["One.", "Two words.", "Three."][done:])
    again, printed, _ = play(rest, Asked(), resume=out)
    assert printed[0] == f"going on after {done} lines"
    assert again["turns"] == whole["turns"]
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_flags_that_contradict_the_scene_that_goes_on_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "inn.jsonl"
    play(scripted(CAST, "One."), Asked(with_="tang", turns=1), out=out)
    for asked, flag in (
        (Asked(with_="wukong"), "--with"),
        (Asked(turns=9), "--turns"),
        (Asked(seed=9), "--seed"),
        (Asked(me="Guard"), "--me"),
    ):
        with pytest.raises(InputError) as caught:
            play(scripted(CAST), asked, out=out)
        assert flag in str(caught.value)
    with pytest.raises(InputError, match="goes on in"):
        play(scripted(CAST), Asked(), out=out, resume=out)


def test_a_scene_that_is_over_is_shown_and_stays_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "inn.jsonl"
    play(scripted(CAST, "One."), Asked(with_="tang", turns=1), out=out)
    before = out.read_bytes()
    _, printed, _ = play(scripted(CAST), Asked(), out=out)
    assert "Tang Sanzang: One." in printed
    assert out.read_bytes() == before


def test_a_model_without_a_cast_plays_no_scene() -> None:
    with pytest.raises(InputError, match="has no cast"):
        play(scripted(None), Asked())


def test_an_engine_that_dies_leaves_a_file_that_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "inn.jsonl"
    asked = Asked(with_="tang,wukong", director="round-robin", turns=2)
    player = scripted(CAST, "Who is there?", "Me, master, who else?")
    stream = player.engine.stream

    def dying(request: Request) -> Iterator[Token]:
        for number, token in enumerate(stream(request)):
            if len(player.engine.prompts) == 2 and number == 3:
                raise RuntimeError("out of memory")
            yield token

    player.engine.stream = dying  # type: ignore[method-assign]
    heard = Heard()
    with pytest.raises(RuntimeError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO())
        play_scene(player, asked, out, None, heard)
    assert any(f"--resume {out}" in text for text in heard.warnings)
    again, _, _ = play(scripted(CAST, "Me!"), Asked(), resume=out)
    assert [turn["text"] for turn in again["turns"]] == ["Who is there?", "Me!"]
