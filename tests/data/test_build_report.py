"""What a build says of lines that it could not use."""

from __future__ import annotations

from pathlib import Path

from heard import Heard

from mrp.config import load_run
from mrp.data.build import build_data
from mrp.data.manifest import SHOWN_REJECTED
from mrp.dialogue import read_json_lines

GOOD = '{"turns":[{"speaker":"other","text":"Hi"},{"speaker":"ada","text":"Yes."}]}\n'
CAST = "characters: [{id: ada, name: Ada, dialogues: [ada.jsonl]}]\n"


def test_rejected_lines_are_named_the_first_ones_and_then_the_place_of_all(tmp_path: Path) -> None:
    (tmp_path / "cast.yaml").write_text(CAST, encoding="utf-8")
    (tmp_path / "mrp.yaml").write_text("data: {held_out: 0}\n", encoding="utf-8")
    (tmp_path / "ada.jsonl").write_text(GOOD + "{broken\n" * (SHOWN_REJECTED + 2), encoding="utf-8")
    run, heard = load_run(tmp_path / "mrp.yaml"), Heard()
    build_data(run, heard)
    assert [w.split(" is left out")[0] for w in heard.warnings[:SHOWN_REJECTED]] == [
        f"ada.jsonl:{line}" for line in range(2, SHOWN_REJECTED + 2)
    ]
    assert "2 more lines" in heard.warnings[-1] and str(run.data / "rejected.jsonl") in heard.warnings[-1]
    assert len(list(read_json_lines(run.data / "rejected.jsonl"))) == SHOWN_REJECTED + 2


def test_a_broken_line_is_named_before_many_repeats(tmp_path: Path) -> None:
    (tmp_path / "cast.yaml").write_text(CAST, encoding="utf-8")
    (tmp_path / "mrp.yaml").write_text("data: {held_out: 0}\n", encoding="utf-8")
    (tmp_path / "ada.jsonl").write_text(GOOD * 30 + "{broken\n" + GOOD, encoding="utf-8")
    run, heard = load_run(tmp_path / "mrp.yaml"), Heard()
    build_data(run, heard)
    assert heard.warnings[0].startswith("ada.jsonl:31 is left out: broken-json")
    assert heard.warnings[1].startswith("ada.jsonl:2 is left out: duplicate")
