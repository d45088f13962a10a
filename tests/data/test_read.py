"""Law 3: every line of a dialogue file becomes a scene, or is rejected with a reason and its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrp.cast import OTHER, Cast
from mrp.data.read import read_dialogues, read_lines
from mrp.data.record import REASONS, Rejected
from mrp.dialogue import Scene, Turn
from mrp.errors import InputError

Write = Callable[[str, Iterable[Any]], Path]


def xtuner(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"conversation": list(turns)}


def read_one(write: Write, cast: Cast | None, row: Any, owner: str | None = None) -> Scene | Rejected:
    results = list(read_dialogues(write("a.jsonl", [row]), cast, owner))
    assert len(results) == 1
    return results[0]


def test_xtuner_record_with_the_name_in_every_turn(write: Write, cast: Cast) -> None:
    row = xtuner(
        {"system": "Sun Wukong", "input": "Who are you?", "output": "Ha!\r\nOld Monkey. "},
        {"system": "Sun Wukong", "input": "And you?", "output": "Still me."},
    )
    result = read_one(write, cast, row, "wukong")
    turns = (Turn(OTHER, "Who are you?"), Turn("wukong", "Ha!\nOld Monkey."), Turn(OTHER, "And you?"))
    assert isinstance(result, Scene)
    assert result.turns == (*turns, Turn("wukong", "Still me."))
    assert result.participants == ("wukong", OTHER)
    assert result.source.endswith("a.jsonl:1")


@pytest.mark.parametrize(
    "system", [None, "", "  ", "sun wukong", "MONKEY KING", "You are a monkey.\nBe rude.", "Nobody"]
)
def test_owner_has_the_lines_whatever_system_says_of_nobody_else(write: Write, cast: Cast, system: str | None) -> None:
    turn = {"input": "Hi", "output": "Ho"} | ({} if system is None else {"system": system})
    result = read_one(write, cast, xtuner(turn), "wukong")
    assert isinstance(result, Scene)
    assert result.turns[1].speaker == "wukong"


def test_line_of_another_character_does_not_end_up_with_the_owner(write: Write, cast: Cast) -> None:
    for name in ("bajie", "Zhu Bajie", "PIGSY"):
        result = read_one(write, cast, xtuner({"system": name, "input": "a", "output": "b"}), "wukong")
        assert isinstance(result, Rejected)
        assert result.reason == "other-character"


def test_without_owner_the_name_is_inherited_from_the_turn_before(write: Write, cast: Cast) -> None:
    row = xtuner({"system": "Pigsy", "input": "a", "output": "b"}, {"input": "c", "output": "d"})
    result = read_one(write, cast, row)
    assert isinstance(result, Scene)
    assert [t.speaker for t in result.turns] == [OTHER, "bajie", OTHER, "bajie"]


@pytest.mark.parametrize("system", [None, "", "Sun Wukon", "You are a helpful assistant.", "other"])
def test_without_owner_system_must_name_a_character(write: Write, cast: Cast, system: str | None) -> None:
    turn = {"input": "Hi", "output": "Ho"} | ({} if system is None else {"system": system})
    result = read_one(write, cast, xtuner(turn))
    assert isinstance(result, Rejected)
    assert result.reason == "unknown-character"
    if system == "Sun Wukon":
        assert "did you mean 'Sun Wukong'?" in result.detail


def test_record_with_two_characters_declares_both(write: Write, cast: Cast) -> None:
    row = xtuner({"system": "Pigsy", "input": "a", "output": "b"}, {"system": "tang", "input": "c", "output": "d"})
    result = read_one(write, cast, row)
    assert isinstance(result, Scene)
    assert result.participants == ("bajie", "tang", OTHER)


def test_empty_texts_are_left_out_and_counted(write: Write, cast: Cast) -> None:
    row = xtuner(
        {"input": "", "output": "I begin."},
        {"input": "One", "output": ""},
        {"input": "Two", "output": " \n "},
        {"input": None, "output": None},
        {"output": "Three"},
    )
    (line,) = read_lines(write("a.jsonl", [row]), cast, "tang")
    assert isinstance(line.result, Scene)
    assert [t.text for t in line.result.turns] == ["I begin.", "One", "Two", "Three"]
    assert line.dropped == {"empty_prompt": 3, "empty_reply": 3}


@pytest.mark.parametrize("turns", [[], [{"input": "a", "output": ""}], [{"input": "a", "output": "  "}]])
def test_record_without_any_reply_is_rejected(write: Write, cast: Cast, turns: list[Any]) -> None:
    result = read_one(write, cast, {"conversation": turns}, "tang")
    assert isinstance(result, Rejected)
    assert result.reason == "no-reply"


def test_own_format_names_become_ids_and_strangers_stay(write: Write, cast: Cast) -> None:
    row = {
        "id": "s1",
        "scenario": "At the river.",
        "turns": [
            {"role": "Monkey King", "text": "Ha!"},
            {"speaker": "Ferryman", "text": "Who calls?"},
            {"speaker": "OTHER", "text": "Me."},
            {"enter": "Pigsy"},
            {"speaker": "zhu bajie", "text": "Food?"},
        ],
    }
    result = read_one(write, cast, row)
    assert isinstance(result, Scene)
    assert (result.id, result.scenario) == ("s1", "At the river.")
    assert [t.speaker for t in result.turns] == ["wukong", "Ferryman", OTHER, "bajie", "bajie"]
    assert result.participants == ("wukong", "Ferryman", OTHER)  # who enters is not there from the start


def test_who_left_comes_back_before_the_next_line(write: Write, cast: Cast) -> None:
    lines: list[dict[str, str]] = [
        {"speaker": "wukong", "text": "Sleep, master."},
        {"leave": "Master"},
        {"speaker": "wukong", "text": "He is gone."},
        {"speaker": "tang", "text": "Is he?"},
    ]
    row = {"participants": ["tang", "wukong"], "turns": lines}
    refused = read_one(write, cast, row)
    assert isinstance(refused, Rejected)
    assert (refused.reason, "speaks after having left" in refused.detail) == ("undeclared-speaker", True)
    lines.insert(3, {"enter": "tang"})
    scene = read_one(write, cast, row)
    assert isinstance(scene, Scene)
    assert scene.turns[1] == Turn("tang", leaves=True)
    assert [turn.row() for turn in scene.turns][1:4] == [{"leave": "tang"}, lines[2], {"enter": "tang"}]


def test_empty_lines_of_a_scene_are_left_out_and_counted(write: Write, cast: Cast) -> None:
    lines = [{"speaker": "tang", "text": " "}, {"speaker": "Guard", "text": ""}, {"speaker": "tang", "text": "Peace."}]
    (line,) = read_lines(write("a.jsonl", [{"turns": lines}]), cast)
    assert isinstance(line.result, Scene)
    assert line.result.turns == (Turn("tang", "Peace."),)
    assert line.dropped == {"empty_prompt": 1, "empty_reply": 1}


def test_speaker_who_neither_is_declared_nor_has_entered_is_refused(write: Write, cast: Cast) -> None:
    lines = [{"speaker": "tang", "text": "a"}, {"speaker": "bajie", "text": "b"}]
    result = read_one(write, cast, {"participants": ["Master", "other"], "turns": lines})
    assert isinstance(result, Rejected)
    assert result.reason == "undeclared-speaker"
    lines.insert(1, {"enter": "bajie"})
    result = read_one(write, cast, {"participants": ["Master", "other"], "turns": lines})
    assert isinstance(result, Scene)
    assert result.participants == ("tang", OTHER)


LINE = {"speaker": "tang", "text": "x"}
BAD = [
    ("broken-json", '{"turns": ['),
    ("broken-json", "not json at all"),
    ("broken-json", '{"turns": [], "id": NaN}'),
    ("wrong-type", "[1, 2]"),
    ("wrong-type", "7"),
    ("wrong-type", "{}"),
    ("wrong-type", {"id": "nothing said"}),
    ("wrong-type", {"conversation": {"input": "a", "output": "b"}}),
    ("wrong-type", {"conversation": ["a", "b"]}),
    ("wrong-type", {"conversation": [{"input": 1, "output": "b"}]}),
    ("wrong-type", {"conversation": [{"input": "a", "output": ["b"]}]}),
    ("wrong-type", {"conversation": [{"system": True, "input": "a", "output": "b"}]}),
    ("wrong-type", {"turns": "tang: hello"}),
    ("wrong-type", {"turns": [LINE, {}]}),
    ("wrong-type", {"turns": [LINE, {"text": "who?"}]}),
    ("wrong-type", {"turns": [LINE, {"speaker": " ", "text": "who?"}]}),
    ("wrong-type", {"turns": [LINE, {"speaker": "tang"}]}),
    ("wrong-type", {"turns": [LINE, {"speaker": "tang", "role": "tang", "text": "x"}]}),
    ("wrong-type", {"turns": [LINE, {"enter": "tang", "text": "x"}]}),
    ("wrong-type", {"turns": [LINE, {"enter": 3}]}),
    ("wrong-type", {"turns": [LINE], "participants": "tang"}),
    ("wrong-type", {"turns": [LINE], "participants": ["tang", 5]}),
    ("wrong-type", {"turns": [LINE], "id": 5}),
    ("wrong-type", {"turns": [LINE], "chapter": [1]}),
    ("unknown-key", {"conversatoin": []}),
    ("unknown-key", {"turns": [LINE], "scenari": "x"}),
    ("unknown-key", {"turns": [{"speaker": "tang", "txt": "x"}]}),
    ("unknown-key", {"conversation": [{"input": "a", "outputs": "b"}]}),
    ("unknown-key", {"conversation": [{"input": "a", "output": "b"}], "turns": []}),
    ("bad-text", {"turns": [{"speaker": "tang", "text": "a\x00b"}]}),
    ("bad-text", {"turns": [{"speaker": "tang", "text": "a\x1b[31mb"}]}),
    ("bad-text", {"turns": [{"speaker": "tang", "text": "a\x85b"}]}),
    ("bad-text", {"turns": [{"speaker": "tang", "text": "old Mac\rline"}]}),
    ("bad-text", {"turns": [{"speaker": "tang\nwukong", "text": "x"}]}),
    ("bad-text", {"turns": [LINE], "scenario": "a\x07"}),
    ("bad-text", {"turns": [LINE], "id": "a\tb"}),
    ("bad-text", '{"turns": [{"speaker": "tang", "text": "half \\ud83d"}]}'),
    ("bad-text", '{"turns": [{"speaker": "tang", "text": "\\udc00 half"}]}'),
    ("bad-text", '{"conversation": [{"input": "a", "output": "\\ud800"}]}'),
    ("no-reply", {"turns": [{"speaker": "Guard", "text": "x"}, {"speaker": "other", "text": "y"}]}),
    ("no-reply", {"turns": [{"enter": "tang"}]}),
    ("no-reply", {"turns": []}),
]


@pytest.mark.parametrize(("reason", "row"), BAD)
def test_bad_line_is_rejected_with_its_reason_and_place(write: Write, cast: Cast, reason: str, row: Any) -> None:
    good = {"turns": [LINE]}
    path = write("a.jsonl", [good, row, "", good])
    results = list(read_dialogues(path, cast, name="dialogues/a.jsonl"))
    assert [type(r) for r in results] == [Scene, Rejected, Scene]
    rejected = results[1]
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.source) == (reason, "dialogues/a.jsonl:2")
    assert rejected.detail
    assert rejected.text == path.read_text(encoding="utf-8").split("\n")[1]
    assert "fix:" in str(rejected.as_error())
    json.dumps(rejected.as_json(), ensure_ascii=False).encode()  # can be written to rejected.jsonl


def test_unknown_key_comes_with_the_nearest_known_one(write: Write, cast: Cast) -> None:
    result = read_one(write, cast, {"turns": [{"speaker": "tang", "texts": "x"}]})
    assert isinstance(result, Rejected)
    assert "did you mean 'text'?" in result.detail


def test_all_faults_of_a_line_are_named_in_one_pass(write: Write, cast: Cast) -> None:
    result = read_one(write, cast, {"turns": [{"speaker": 1, "text": 2}, {"speaker": "tang", "text": "\x00"}]})
    assert isinstance(result, Rejected)
    for place in ("turns[0].speaker", "turns[0].text", "turns[1].text"):
        assert place in result.detail


def test_long_line_is_kept_in_part(write: Write, cast: Cast) -> None:
    result = read_one(write, cast, {"turns": [{"speaker": "Guard", "text": "x" * 9000}]})
    assert isinstance(result, Rejected)
    assert len(result.text) == 2000


def test_bytes_that_are_no_utf8_are_rejected(tmp_path: Path, cast: Cast) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"turns":[{"speaker":"tang","text":"你好"}]}\n'.encode("gbk"))
    (result,) = read_dialogues(path, cast)
    assert isinstance(result, Rejected)
    assert result.reason == "broken-json"


def test_bom_and_crlf_files_are_read(tmp_path: Path, cast: Cast) -> None:
    path = tmp_path / "a.jsonl"
    row = json.dumps(xtuner({"input": "a", "output": "b"})).encode()
    path.write_bytes(b"\xef\xbb\xbf" + row + b"\r\n\r\n" + row + b"\r\n")
    results = list(read_dialogues(path, cast, "tang"))
    assert [r.source.rpartition(":")[2] for r in results] == ["1", "3"]
    assert all(isinstance(r, Scene) for r in results)


def test_file_that_cannot_be_used_raises(tmp_path: Path, cast: Cast) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"\n \n")
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("missing.jsonl", "empty.jsonl", "folder.jsonl"):
        with pytest.raises(InputError, match=r"where: .*" + name):
            list(read_dialogues(tmp_path / name, cast))


def test_without_a_cast_the_names_are_taken_as_they_are(write: Write) -> None:
    result = read_one(write, None, xtuner({"system": "HAMLET", "input": "a", "output": "b"}))
    assert isinstance(result, Scene)
    assert result.participants == ("HAMLET", OTHER)
    result = read_one(write, None, {"turns": [{"speaker": "other", "text": "x"}]})
    assert isinstance(result, Rejected)
    assert result.reason == "no-reply"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["input", "output", "x"]), inner),
    max_leaves=5,
)
TURN_KEYS = ("speaker", "role", "text", "enter", "system")
odd_turns = st.fixed_dictionaries({}, optional=dict.fromkeys(TURN_KEYS, json_values))
odd_rows = st.fixed_dictionaries(
    {},
    optional={"turns": st.lists(odd_turns) | json_values, "conversation": json_values, "participants": json_values},
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=odd_rows, owner=st.sampled_from([None, "tang"]))
def test_no_line_whatever_makes_reading_fail(tmp_path: Path, cast: Cast, row: Any, owner: str | None) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (result,) = read_dialogues(path, cast, owner)
    if isinstance(result, Rejected):
        assert result.reason in REASONS
        json.dumps(result.as_json(), ensure_ascii=False).encode()


def test_original_samples_all_have_a_reply(shared: Path) -> None:
    lines = list(read_lines(shared / "data/xiyou-original-samples/samples.jsonl", None))
    assert len(lines) == 13
    assert all(isinstance(line.result, Scene) for line in lines)
    assert sum(line.dropped["empty_reply"] for line in lines) == 19  # as counted in the printed training sample
    assert sum(line.dropped["empty_prompt"] for line in lines) == 1


def test_real_scenes_are_kept_or_have_only_strangers(shared: Path) -> None:
    results = list(read_dialogues(shared / "data/xiyou/scenes.jsonl", None))
    assert len(results) == 1144
    assert {r.reason for r in results if isinstance(r, Rejected)} == {"no-reply"}
