"""The page of a check: it says what was found, with the names of the cast, and survives any text."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrp.cast import OTHER, Cast, Character
from mrp.data.lint import FINDINGS, SHOWN_EXAMPLE, Example, Linter
from mrp.data.record import Rejected
from mrp.data.tally import Tally
from mrp.dialogue import Scene, Turn

pytest.importorskip("matplotlib", reason="the plots of reports need matplotlib (extra report)")

from mrp.data.report_page import SHOWN, write_report

CAST = Cast(language="zh", characters=[Character(id="swk", name="孙悟空"), Character(id="zbj", name="猪八戒<b>")])


def checked(scenes: list[Scene]) -> tuple[Tally, list[Example]]:
    linter, tally, found = Linter(CAST), Tally(), list[Example]()
    for scene in scenes:
        tally.lines += 1
        tally.formats["scene"] += 1
        findings = linter.lint(scene)
        tally.add(scene, findings, linter.is_character)
        found += [Example.of(scene, finding) for finding in findings]
    return tally, found


def scene(k: int, text: str, speaker: str = "swk") -> Scene:
    turns = (Turn("Guard <i>", f"谁在那里？{k}"), Turn(speaker, text))
    return Scene(f"s{k}", ("Guard <i>", speaker), turns, source=f"a.jsonl:{k}")


SCENES = [
    *[scene(k, f"俺老孙來也，你们莫怕！{k}") for k in range(5)],
    scene(7, "作为一个AI，我没有感情。"),
    scene(8, "哥啊，" * 20, "zbj"),
]


def test_the_page_tells_what_was_found(tmp_path: Path) -> None:
    tally, found = checked(SCENES)
    tally.lines += 3
    tally.rejected.update({"no-reply": 2, "duplicate": 1})
    tally.duplicates.update({"exact": 1})
    tally.dropped_turns.update({"empty_reply": 4})
    rejected = [Rejected("a.jsonl:20", "no-reply", "nobody <says> anything", '{"turns": []}')]
    found.append(Example("f.jsonl:9", "repeats", "0.91 like f.jsonl:2"))  # as checking tells of near-duplicates
    path = tmp_path / "report.html"
    write_report(path, tally, rejected, found, "我的 <dialogues>", CAST)
    text = path.read_text(encoding="utf-8")
    assert "10 lines read, 7 usable" in text
    for words in (
        "孙悟空",
        "猪八戒&lt;b&gt;",
        "Guard &lt;i&gt;",
        "nobody &lt;says&gt; anything",
        "我的 &lt;dialogues&gt;",
    ):
        assert words in text
    for reason in ("mixed-script", "assistant-ism"):
        assert FINDINGS[reason].meaning in text and FINDINGS[reason].fix in text
    assert FINDINGS["assistant-ism"].mended in text
    assert text.count("俺老孙來也") == SHOWN, "the first few examples, not all"
    assert "empty reply" in text and "Duplicates by kind" in text and "<td>10.0 %</td>" in text and "f.jsonl:9" in text
    assert "http" not in text and "<script" not in text
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    before = path.read_bytes()
    write_report(path, Tally.from_json(tally.as_json()), rejected, found, "我的 <dialogues>", CAST)
    assert path.read_bytes() == before, "the same numbers, the same page"


def test_a_page_of_nothing_is_a_page(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", Tally(), [], [], "Nothing")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "0 lines read" in text and "Lint found nothing." in text and "<svg" not in text


def test_ids_stand_for_names_without_a_cast_and_imbalance_is_told(tmp_path: Path) -> None:
    tally, found = checked([*SCENES, *SCENES, scene(9, "俺" * 300)])
    assert tally.imbalances()
    write_report(tmp_path / "r.html", tally, [], found, "x")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert ">swk<" in text and "孙悟空" not in text and FINDINGS["imbalance"].fix in text


def test_of_many_characters_the_largest_are_shown(tmp_path: Path) -> None:
    tally = Tally()
    for k in range(40):
        tally.add(scene(k, "俺" * (k + 1), f"who-{k:02}"), [], lambda speaker: speaker.startswith("who"))
    write_report(tmp_path / "r.html", tally, [], [], "x")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "who-39" in text and "who-00" not in text and "The 14 largest are shown, of 40." in text


def test_an_example_shows_the_place_that_matters() -> None:
    text = "好。" * 200 + "作为一个AI，我没有感情。" + "好。" * 200
    linter = Linter(CAST)
    one = Scene("s", (OTHER,), (Turn(OTHER, "?"), Turn("swk", text)), source="f:1")
    (finding,) = linter.lint(one)
    example = Example.of(one, finding)
    assert finding.detail in example.text and len(example.text) <= SHOWN_EXAMPLE + 2
    assert example.text.startswith("…") and example.text.endswith("…")
    assert (example.source, example.reason) == ("f:1", "assistant-ism")
