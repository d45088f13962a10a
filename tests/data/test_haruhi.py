"""Texts as ChatHaruhi has them: NAME:「what is said」, every line a turn, left out and counted, or rejected."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrp.cast import Cast, Character
from mrp.data.detect import detect
from mrp.data.read import ReadLine, read_lines
from mrp.data.record import REASONS, Rejected
from mrp.dialogue import Scene


@pytest.fixture
def haruhi_cast() -> Cast:
    return Cast(language="zh", characters=[Character(id="haruhi", name="春日"), Character(id="kyon", name="阿虚")])


def read(tmp_path: Path, text: str, cast: Cast | None) -> list[ReadLine]:
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    return list(read_lines(path, cast, name="a"))


def turns(line: ReadLine) -> list[tuple[str, str]]:
    assert isinstance(line.result, Scene), line.result
    return [(turn.speaker, turn.text) for turn in line.result.turns]


CLUB = """春日:「社团名字我刚刚已经想到了!」
阿虚：「……那你说来听听啊!」
旁白: SOS是由世界sekai的S所组成.
春日:「我已经想好了，用这个来决定！」(拿出站位)
阿虚:「为什么要叫“团”?」
春日:「本来名称应该是「同好会」！不过叫「团」不是很好吗」
"""


def test_marks_are_taken_off_and_directions_counted(tmp_path: Path, haruhi_cast: Cast) -> None:
    (line,) = read(tmp_path, CLUB, haruhi_cast)
    assert turns(line) == [
        ("haruhi", "社团名字我刚刚已经想到了!"),
        ("kyon", "……那你说来听听啊!"),
        ("旁白", "SOS是由世界sekai的S所组成."),
        ("haruhi", "我已经想好了，用这个来决定！"),
        ("kyon", "为什么要叫“团”?"),
        ("haruhi", "本来名称应该是「同好会」！不过叫「团」不是很好吗"),
    ]
    assert line.dropped == {"stage_direction": 1}
    assert line.kind == "haruhi"
    assert line.result.source == "a:1"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("春日：“好。”", "好。"),
        ("春日: 『好』。", "好"),
        ("春日:「好", "好"),
        ("春日:「好」他说「走」", "「好」他说「走」"),
        ("春日:「好「啊」", "好「啊"),
        ("春日:「好\n走吧」", "好\n走吧"),
        ("春日:「好」\r", "好"),
        ("春日:好", "好"),
    ],
)
def test_what_stands_between_the_marks(tmp_path: Path, haruhi_cast: Cast, line: str, text: str) -> None:
    (found,) = read(tmp_path, f"阿虚:「?」\n{line}\n阿虚:「?」\n阿虚:「!」\n", haruhi_cast)
    assert turns(found)[1] == ("haruhi", text)


def test_empty_lines_part_scenes(tmp_path: Path, haruhi_cast: Cast) -> None:
    one, two = read(tmp_path, "春日:「a」\n阿虚:「b」\n\n\n春日:「c」\n阿虚:「d」\n", haruhi_cast)
    assert turns(one) == [("haruhi", "a"), ("kyon", "b")]
    assert (turns(two), two.result.source) == ([("haruhi", "c"), ("kyon", "d")], "a:5")


def test_where_an_empty_line_follows_each_line_two_part_scenes(tmp_path: Path, haruhi_cast: Cast) -> None:
    lines = [f"春日:「{k}」\n\n阿虚:「{k}」\n\n" for k in range(3)]
    one, two = read(tmp_path, "".join(lines) + "\n" + lines[0], haruhi_cast)
    assert len(turns(one)) == 6
    assert len(turns(two)) == 2


def test_line_that_nobody_says_is_rejected_and_parts_the_scene(tmp_path: Path, haruhi_cast: Cast) -> None:
    one, bad, two = read(tmp_path, "春日:「a」\n他走了\n春日:「b」\n春日:「c」\n", haruhi_cast)
    assert isinstance(bad.result, Rejected)
    assert (bad.result.reason, bad.result.source, bad.result.text) == ("no-speaker", "a:2", "他走了")
    assert (turns(one), turns(two)) == ([("haruhi", "a")], [("haruhi", "b"), ("haruhi", "c")])


def test_scene_of_strangers_is_rejected(tmp_path: Path, haruhi_cast: Cast) -> None:
    (line,) = read(tmp_path, "有希:「…」\n旁白: x\n", haruhi_cast)
    assert isinstance(line.result, Rejected)
    assert line.result.reason == "no-reply"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (CLUB, "haruhi"),
        ("GLOUCESTER:\nNow is the winter\n", "script"),
        ("tang: Peace.\nwukong: Ha!\n", "script"),
        ('{"turns": []}\n', "lines"),
        ("It was night.\nHe said:「go」.\nThen he left.\nAlone.\n", "lines"),
    ],
)
def test_kinds_of_text_are_told_apart(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    assert detect(path) == kind


PIECES = [
    "春日:「好」",
    "阿虚：“走”(笑)",
    "旁白: 夜",
    "春日:「没完",
    "完」",
    "他走了",
    "",
    "",
    "(静)",
    "---",
    "春日:",
    "\x00",
    "\udcff",
    "第一幕",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=30))
def test_every_word_is_kept_rejected_or_counted(tmp_path: Path, haruhi_cast: Cast, pieces: list[str]) -> None:
    text = "\n".join([*(["春日:「始」"] * 20), *pieces])
    found: list[str] = []
    for line in read(tmp_path, text, haruhi_cast):
        if isinstance(line.result, Rejected):
            assert line.result.reason in REASONS
            found.append(line.text)
        else:
            found += [turn.text for turn in line.result.turns]
    kept = "\n".join(found)
    for word in ("好", "走", "夜", "没完", "他走了"):
        assert kept.count(word) >= sum(piece.count(word) for piece in pieces)


@pytest.mark.parametrize("long", ["春日:「" + "x" * 3000 + "」", "\n".join(["春日:「没完", *(["x"] * 40)])])
def test_speech_that_is_too_long_is_rejected_alone(
    tmp_path: Path, haruhi_cast: Cast, monkeypatch: pytest.MonkeyPatch, long: str
) -> None:
    monkeypatch.setattr("mrp.data.haruhi.MAX_LINE_BYTES", 2000)
    text = "春日:「a」\n" * 30 + long + "\n阿虚:「b」\n"
    results = [line.result for line in read(tmp_path, text, haruhi_cast)]
    assert [r.reason for r in results if isinstance(r, Rejected)][:1] == ["too-long"]
    assert isinstance(results[0], Scene) and isinstance(results[-1], Scene)
    assert results[-1].turns[-1].text == "b"


def test_line_behind_the_first_forty_is_read(tmp_path: Path, haruhi_cast: Cast) -> None:
    (line,) = read(tmp_path, "".join(f"春日:「{k}」\n" for k in range(50)), haruhi_cast)
    assert [text for _, text in turns(line)] == [str(k) for k in range(50)]
