"""Files that are one JSON array, or objects over many lines: every element, its place, in bounded memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from dialogue_rows import pair, scene
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrp.cast import Cast
from mrp.data import window
from mrp.data.array import read_json_array
from mrp.data.detect import detect
from mrp.data.objects import read_json_objects
from mrp.data.read import read_dialogues, read_lines
from mrp.data.record import Rejected
from mrp.dialogue import Scene
from mrp.errors import InputError

MIB = 2**20
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture(params=[2**20, 2, 7])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The window takes in as little at once."""
    monkeypatch.setattr(window, "BLOCK_BYTES", request.param)
    return int(request.param)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(json_values, min_size=1, max_size=6),
    indent=st.sampled_from([None, 0, 1]),
    tail=st.text("\n ", max_size=3),
)
@pytest.mark.usefixtures("block")
def test_elements_are_those_of_the_array(tmp_path: Path, values: list[Any], indent: int | None, tail: str) -> None:
    path = tmp_path / "a.json"
    text = json.dumps(values, ensure_ascii=False, indent=indent) + tail
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    found = list(read_json_array(path))
    assert [line.value for _, line in found] == values
    assert not any(line.fault for _, line in found)
    for _, line in found:
        assert json.loads(line.text) == line.value
        assert text.split("\n")[line.number - 1].find(line.text.split("\n")[0]) >= 0


@pytest.mark.usefixtures("block")
def test_places_count_lines_and_elements_on_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n[1, 2,\n"a\\nb", {"x":\n 3}, 4\n\n,5]\n', encoding="utf-8")
    assert [place for place, _ in read_json_array(path)] == ["2", "2#2", "3", "3#2", "4", "6"]


