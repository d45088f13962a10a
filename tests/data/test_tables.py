"""CSV, TSV and Parquet: columns told by name or mapping, a row kept or rejected with its place."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from dialogue_rows import pair
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrp.cast import OTHER, Cast
from mrp.data.columns import choose_columns
from mrp.data.read import ReadLine, read_lines
from mrp.data.record import Rejected
from mrp.dialogue import Scene, Turn
from mrp.errors import InputError, MrpError

SAID = (Turn(OTHER, "Who are you?"), Turn("wukong", "Ha!"))
MESSAGES = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "Ha!"}]
Table = Callable[[Sequence[str], Iterable[Sequence[Any]]], Path]


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]], delimiter: str = ",") -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


@pytest.fixture(params=["a.csv", "a.tsv", "semicolons.csv", "a.csv.gz", "a.parquet"])
def table(tmp_path: Path, request: pytest.FixtureRequest) -> Table:
    """Writes a table; lists become JSON in CSV."""

    def write(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
        path = tmp_path / request.param
        if path.suffix == ".parquet":
            pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            pq.write_table(pa.table({name: [row[k] for row in rows] for k, name in enumerate(head)}), path)
            return path
        cells = [[c if isinstance(c, str) else "" if c is None else json.dumps(c) for c in row] for row in rows]
        delimiter = "\t" if ".tsv" in path.name else ";" if "semi" in path.name else ","
        data = csv_text(head, cells, delimiter).encode("utf-8-sig")
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        return path

    return write


def results(path: Path, cast: Cast | None, owner: str | None = None, **more: Any) -> list[ReadLine]:
    return list(read_lines(path, cast, owner, name="t", **more))


def one(path: Path, cast: Cast | None, owner: str | None = None, **more: Any) -> Any:
    (line,) = results(path, cast, owner, **more)
    return line.result


SAME: dict[str, tuple[Sequence[str], Sequence[Any]]] = {
    "prompt and reply": (["id", "Prompt", "Response", "score"], ["7", "Who are you?", "Ha!", "0.5"]),
    "question and answer": (["question", "answer"], ["Who are you?", "Ha!"]),
    "alpaca": (["instruction", "input", "output"], ["Who are you?", "", "Ha!"]),
    "with system": (["input", "output", "system"], ["Who are you?", "Ha!", "You are Sun Wukong."]),
    "with character": (["prompt", "reply", "character", "system"], ["Who are you?", "Ha!", "Monkey King", ""]),
    "messages": (["messages", "prompt"], [MESSAGES, "Who are you?"]),
    "sharegpt": (["conversations"], [[{"from": "human", "value": "Who are you?"}, {"from": "gpt", "value": "Ha!"}]]),
    "xtuner": (["conversation"], [pair("Who are you?", "Ha!")["conversation"]]),
    "history": (["query", "response", "history"], ["Who are you?", "Ha!", []]),
}


@pytest.mark.parametrize("name", SAME)
def test_every_kind_of_table_gives_the_same_scene(table: Table, cast: Cast, name: str) -> None:
    head, row = SAME[name]
    result = one(table(head, [row]), cast, "wukong")
    assert isinstance(result, Scene), result
    assert (result.turns, result.participants, result.source[:2]) == (SAID, ("wukong", OTHER), "t:")


def test_mapping_says_what_names_do_not(table: Table, cast: Cast) -> None:
    path = table(["q", "a", "who", "prompt"], [["Who are you?", "Ha!", "Monkey King", "not this"]])
    columns = {"prompt": "q", "reply": "a", "character": "who"}
    result = one(path, cast, columns=columns)
    assert isinstance(result, Scene) and result.turns == SAID


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"promt": "q", "reply": "a"}, ["'promt'", "did you mean 'prompt'?"]),
        ({"prompt": "qq", "reply": "a"}, ["'qq'", "did you mean 'q'?"]),
        ({"promt": "q", "reply": "b"}, ["'promt'", "'b'", "2 faults"]),
        ({"prompt": "q", "text": "a"}, ["no dialogue is found", "'q', 'a'"]),
        (None, ["no dialogue is found in the columns 'q', 'a'", "--column prompt="]),
    ],
)
def test_wrong_mapping_is_told(table: Table, cast: Cast, columns: dict[str, str] | None, words: list[str]) -> None:
    path = table(["q", "a"], [["x", "y"]])
    with pytest.raises(MrpError) as error:
        one(path, cast, columns=columns)
    for word in words:
        assert word in str(error.value)


def test_character_column_says_whose_the_reply_is(table: Table, cast: Cast) -> None:
    rows = [["a", "b", "Pigsy", "x"], ["a", "b", "Nobody", "x"], ["a", "b", "", "x"], ["a", "b", "tang", "Be kind."]]
    path = table(["prompt", "reply", "character", "system"], rows)
    found = [line.result for line in results(path, cast)]
    assert [r.turns[1].speaker if isinstance(r, Scene) else r.reason for r in found] == [
        "bajie",
        "unknown-character",
        "unknown-character",
        "tang",
    ]
    found = [line.result for line in results(path, cast, "bajie")]
    assert [isinstance(r, Scene) or r.reason for r in found] == [True, "unknown-character", True, "other-character"]


def test_rows_of_a_scene_become_one(table: Table, cast: Cast) -> None:
    rows = [["s1", "Pigsy", "Food?"], ["s1", "Guard", "No."], ["s2", "Master", "Peace."], ["s3", "Guard", "x"]]
    first, second, third = (line.result for line in results(table(["scene_id", "speaker", "text"], rows), cast))
    assert isinstance(first, Scene) and isinstance(second, Scene) and isinstance(third, Rejected)
    assert (first.id, first.turns) == ("s1", (Turn("bajie", "Food?"), Turn("Guard", "No.")))
    assert (second.id, second.turns) == ("s2", (Turn("tang", "Peace."),))
    assert (third.reason, third.source) == ("no-reply", {"csv": "t:5", "parquet": "t:4"}[results_kind(first)])


def results_kind(scene: Scene) -> str:
    return "csv" if scene.source == "t:2" else "parquet"


def test_rows_with_roles_are_messages(table: Table, cast: Cast) -> None:
    rows = [["1", "user", "Who are you?"], ["1", "assistant", "Ha!"]]
    result = one(table(["conversation_id", "role", "content"], rows), cast, "wukong")
    assert isinstance(result, Scene) and result.turns == SAID


def test_rows_without_a_scene_are_cut_into_scenes(table: Table, cast: Cast) -> None:
    path = table(["speaker", "line"], [["tang", str(k)] for k in range(45)])
    assert [len(line.result.turns) for line in results(path, cast) if isinstance(line.result, Scene)] == [20, 20, 5]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=5))
def test_every_row_is_a_scene_or_rejected(table: Table, cast: Cast, rows: list[tuple[str, str]]) -> None:
    rows = [tuple(cell.encode("utf-8", "replace").decode() for cell in row) for row in rows]
    shown = [row for row in rows if any(cell.strip() for cell in row)]
    found = results(table(["prompt", "reply"], rows), cast, "tang") if shown else []
    if found and found[0].kind == "parquet":
        assert len(found) == len(rows)
    elif found and not any("\r" in cell for row in rows for cell in row):
        assert len(found) == len(shown)
    for line in found:
        if isinstance(line.result, Scene):
            assert any(t.text == reply.replace("\r\n", "\n").strip() for t in line.result.turns for _, reply in rows)


# --- CSV alone --------------------------------------------------------------------------------------------------------


def write(tmp_path: Path, text: str | bytes, name: str = "a.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_quoted_line_ends_and_places(tmp_path: Path, cast: Cast) -> None:
    text = 'prompt,reply\r\n"a\r\nb",c\r\n\r\n"say ""hi""",d\r\ne,"f, g"\r\n'
    found = [line.result for line in results(write(tmp_path, text), cast, "tang")]
    assert [r.source for r in found] == ["t:2", "t:5", "t:6"]
    assert [[t.text for t in r.turns] for r in found if isinstance(r, Scene)] == [
        ["a\nb", "c"],
        ['say "hi"', "d"],
        ["e", "f, g"],
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a", "broken-row"),
        ("a,b,c", "broken-row"),
        ('"a"x,b', "broken-row"),
        ("a,\udcff", "bad-text"),
        ("a,\x00", "bad-text"),
        (",", None),
        ("", None),
        (" , ", None),
        ("a,", "no-reply"),
    ],
)
def test_bad_row_is_rejected_alone(tmp_path: Path, cast: Cast, row: str, reason: str | None) -> None:
    text = f"prompt,reply\nx,y\n{row}\nz,w\n".encode("utf-8", "surrogateescape")
    first, *bad, last = (line.result for line in results(write(tmp_path, text), cast, "tang"))
    assert isinstance(first, Scene) and isinstance(last, Scene)
    assert [(r.source, r.reason) for r in bad if isinstance(r, Rejected)] == ([("t:3", reason)] if reason else [])


