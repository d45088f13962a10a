"""Converting: what is written reads back as the same turns, everything else is counted, OUT is whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import fails, mrp
from dialogue_rows import pair, scene
from heard import Heard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrp.cast import OTHER, Cast
from mrp.data.convert import FORMATS_OUT, convert
from mrp.data.read import read_lines
from mrp.data.record import Rejected
from mrp.data.view import view
from mrp.dialogue import Scene, Turn
from mrp.errors import InputError, MrpError

Write = Callable[[str, Iterable[Any]], Path]
SUFFIX = dict.fromkeys(FORMATS_OUT, ".jsonl") | {"parquet": ".parquet"}
PAIRS = [f for f in FORMATS_OUT if f != "scenes"]
TWO = scene(("other", "Who are you?"), ("wukong", "Ha!"), ("other", "And?"), ("wukong", "Old\nMonkey."))
OPENS = scene(("bajie", "Food?"), ("other", "No."), ("bajie", "Food!"), scenario="At an inn.\n\nLate.")
MANY = scene(
    ("tang", "Peace."), ("Guard", "Halt!"), ("wukong", "Ha!"), "bajie", ("bajie", "Food?"), ("tang", "Soon."),
    id="s1", participants=["tang", "wukong", "Guard"], scenario="A gate.",
)  # fmt: skip


def read(path: Path, cast: Cast | None, **more: Any) -> list[Scene]:
    found = [line.result for line in read_lines(path, cast, **more)]
    assert all(isinstance(result, Scene) for result in found), found
    return [result for result in found if isinstance(result, Scene)]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def merged(turns: Iterable[Turn]) -> list[tuple[str, str]]:
    """Adjacent lines of one speaker are one turn."""
    found: list[tuple[str, str]] = []
    for turn in turns:
        if turn.enters:
            continue
        if found and found[-1][0] == turn.speaker:
            found[-1] = (turn.speaker, f"{found[-1][1]}\n{turn.text}")
        else:
            found.append((turn.speaker, turn.text))
    return found


# --- The round trip ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS_OUT)
def test_dialogue_with_a_person_comes_back_the_same(tmp_path: Path, write: Write, cast: Cast, to: str) -> None:
    source = write("in.jsonl", [TWO, OPENS])
    out = tmp_path / f"out{SUFFIX[to]}"
    done = convert([source], out, to, cast)
    assert (done.lines, done.scenes, done.written, done.rejected) == (2, 2, 2, {})
    before, after = read(source, cast), read(out, cast)
    assert [merged(s.turns) for s in after] == [merged(s.turns) for s in before]
    assert [(s.scenario, set(s.participants)) for s in after] == [(s.scenario, set(s.participants)) for s in before]


def test_scenes_come_back_whole(tmp_path: Path, write: Write, cast: Cast) -> None:
    source = write("in.jsonl", [TWO, OPENS, MANY])
    convert([source], tmp_path / "out.jsonl", "scenes", cast)
    before, after = read(source, cast, name="x"), read(tmp_path / "out.jsonl", cast, name="x")
    assert after == before


@pytest.mark.parametrize("to", PAIRS)
@pytest.mark.parametrize("with_cast", [True, False])
def test_every_character_has_its_side(tmp_path: Path, write: Write, cast: Cast, to: str, with_cast: bool) -> None:
    known = cast if with_cast else None
    source = write("in.jsonl", [MANY])
    (whole,) = read(source, known)
    out = tmp_path / f"out{SUFFIX[to]}"
    done = convert([source], out, to, known)
    characters = ["tang", "wukong", "bajie"] if with_cast else ["tang", "Guard", "wukong", "bajie"]
    assert done.characters == dict.fromkeys(characters, 1)
    for found, character in zip(read(out, known, nobody=None if with_cast else "assistant"), characters, strict=True):
        own = [turn.speaker == character for turn in whole.turns]
        if with_cast:
            messages = view(whole.turns, own, whole.participants, character, cast, whole.scenario)
            expected = [(character if m.role == "assistant" else OTHER, m.text) for m in messages if m.role != "system"]
            assert [(t.speaker, t.text) for t in found.turns] == expected
        assert "".join(t.text for t in found.turns if t.speaker == character) == "".join(
            turn.text for turn, is_own in zip(whole.turns, own, strict=True) if is_own
        )
        assert found.scenario == "A gate."


@pytest.mark.parametrize("to", PAIRS)
def test_converting_again_gives_the_same_dialogues(tmp_path: Path, write: Write, cast: Cast, to: str) -> None:
    outs = [tmp_path / f"{k}{SUFFIX[to]}" for k in range(2)]
    convert([write("in.jsonl", [TWO, OPENS, MANY])], outs[0], to, cast)
    convert([outs[0]], outs[1], to, cast)
    again = [[(s.participants, s.turns, s.scenario) for s in read(out, cast)] for out in outs]
    assert again[0] == again[1]


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)
turns = st.lists(st.tuples(st.sampled_from(["tang", "wukong", "other", "Guard"]), texts), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=turns, scenario=texts | st.just(""))
@pytest.mark.parametrize("to", FORMATS_OUT)
def test_any_scene_comes_back_as_its_views(
    tmp_path: Path, write: Write, cast: Cast, to: str, lines: list[tuple[str, str]], scenario: str
) -> None:
    source = write("in.jsonl", [scene(*lines, scenario=scenario)])
    (before,) = (line.result for line in read_lines(source, cast))
    out = tmp_path / f"out{SUFFIX[to]}"
    if isinstance(before, Rejected):
        with pytest.raises(MrpError, match="no-reply"):
            convert([source], out, to, cast)
        return
    convert([source], out, to, cast)
    after = read(out, cast)
    if to == "scenes":
        assert [(s.participants, s.turns, s.scenario) for s in after] == [
            (before.participants, before.turns, before.scenario)
        ]
        return
    characters = [speaker for speaker in before.speakers() if speaker in ("tang", "wukong")]
    for found, character in zip(after, characters, strict=True):
        own = [turn.speaker == character for turn in before.turns]
        messages = view(before.turns, own, before.participants, character, cast, before.scenario)
        expected = [
            (character if m.role == "assistant" else OTHER, m.text.strip()) for m in messages if m.role != "system"
        ]
        assert [(t.speaker, t.text) for t in found.turns] == expected


@pytest.mark.parametrize("to", FORMATS_OUT)
def test_without_cast_or_names_it_is_the_assistant(tmp_path: Path, write: Write, to: str) -> None:
    system = "You are a helpful assistant.\nBe brief."
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    given = [{"messages": [{"role": "system", "content": system}, *messages]}, {"messages": messages}]
    source = write("in.jsonl", given)
    out = tmp_path / f"out{SUFFIX[to]}"
    done = convert([source], out, to)
    assert (done.characters, done.dropped) == ({"assistant": 2}, {})
    if to == "messages":
        assert [row["messages"] for row in rows(out)] == [row["messages"] for row in given]
    convert([out], tmp_path / "back.jsonl", "messages")
    assert [row["messages"] for row in rows(tmp_path / "back.jsonl")] == [row["messages"] for row in given]


def test_name_in_a_system_text_is_the_character_without_a_cast(tmp_path: Path, write: Write) -> None:
    source = write(
        "in.jsonl", [pair("你是谁？", "俺老孙！", system="孙悟空"), pair("a", "b", system="Mr. Darcy\n\nA ball.")]
    )
    convert([source], tmp_path / "out.jsonl", "sharegpt")
    assert [row["conversations"][0]["value"] for row in rows(tmp_path / "out.jsonl")] == [
        "孙悟空",
        "Mr. Darcy\n\nA ball.",
    ]
    assert [s.scenario for s in read(tmp_path / "out.jsonl", None)] == ["", "A ball."]


def test_narrators_have_no_side_without_a_cast(tmp_path: Path, write: Write) -> None:
    source = write("in.jsonl", [scene(("Environment", "It rains."), ("Iago", "So."), ("旁白", "x"), ("Iago", "Go."))])
    assert convert([source], tmp_path / "out.jsonl", "messages").characters == {"Iago": 1}


# --- Nothing lost silently --------------------------------------------------------------------------------------------


def test_rejected_and_left_out_are_counted_and_kept_beside(tmp_path: Path, write: Write, cast: Cast) -> None:
    late = scene(("tang", "a"), ("other", "b"), ("other", "c"))
    source = write("in.jsonl", ["{", TWO, {"turns": [{"speaker": "x", "text": "y"}]}, late])
    heard = Heard()
    done = convert([source], tmp_path / "out.jsonl", "messages", cast, report=heard)
    assert done.lines == 4 == done.scenes + done.rejected.total()
    assert done.dropped == {"after_last_reply": 2}
    beside = tmp_path / "out.jsonl.rejected.jsonl"
    assert [(row["reason"], row["source"]) for row in rows(beside)] == [
        ("broken-json", f"{source}:1"),
        ("no-reply", f"{source}:3"),
    ]
    assert any(":1 is left out: broken-json" in warning for warning in heard.warnings)
    convert([write("good.jsonl", [TWO])], tmp_path / "out.jsonl", "messages", cast)
    assert not beside.exists()  # it told of another conversion


def test_one_side_alone(tmp_path: Path, write: Write, cast: Cast) -> None:
    source = write("in.jsonl", [MANY, TWO, OPENS, pair("a", "b")])
    done = convert([source], tmp_path / "out.jsonl", "messages", cast, as_="Monkey King")
    assert (done.written, done.other_side, done.characters) == (3, 1, {"wukong": 3})
    assert rows(tmp_path / "out.jsonl")[2]["messages"][0]["content"] == "You are Sun Wukong."
    with pytest.raises(InputError, match="no character 'Monky King'"):
        convert([source], tmp_path / "out.jsonl", "messages", cast, as_="Monky King")


# --- Whole or not at all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS_OUT)
def test_nothing_is_written_where_a_file_cannot_be_read(tmp_path: Path, write: Write, cast: Cast, to: str) -> None:
    out = tmp_path / "out"
    out.write_text("before", encoding="utf-8")
    (tmp_path / "b.png").write_bytes(b"\x89PNG" + bytes(100))
    with pytest.raises(MrpError) as error:
        convert([write("in.jsonl", [TWO, "{"]), tmp_path / "gone.jsonl", tmp_path / "b.png"], out, to, cast)
    assert "gone.jsonl" in str(error.value) and "a PNG picture" in str(error.value)
    with pytest.raises(MrpError, match="no-reply"):
        convert([write("none.jsonl", [scene(("x", "y"))])], out, to, cast)
    assert out.read_text(encoding="utf-8") == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.png", "in.jsonl", "none.jsonl", "out"]


def test_result_may_not_be_a_source(tmp_path: Path, write: Write, cast: Cast) -> None:
    source = write("in.jsonl", [TWO])
    (tmp_path / "link.jsonl").symlink_to(source)
    for out in (source, tmp_path / "link.jsonl"):
        with pytest.raises(InputError, match="written over what is read"):
            convert([source], out, "messages", cast)
    beside = write("out.jsonl.rejected.jsonl", [TWO])
    with pytest.raises(InputError, match="written over what is read"):
        convert([beside], tmp_path / "out.jsonl", "messages", cast)
    assert rows(source) == [TWO]


def test_unknown_format_is_told_with_the_nearest(tmp_path: Path, write: Write) -> None:
    with pytest.raises(InputError, match="did you mean 'sharegpt'"):
        convert([write("in.jsonl", [TWO])], tmp_path / "out", "sharegtp")


# --- The command ------------------------------------------------------------------------------------------------------


def test_command_converts_a_table_with_a_cast(tmp_path: Path) -> None:
    (tmp_path / "cast.yaml").write_text(
        yaml.safe_dump({"characters": [{"id": "wukong", "name": "Sun Wukong", "persona": "You are Sun Wukong."}]}),
        encoding="utf-8",
    )
    (tmp_path / "in.csv").write_text("q,a,who\nWho are you?,Ha!,Sun Wukong\nx,y\n", encoding="utf-8")
    options = [
        "--column",
        "prompt=q",
        "--column",
        "reply=a",
        "--column",
        "character=who",
        "--cast",
        tmp_path / "cast.yaml",
    ]
    done = mrp("data", "convert", tmp_path / "in.csv", tmp_path / "out.jsonl", "--to", "messages", *options, "--json")
    assert done.code == 0
    assert (done.json["written"], done.json["rejected"], done.json["formats"]) == (1, {"broken-row": 1}, {"csv": 2})
    (row,) = rows(tmp_path / "out.jsonl")
    assert [m["content"] for m in row["messages"]] == ["You are Sun Wukong.", "Who are you?", "Ha!"]
    assert row["source"].endswith("in.csv:2")
    bad = mrp("data", "convert", tmp_path / "in.csv", tmp_path / "out.jsonl", "--to", "messages", "--column", "prompt")
    fails(bad, 2, "MEANING=NAME")


def test_real_files_convert_and_come_back(tmp_path: Path, shared: Path) -> None:
    source = shared / "data/emollm-personas/aiwei.json"
    for to in FORMATS_OUT:
        out = tmp_path / f"out{SUFFIX[to]}"
        done = convert([source], out, to)
        assert done.lines == 1600 == done.written
        assert sum(isinstance(line.result, Scene) for line in read_lines(out, None, nobody="assistant")) == 1600
