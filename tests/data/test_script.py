"""Play scripts: who says what, where scenes begin, nothing lost silently."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrp.cast import Cast
from mrp.data.check import check_data
from mrp.data.read import ReadLine, read_lines
from mrp.data.record import REASONS, Rejected
from mrp.data.script import SCENE_SPEECHES
from mrp.dialogue import Scene


def read(tmp_path: Path, cast: Cast | None, text: str | bytes) -> list[ReadLine]:
    path = tmp_path / "play.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(read_lines(path, cast, name="play.txt"))


def said(line: ReadLine) -> list[tuple[str, str]]:
    assert isinstance(line.result, Scene), line.result
    return [(turn.speaker, turn.text) for turn in line.result.turns]


SPOKEN = [("Guard", "Halt!"), ("wukong", "Out of my way:\nor else.")]
SAME = {
    "name on a line": "Guard:\nHalt!\n\nMONKEY KING:\nOut of my way:\nor else.\n",
    "CRLF, BOM, blanks": "\ufeff\r\n  Guard:\r\n Halt! \r\n\r\nMonkey King:\r\nOut of my way:\r\nor else.",
    "name before the text": "Guard: Halt!\nSun Wukong: Out of my way:\nor else.\n",
    "full-width colon": "Guard：Halt!\n\nwukong： Out of my way:\nor else.",
    "both": "Guard:\nHalt!\n\nwukong: Out of my way:\nor else.\n",
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME.keys())
def test_speeches(tmp_path: Path, cast: Cast, text: str) -> None:
    (line,) = read(tmp_path, cast, text)
    assert said(line) == SPOKEN
    assert isinstance(line.result, Scene)
    assert line.result.participants == ("Guard", "wukong")
    assert (line.kind, dict(line.dropped)) == ("script", {})


@pytest.mark.parametrize(
    "between", ["\n\n", "\nACT II\n\n", "\nSCENE 2. A wood.\n\n", "\n---\n\n", "\n## Later\n\n", "\n第二幕\n\n"]
)
def test_headings_and_empty_lines_part_scenes(tmp_path: Path, cast: Cast, between: str) -> None:
    one, two = read(tmp_path, cast, f"ACT I\n\ntang:\nPeace.\n{between}bajie:\nFood.\n")
    assert (said(one), said(two)) == ([("tang", "Peace.")], [("bajie", "Food.")])
    assert one.result.source == "play.txt:1"
    assert one.dropped["heading"] == 1
    assert two.dropped["heading"] == (between != "\n\n")


def test_long_scene_is_cut(tmp_path: Path, cast: Cast) -> None:
    lines = read(tmp_path, cast, "".join(f"tang:\nLine {k}.\n\n" for k in range(SCENE_SPEECHES * 2 + 1)))
    assert [len(said(line)) for line in lines] == [SCENE_SPEECHES, SCENE_SPEECHES, 1]


def test_stage_directions_and_empty_speeches_are_counted(tmp_path: Path, cast: Cast) -> None:
    text = "[Enter TANG]\n\ntang:\n(aside)\nPeace.\n\nbajie:\n\nGuard:\n[Exit]\n\ntang: [smiles] Go.\n"
    (line,) = read(tmp_path, cast, text)
    assert said(line) == [("tang", "Peace."), ("tang", "[smiles] Go.")]
    assert line.dropped == {"stage_direction": 3, "empty_reply": 1, "empty_prompt": 1}


def test_paragraph_without_a_speaker_is_rejected_and_parts_the_scene(tmp_path: Path, cast: Cast) -> None:
    lines = read(tmp_path, cast, "tang:\nPeace.\n\nHe went away.\nFar away.\n\nbajie:\nFood.\n")
    one, rejected, two = (line.result for line in lines)
    assert isinstance(one, Scene) and isinstance(rejected, Rejected) and isinstance(two, Scene)
    assert (rejected.source, rejected.reason, rejected.text) == (
        "play.txt:4",
        "no-speaker",
        "He went away.\nFar away.",
    )
    assert two.source == "play.txt:7"


def test_bytes_that_are_no_utf8_and_control_characters(tmp_path: Path, cast: Cast) -> None:
    lines = read(tmp_path, cast, b"tang:\nPeace.\n\ntang:\nP\xff.\n\nbajie:\nF\x00.\n\ntang:\nGo.\n")
    reasons = [line.result.reason if isinstance(line.result, Rejected) else "" for line in lines]
    assert reasons == ["", "bad-text", "bad-text", ""]
    for line in lines:
        json.dumps(line.text).encode()


def test_text_that_is_no_script_is_read_as_lines(tmp_path: Path, cast: Cast) -> None:
    (line,) = read(tmp_path, cast, '{"turns": [{"speaker": "tang", "text": "x"}]}\n')
    assert said(line) == [("tang", "x")]
    (line,) = read(tmp_path, cast, "It was a dark night, and he said: go.\n")
    assert isinstance(line.result, Rejected)
    assert line.result.reason == "broken-json"


PIECES = ["tang:", "tang: Peace.", "Guard:", "Go away.", "", "", "ACT I", "[Exit]", "this: that", "\x00", "---"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=30))
def test_every_word_is_kept_rejected_or_counted(tmp_path: Path, cast: Cast, pieces: list[str]) -> None:
    text = "\n".join(["tang:", "First.", "", *pieces])
    found: list[str] = []
    dropped = 0
    for line in read(tmp_path, cast, text):
        dropped += line.dropped["heading"] + line.dropped["stage_direction"]
        if isinstance(line.result, Rejected):
            assert line.result.reason in REASONS
            found.append(line.text)
        else:
            found += [turn.text for turn in line.result.turns]
    rejected_or_kept = "\n".join(found)
    for word in ("Peace.", "Go away.", "that"):
        assert rejected_or_kept.count(word) >= text.count(word)
    written = rejected_or_kept.count("[Exit]") + rejected_or_kept.count("ACT I") + rejected_or_kept.count("---")
    assert dropped + written >= sum(piece in ("[Exit]", "ACT I", "---") for piece in pieces)


def test_novel_is_no_script(tmp_path: Path, cast: Cast) -> None:
    text = "第9回 老龙王\n\n诗曰：都城大国实堪观。\n却说长安城外，有两个人。\n一个是渔翁。\n"
    assert {line.kind for line in read(tmp_path, cast, text)} == {""}


def test_real_play(shared: Path) -> None:
    path = shared / "data" / "shakespeare" / "input.txt"
    report = check_data([path])
    assert report.ok
    kept = sum(len(said(line)) for line in read_lines(path, None))
    blocks = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
    assert kept + report.dropped["empty_reply"] == len(blocks)


@pytest.mark.parametrize("long", ["x" * 3000, "\n".join(["x"] * 60), "bajie: " + "y" * 3000])
def test_paragraph_that_is_too_long_is_rejected_alone(
    tmp_path: Path, cast: Cast, monkeypatch: pytest.MonkeyPatch, long: str
) -> None:
    monkeypatch.setattr("mrp.data.script.MAX_LINE_BYTES", 2000)
    one, rejected, two = (line.result for line in read(tmp_path, cast, f"tang:\nPeace.\n\n{long}\n\ntang:\nGo.\n"))
    assert isinstance(one, Scene) and isinstance(rejected, Rejected) and isinstance(two, Scene)
    assert (rejected.source, rejected.reason, two.source) == (
        "play.txt:4",
        "too-long",
        "play.txt:6" if "\n" not in long else two.source,
    )