def test_quote_that_is_never_closed_is_one_rejected_row(tmp_path: Path, cast: Cast) -> None:
    first, bad = (line.result for line in results(write(tmp_path, 'prompt,reply\na,b\n"c,d\ne,f\ng,h\n'), cast, "tang"))
    assert isinstance(first, Scene) and isinstance(bad, Rejected)
    assert (bad.reason, bad.source) == ("broken-row", "t:3")
    assert bad.text == '"c,d\ne,f\ng,h'


def test_row_that_is_too_long_is_rejected_alone(tmp_path: Path, cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrp.data.stream.MAX_LINE_BYTES", 2**20)
    monkeypatch.setattr("mrp.data.csvfile.MAX_LINE_BYTES", 2**20)
    rows = [
        "prompt,reply",
        "a,b",
        f"{'x' * 3 * 2**20},y",
        f'"{"z" * 2**19}',
        f"{'z' * 2**19}",
        f'{"z" * 2**19}",y',
        "c,d",
    ]
    found = [line.result for line in results(write(tmp_path, "\n".join(rows)), cast, "tang")]
    assert [r.reason if isinstance(r, Rejected) else "" for r in found] == ["", "too-long", "too-long", ""]
    assert [r.source for r in found] == ["t:2", "t:3", "t:4", "t:7"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"prompt,reply\n", "no rows"),
        (b'prompt,"reply\n', "head of the table is broken"),
        (b"prompt,prompt\na,b\n", "two columns are called 'prompt'"),
        ("问题,prompt,reply\n".encode("gbk"), "not UTF-8"),
        (b"a,b\n1,2\n", "no dialogue is found in the columns 'a', 'b'"),
    ],
)
def test_table_that_cannot_be_used_raises(tmp_path: Path, cast: Cast, text: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        results(write(tmp_path, text), cast, "tang")
    assert error.value.fix


# --- Parquet alone ----------------------------------------------------------------------------------------------------


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_damaged_parquet_says_so(tmp_path: Path, cast: Cast) -> None:
    path = parquet(tmp_path / "a.parquet", {"prompt": [f"p{k}" * 50 for k in range(2000)], "reply": ["r"] * 2000})
    whole = path.read_bytes()
    for data in (
        whole[:-1],
        whole[: len(whole) // 2],
        whole[:4],
        b"PAR1" + whole[200:],
        whole[:300] + bytes(900) + whole[1200:],
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match="damaged Parquet"):
            results(path, cast, "tang")


def test_wrong_types_in_parquet_are_rejected_rows(tmp_path: Path, cast: Cast) -> None:
    pa = pytest.importorskip("pyarrow")
    path = parquet(tmp_path / "a.parquet", {"prompt": ["a", None, "c"], "reply": [1, 2, 3]})
    assert [line.result.reason for line in results(path, cast, "tang")] == ["wrong-type"] * 3
    bad = pa.array([b"ok", b"\xff", b"ok"], pa.binary()).view(pa.string())
    path = parquet(tmp_path / "b.parquet", {"prompt": ["a", "b", "c"], "reply": bad})
    found = [line.result for line in results(path, cast, "tang")]
    assert [r.reason if isinstance(r, Rejected) else r.source for r in found] == ["t:1", "bad-text", "t:3"]


def test_fields_that_only_other_rows_fill_are_no_faults(tmp_path: Path, cast: Cast) -> None:
    messages = [[MESSAGES[0] | {"name": None, "tool_calls": None, "odd": None}, MESSAGES[1]]]
    result = one(parquet(tmp_path / "a.parquet", {"messages": messages}), cast, "wukong")
    assert isinstance(result, Scene) and result.turns == SAID


def test_large_row_group_is_read_in_bounded_memory(tmp_path: Path, cast: Cast) -> None:
    count = 20_000
    texts = [f"{k} " + "x" * 1000 for k in range(count)]
    path = parquet(tmp_path / "a.parquet", {"prompt": texts, "reply": texts, "notes": texts}, compression="zstd")
    del texts
    tracemalloc.start()
    assert sum(isinstance(line.result, Scene) for line in read_lines(path, cast, "tang")) == count
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2**20


# --- Columns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "kind", "of"),
    [
        (
            ["Instruction", "Input", "Output"],
            "exchange",
            {"prompt": "Instruction", "input": "Input", "reply": "Output"},
        ),
        (["input", "output"], "exchange", {"prompt": "input", "reply": "output"}),
        (["role", "content"], "lines", {"speaker": "role", "text": "content"}),
        (["Scene ID", "character", "line"], "lines", {"scene": "Scene ID", "speaker": "character", "text": "line"}),
        (["prompt", "messages", "id"], "messages", {"messages": "messages"}),
    ],
)
def test_columns_are_known_by_their_names(names: list[str], kind: str, of: dict[str, str]) -> None:
    columns = choose_columns(names, None, "t")
    assert (columns.kind, columns.of) == (kind, of)


def test_scene_of_rows_may_carry_its_scenario(tmp_path: Path, cast: Cast) -> None:
    text = csv_text(["scene", "scenario", "speaker", "text"], [["1", "Dusk.", "tang", "Peace."]])
    result = one(write(tmp_path, text), cast)
    assert isinstance(result, Scene) and result.scenario == "Dusk."
