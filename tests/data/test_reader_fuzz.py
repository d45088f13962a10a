"""Every reader on files of any bytes, and on good files that something happened to: an `InputError`, or a scene or a
reason for everything in them. What was found this way is at the end, by name."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dialogue_rows import pair, scene
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import changed, changes

from mrp.cast import Cast
from mrp.data import stream, window
from mrp.data.convert import FORMATS_OUT, convert
from mrp.data.detect import detect
from mrp.data.read import ReadLine, read_lines
from mrp.data.record import REASONS, Rejected
from mrp.dialogue import Scene
from mrp.errors import InputError, MrpError

CHAT = [
    {"user_name": "Ann", "character_name": "Monkey King", "chat_metadata": {}},
    {"name": "Ann", "is_user": True, "mes": "Hi."},
    {"name": "Monkey King", "is_user": False, "mes": "Ha!", "swipes": ["Ha!", "Ho!"]},
]
BOOK = {
    "plots": [
        {
            "summary": "s",
            "key_characters": [],
            "conversation": [
                {
                    "scenario": "x",
                    "key_characters": [{"name": "tang"}],
                    "dialogues": [{"character": "tang", "message": "[a] b"}],
                }
            ],
        }
    ]
}
ROWS = [
    scene(("tang", "Peace."), ("Guard", "No."), "bajie", ("bajie", "Food?"), id="s", scenario="x"),
    pair("你是谁？", "俺老孙！", system="wukong"),
    {
        "messages": [
            {"role": "system", "content": "wukong"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ]
    },
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "tang"},
    {"instruction": "a", "input": "", "output": "b", "history": [["c", "d"]]},
    {"prompt": "a", "completion": "b"},
]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[list[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def parquet() -> bytes:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    out = io.BytesIO()
    messages = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 5
    pq.write_table(pa.table({"messages": messages, "character": ["tang"] * 5}), out)
    return out.getvalue()


GOOD: dict[str, Callable[[], bytes]] = {
    "lines.jsonl": lambda: jsonl(ROWS),
    "array.json": lambda: json.dumps(ROWS, indent=1, ensure_ascii=False).encode(),
    "object.json": lambda: json.dumps(ROWS[0], indent=1).encode() * 2,
    "book.json": lambda: json.dumps(BOOK, indent=1).encode(),
    "books.jsonl": lambda: jsonl([BOOK, BOOK]),
    "chat.jsonl": lambda: jsonl(CHAT),
    "script.txt": lambda: b"ACT I\n\ntang:\nPeace.\n\n[Exit]\n\nGuard: No.\n\n\nbajie:\nFood?\nMore.\n",
    "haruhi.txt": lambda: "tang:「善哉」\n旁白: 夜\nbajie：“饿”(叹气)\n\nwukong:「呵\n呵」\n".encode(),
    "pairs.csv": lambda: table([["prompt", "reply", "system"], ["a", "b\nc", "tang"], ["你", '"x"', "wukong"]]),
    "lines.csv": lambda: table([["scene", "speaker", "text"], ["1", "tang", "a"], ["1", "x", "b"], ["2", "tang", "c"]]),
    "messages.parquet": parquet,
    "lines.jsonl.gz": lambda: gzip.compress(jsonl(ROWS)),
    "array.json.zst": lambda: pytest.importorskip("zstandard").ZstdCompressor().compress(json.dumps(ROWS).encode()),
}
PIECES = [
    *(
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\n",
        b"\r",
        b"\n\n\n",
        b"\\",
        b"\\ud800",
        b"\xff",
        b"\xed\xa0\x80",
        b"\0",
    ),
    *(
        b"null",
        b"1e999",
        b"NaN",
        b"[" * 2000,
        b'{"a":' * 2000,
        b"9" * 5000,
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd",
        b"PAR1",
        b"---",
    ),
    *(
        "「」『“".encode(),
        "：".encode(),
        stream.BOM,
        b'"turns"',
        b'"conversation"',
        b'"plots"',
        b"tang:",
        b"\x85",
        b" ",
    ),
]


def read_all(path: Path, cast: Cast | None, owner: str | None = None) -> list[ReadLine]:
    """What is in a file, each of it fit to be written; [] for one that cannot be used, which is told."""
    try:
        lines = list(read_lines(path, cast, owner, name="f"))
    except InputError as error:
        assert error.what and error.fix
        return []
    for line in lines:
        json.dumps(line.text, ensure_ascii=False).encode()
        if isinstance(line.result, Rejected):
            assert line.result.reason in REASONS
            assert line.result.detail
            json.dumps(line.result.as_json(), ensure_ascii=False).encode()
        else:
            assert any(turn.text for turn in line.result.turns)
            for turn in line.result.turns:
                turn.text.encode()
                turn.speaker.encode()
    assert len({line.result.source for line in lines}) == len(lines)
    if (
        lines
        and detect(path) == "lines"
        and not any(line.kind == "coser" for line in lines)
        and path.suffix not in (".gz", ".zst")
    ):
        assert len(lines) == sum(bool(line.strip()) for line in path.read_bytes().removeprefix(stream.BOM).split(b"\n"))
    return lines


@pytest.mark.parametrize("name", GOOD)
def test_good_file_is_read(tmp_path: Path, cast: Cast, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(GOOD[name]())
    lines = read_all(path, cast, None)
    assert sum(isinstance(line.result, Scene) for line in lines) > 0


@pytest.mark.parametrize("name", GOOD)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=changes(PIECES), owner=st.sampled_from([None, "tang"]), with_cast=st.booleans())
def test_changed_file_is_read_or_refused(
    tmp_path: Path, cast: Cast, name: str, steps: list[Any], owner: str | None, with_cast: bool
) -> None:
    path = tmp_path / name
    path.write_bytes(changed(GOOD[name](), steps))
    read_all(path, cast if with_cast else None, owner)


@pytest.mark.parametrize("name", ["a", "a.jsonl", "a.json", "a.txt", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300) | st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join))
def test_any_bytes_are_read_or_refused(tmp_path: Path, cast: Cast, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    read_all(path, cast, "tang")


@pytest.mark.parametrize("name", ["array.json", "object.json", "book.json"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=changes(PIECES), block=st.integers(1, 200))
def test_window_of_any_size_gives_the_same(tmp_path: Path, cast: Cast, name: str, steps: list[Any], block: int) -> None:
    path = tmp_path / name
    path.write_bytes(changed(GOOD[name](), steps))
    whole = [(line.text, line.result) for line in read_all(path, cast)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "BLOCK_BYTES", block)
        assert [(line.text, line.result) for line in read_all(path, cast)] == whole


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(GOOD)), steps=changes(PIECES), to=st.sampled_from(FORMATS_OUT))
def test_what_was_converted_is_good(tmp_path: Path, cast: Cast, name: str, steps: list[Any], to: str) -> None:
    path, out = tmp_path / name, tmp_path / f"out{'.parquet' if to == 'parquet' else '.jsonl'}"
    out.unlink(missing_ok=True)
    path.write_bytes(changed(GOOD[name](), steps))
    for known in (cast, None):
        try:
            done = convert([path], out, to, known)
        except MrpError:
            assert known or not out.exists() or out.stat().st_size
            continue
        assert done.lines == done.scenes + done.rejected.total()
        back = [line.result for line in read_lines(out, known, nobody=None if known else "assistant")]
        assert len(back) == done.written
        assert all(isinstance(result, Scene) for result in back), [r for r in back if isinstance(r, Rejected)]


# --- Found ------------------------------------------------------------------------------------------------------------


def test_lone_surrogate_in_a_key_of_a_book(tmp_path: Path, cast: Cast) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([BOOK]).replace(b'"scenario"', b'"scen\\ud800"') + jsonl([BOOK]))
    assert len(read_all(path, cast)) == 2


def test_rejected_paragraph_with_a_direction_in_it_is_told_once(tmp_path: Path, cast: Cast) -> None:
    path = tmp_path / "a.txt"
    path.write_text("tang:\nPeace.\n\n\n[Exit]\nHe goes.\n\ntang:\nGo.\n", encoding="utf-8")
    assert [line.result.source for line in read_all(path, cast)] == ["f:1", "f:5", "f:8"]


def test_window_that_takes_in_one_byte_at_a_time_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "BLOCK_BYTES", 1)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS[:1], indent=1), encoding="utf-8")
    assert len(read_all(path, None)) == 1


def test_frame_of_nothing_but_line_ends_takes_little_memory(tmp_path: Path) -> None:
    packer = pytest.importorskip("zstandard").ZstdCompressor()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(packer.compress(b"\n" * (32 * 2**20)))
    with stream.open_stream(path) as opened:
        assert max(len(batch.lines) for batch in stream.line_batches(opened)) <= stream.BLOCK_BYTES