@pytest.mark.parametrize(
    ("text", "values", "fault"),
    [
        ('[{"a": 1}, {"a": }, {"a": 3}]', [{"a": 1}, None], "Expecting value in line 1"),
        ('[{"a": 1}\n {"a": 2}]', [{"a": 1}, None], '"," or "]" is missing'),
        ('[{"a": 1},\n{"a": 2', [{"a": 1}, None], "in line 2"),
        ('[{"a": 1},\n]', [{"a": 1}, None], "Expecting value in line 2"),
        ('[{"a": 1}] x', [{"a": 1}, None], "after the end"),
        ('["a', [None], "Unterminated string"),
        ("[", [None], "Expecting value"),
        ("[1.5.5]", [1.5, None], '"," or "]" is missing'),
        ("[" + "9" * 5000 + "]", [None], "digits"),
    ],
)
@pytest.mark.usefixtures("block")
def test_broken_array_keeps_what_stands_before(tmp_path: Path, text: str, values: list[Any], fault: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    found = [line for _, line in read_json_array(path)]
    assert [line.value for line in found] == values
    assert fault in found[-1].fault
    assert not any(line.fault for line in found[:-1])


@pytest.mark.usefixtures("block")
def test_number_at_the_edge_of_the_window_is_whole(tmp_path: Path) -> None:
    numbers = [12345678.25, -1e-17, 1234567890123, 0.125]
    path = tmp_path / "a.json"
    for blanks in range(12):
        path.write_text("[" + " " * blanks + ",".join(map(repr, numbers)) + "]", encoding="utf-8")
        assert [line.value for _, line in read_json_array(path)] == numbers


def test_element_that_is_no_utf8_spoils_no_other(tmp_path: Path, cast: Cast) -> None:
    path = tmp_path / "a.json"
    good = json.dumps(pair("a", "b")).encode()
    path.write_bytes(
        b"[" + good + b",\n" + json.dumps(pair("a", "?")).encode().replace(b"?", b"\xe4\xbd") + b",\n" + good + b"]"
    )
    first, bad, last = read_dialogues(path, cast, "tang", name="a")
    assert isinstance(first, Scene) and isinstance(last, Scene) and isinstance(bad, Rejected)
    assert (bad.source, bad.reason) == ("a:2", "broken-json")


@pytest.mark.parametrize("fill", ["x", '\\"]}', "{[", "\\\\"])
def test_element_that_is_too_long_is_passed_alone(
    tmp_path: Path, cast: Cast, monkeypatch: pytest.MonkeyPatch, fill: str
) -> None:
    monkeypatch.setattr(window, "MAX_LINE_BYTES", 2 * MIB)
    path = tmp_path / "a.json"
    long = json.dumps(pair(fill * (4 * MIB // len(fill)), "b"), ensure_ascii=False)
    path.write_text(f"[{json.dumps(pair('a', 'b'))},\n{long},\n{json.dumps(pair('c', 'd'))}]", encoding="utf-8")
    first, bad, last = read_dialogues(path, cast, "tang", name="a")
    assert isinstance(first, Scene) and isinstance(last, Scene) and isinstance(bad, Rejected)
    assert (bad.source, bad.reason, last.source) == ("a:2", "too-long", "a:3")
    assert bad.text.startswith('{"conversation"')


def test_large_array_is_read_in_bounded_memory(tmp_path: Path, cast: Cast) -> None:
    path = tmp_path / "a.json"
    row = json.dumps(pair("你是谁？" * 50, "俺老孙！" * 50), ensure_ascii=False)
    count = 24 * MIB // len(row.encode())
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("[")
        for k in range(count):
            file.write(("," if k else "") + row)  # all on one line
        file.write("]")
    assert detect(path) == "array"
    tracemalloc.start()
    found = sum(isinstance(result, Scene) for result in read_dialogues(path, cast, "tang"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == count
    assert peak < 16 * MIB


def test_empty_array_says_so(tmp_path: Path, cast: Cast) -> None:
    path = tmp_path / "a.json"
    path.write_text(" [ ] ", encoding="utf-8")
    with pytest.raises(InputError, match="the array is empty"):
        list(read_dialogues(path, cast))


# --- Objects ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        st.dictionaries(st.text(max_size=3).filter(lambda k: k != "parts"), json_values, min_size=1),
        min_size=1,
        max_size=3,
    ),
    parts=st.none() | st.lists(json_values, max_size=4),
)
@pytest.mark.usefixtures("block")
def test_objects_and_their_parts_are_all_read(
    tmp_path: Path, values: list[dict[str, Any]], parts: list[Any] | None
) -> None:
    path = tmp_path / "a.json"
    given = [value | ({} if parts is None else {"parts": parts}) for value in values]
    path.write_bytes("\n".join(json.dumps(value, indent=1) for value in given).encode())
    found = [line.value for _, line in read_json_objects(path, ("parts",))]
    assert found == (values if parts is None else parts * len(values))


@pytest.mark.parametrize(
    "text",
    [
        '{\n"a": 1,\n}',
        '{\n"a" 1\n}',
        '{\n"a": 1 "b": 2\n}',
        '{\n"a": [1,\n',
        "{\n1: 2\n}",
        '{\n"a": 1\n} x',
        '{\n"parts": [1,\n',
    ],
)
@pytest.mark.usefixtures("block")
def test_broken_object_is_said_once(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    assert sum(bool(line.fault) for _, line in read_json_objects(path, ("parts",))) == 1


def test_one_dialogue_over_many_lines(tmp_path: Path, cast: Cast) -> None:
    path = tmp_path / "a.json"
    rows = [scene(("tang", "Peace.")), scene(("wukong", "Ha!"))]
    path.write_text("\n".join(json.dumps(row, indent=2) for row in rows), encoding="utf-8")
    results = list(read_lines(path, cast, name="a"))
    assert all(isinstance(line.result, Scene) for line in results)
    assert results[0].result.source == "a:1"
    assert results[1].result.source != "a:1"


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_first_line_that_is_cut_off_costs_no_other(tmp_path: Path, cast: Cast, name: str) -> None:
    path = tmp_path / name
    good = json.dumps(scene(("tang", "Peace.")))
    path.write_text(f'{{"turns": [\n{good}\n{good}\n', encoding="utf-8")
    assert [type(result) for result in read_dialogues(path, cast)] == [Rejected, Scene, Scene]
