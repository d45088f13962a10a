"""The field's formats: whose every text is, what is refused, and nothing lost silently."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from dialogue_rows import pair, scene
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrp.cast import OTHER, Cast
from mrp.config import Run
from mrp.data.build import build_data
from mrp.data.check import check_data
from mrp.data.read import ReadLine, read_lines
from mrp.data.record import REASONS, Rejected
from mrp.data.samples import natural_order, read_samples
from mrp.dialogue import Scene, Turn
from mrp.errors import InputError

Write = Callable[[str, Iterable[Any]], Path]
SAID = (Turn(OTHER, "Who are you?"), Turn("wukong", "Ha!"))
ASK = {"role": "user", "content": "Who are you?"}
ANSWER = {"role": "assistant", "content": "Ha!"}
HUMAN = {"from": "human", "value": "Who are you?"}
GPT = {"from": "gpt", "value": "Ha!"}


def messages(*items: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(items), **more}


def sharegpt(*items: Any, **more: Any) -> dict[str, Any]:
    return {"conversations": list(items), **more}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def read_one(write: Write, cast: Cast | None, row: Any, owner: str | None = None) -> ReadLine:
    (line,) = read_lines(write("a.jsonl", [row]), cast, owner)
    return line


def turns_of(line: ReadLine) -> tuple[Turn, ...]:
    assert isinstance(line.result, Scene), line.result
    return line.result.turns


SAME = {  # all say what SAID says
    "messages": messages(ASK, ANSWER),
    "messages with notes": messages(ASK, ANSWER, id=7, source={"book": 1}, tools=[], prompt="Who are you?"),
    "messages with parts": messages({"role": "user", "content": [{"type": "text", "text": "Who are you?"}]}, ANSWER),
    "messages with weight": messages(ASK, ANSWER | {"weight": 1, "tool_calls": None}),
    "messages with from": messages(HUMAN, GPT),
    "sharegpt": sharegpt(HUMAN, GPT),
    "sharegpt variants": sharegpt(HUMAN | {"from": "User"}, GPT | {"from": "chatgpt"}, system="Sun Wukong"),
    "sharegpt with role": sharegpt(ASK, {"role": "model", "content": "Ha!"}),
    "sharegpt names the character": sharegpt(HUMAN, GPT | {"from": "Sun Wukong"}),
    "alpaca": {"instruction": "Who are you?", "input": "", "output": "Ha!", "history": []},
    "alpaca without input": {"instruction": "Who are you?", "output": "Ha!", "system": "Monkey King", "history": None},
    "dolly": {"instruction": "Who are you?", "context": "", "response": "Ha!", "category": "open_qa"},
    "prompt and completion": {"prompt": "Who are you?", "completion": " Ha!"},
    "prompt and response": {"prompt": "Who are you?", "response": "Ha!", "history": []},
    "query and response": {"query": "Who are you?", "response": "Ha!", "system": "wukong"},
    "prompt and completion of messages": {"prompt": [system("wukong"), ASK], "completion": [ANSWER]},
    "xtuner": pair("Who are you?", "Ha!"),
}


@pytest.mark.parametrize("row", SAME.values(), ids=SAME.keys())
def test_every_format_gives_the_same_scene(write: Write, cast: Cast, row: dict[str, Any]) -> None:
    line = read_one(write, cast, row, "wukong")
    assert turns_of(line) == SAID
    assert isinstance(line.result, Scene)
    assert (line.result.id, line.result.participants) == ("", ("wukong", OTHER))
    assert not +line.dropped


def test_formats_are_reported(write: Write, cast: Cast) -> None:
    rows = [messages(ASK, ANSWER), sharegpt(HUMAN, GPT, system="tang"), scene(("tang", "a")), "{", {"name": 1}]
    path = write("a.jsonl", [*rows, pair("x", "y"), {"instruction": "a", "output": "b"}, {"prompt": "c"}])
    report = check_data([path], cast)
    assert report.as_json()["formats"] == {
        "messages": 1,
        "sharegpt": 1,
        "scene": 1,
        "xtuner": 1,
        "alpaca": 1,
        "prompt-completion": 1,
    }
    assert report.lines == 8 == report.kept + sum(report.counts.values())


@pytest.mark.parametrize("text", ["Sun Wukong", " monkey king\n", "wukong", "You are Sun Wukong."])
def test_system_text_names_the_character_or_is_its_persona(write: Write, cast: Cast, text: str) -> None:
    rows = [
        messages(system(text), ASK, ANSWER),
        messages(system(text) | {"role": "developer"}, ASK, ANSWER),
        messages(ASK, ANSWER, system=text),
        sharegpt({"from": "system", "value": text}, HUMAN, GPT),
        {"instruction": "Who are you?", "output": "Ha!", "system": text},
        pair("Who are you?", "Ha!", system=text),
    ]
    for row in rows:
        line = read_one(write, cast, row)
        assert turns_of(line) == SAID
        assert not +line.dropped


def test_another_system_text_is_left_out_and_counted(write: Write, cast: Cast) -> None:
    for row in (
        messages(system("You are helpful."), ASK, ANSWER),
        {"prompt": "Who are you?", "completion": "Ha!", "system": "You are helpful."},
        pair("Who are you?", "Ha!", system="You are helpful."),
    ):
        line = read_one(write, cast, row, "wukong")
        assert turns_of(line) == SAID
        assert line.dropped == {"system_text": 1}


def test_names_beside_messages_say_who_speaks(write: Write, cast: Cast) -> None:
    row = messages(
        system("They meet at an inn."),
        {"role": "user", "content": "Who is hungry?", "name": "Innkeeper"},
        {"role": "assistant", "content": "I!", "name": "Pigsy"},
        {"role": "user", "content": "Again?", "name": "monkey king"},
        {"role": "assistant", "content": "Always.", "name": "bajie"},
    )
    line = read_one(write, cast, row)
    assert [turn.speaker for turn in turns_of(line)] == ["Innkeeper", "bajie", "wukong", "bajie"]
    assert isinstance(line.result, Scene)
    assert line.result.participants == ("Innkeeper", "bajie", "wukong")  # nobody unknown is there
    assert line.dropped == {"system_text": 1}


def test_two_people_of_whom_both_have_names_are_two(write: Write, cast: Cast) -> None:
    line = read_one(write, cast, messages(ASK | {"name": "Ann"}, ANSWER), "wukong")
    assert isinstance(line.result, Scene)
    assert line.result.participants == ("Ann", "wukong")


def test_system_text_holds_until_the_next(write: Write, cast: Cast) -> None:
    line = read_one(write, cast, messages(system("tang"), ANSWER, ASK, ANSWER, system("bajie"), ASK, ANSWER))
    assert [turn.speaker for turn in turns_of(line)] == ["tang", OTHER, "tang", OTHER, "bajie"]


def test_history_goes_before(write: Write, cast: Cast) -> None:
    row = {"instruction": "Translate.", "input": "Hello", "output": "你好", "history": [["a", "b"], ["", "c"]]}
    line = read_one(write, cast, row, "tang")
    assert [turn.text for turn in turns_of(line)] == ["a", "b", "c", "Translate.\nHello", "你好"]
    assert line.dropped == {"empty_prompt": 1}


def test_empty_texts_are_counted(write: Write, cast: Cast) -> None:
    row = messages(ASK | {"content": " "}, ANSWER | {"content": None}, ASK, ANSWER)
    line = read_one(write, cast, row, "wukong")
    assert turns_of(line) == SAID
    assert line.dropped == {"empty_prompt": 1, "empty_reply": 1}


BAD: list[tuple[str, Any]] = [
    ("tool-message", messages(ASK, {"role": "tool", "content": "42", "tool_call_id": "x"}, ANSWER)),
    ("tool-message", messages(ASK, {"role": "assistant", "tool_calls": [{"id": "x"}]})),
    ("tool-message", messages(ASK, ANSWER | {"function_call": {"name": "f"}})),
    ("tool-message", messages(ASK, ANSWER, tools=[{"type": "function"}])),
    ("tool-message", sharegpt(HUMAN, {"from": "function_call", "value": "f()"}, GPT)),
    ("tool-message", sharegpt(HUMAN, {"from": "observation", "value": "7"}, GPT)),
    ("wrong-type", messages(ASK, {"role": "asistant", "content": "Ha!"})),
    ("wrong-type", messages(ASK, {"role": None, "content": "Ha!"})),
    ("wrong-type", messages(ASK, {"role": "", "content": "Ha!"})),
    ("wrong-type", messages(ASK, {"content": "Ha!"})),
    ("wrong-type", messages(ASK, {"role": "assistant"})),
    ("wrong-type", messages(ASK, ANSWER | {"value": "Ho!"})),
    ("wrong-type", messages(ASK, ANSWER | {"from": "gpt"})),
    ("wrong-type", messages(ASK, ANSWER | {"weight": 0})),
    ("wrong-type", messages(ASK, ANSWER, {})),
    ("wrong-type", messages(ASK, "Ha!")),
    ("wrong-type", messages(ASK, ANSWER | {"content": 7})),
    ("wrong-type", messages(ASK | {"content": [{"type": "text"}]}, ANSWER)),
    ("unknown-key", messages(ASK | {"content": [{"type": "image_url", "image_url": "x"}]}, ANSWER)),
    ("wrong-type", {"messages": "Ha!"}),
    ("wrong-type", {"instruction": "a"}),
    ("wrong-type", {"instruction": "a", "prompt": "b", "output": "c"}),
    ("wrong-type", {"prompt": "a", "completion": "b", "response": "c"}),
    ("wrong-type", {"prompt": "a", "completion": 7}),
    ("wrong-type", {"prompt": "a", "completion": "b", "history": [["a"]]}),
    ("wrong-type", {"prompt": "a", "completion": "b", "history": [7]}),
    ("wrong-type", {"completion": "b"}),
    ("unknown-key", {"prompt": "a", "chosen": "b", "rejected": "c"}),
    ("unknown-key", messages(ASK, ANSWER | {"thinking": "hm"})),
    ("unknown-key", messages(ASK, ANSWER, mesages=[])),
    ("unknown-key", sharegpt(HUMAN, GPT, conversation=[])),
    ("bad-text", messages(ASK, ANSWER | {"content": "a\x00b"})),
    ("bad-text", messages(ASK | {"name": "a\nb"}, ANSWER)),
    ("no-reply", messages(ASK)),
    ("no-reply", messages()),
    ("no-reply", {"prompt": "a", "completion": " "}),
    ("other-character", messages(system("bajie"), ASK, ANSWER)),
    ("other-character", messages(ASK, ANSWER | {"name": "bajie"})),
    ("other-character", {"instruction": "a", "output": "b", "system": "You are Zhu Bajie."}),
    ("unknown-character", messages(ASK, ANSWER | {"name": "Nobody"})),
]


@pytest.mark.parametrize(("reason", "row"), BAD)
def test_bad_line_is_rejected_with_its_reason(write: Write, cast: Cast, reason: str, row: Any) -> None:
    line = read_one(write, cast, row, "wukong")
    assert isinstance(line.result, Rejected)
    assert line.result.reason == reason, line.result.detail


def test_misspelt_role_comes_with_the_nearest(write: Write, cast: Cast) -> None:
    line = read_one(write, cast, messages(ASK, {"role": "asistant", "content": "Ha!"}), "wukong")
    assert isinstance(line.result, Rejected)
    assert line.result.detail == "messages[1].role is 'asistant': did you mean 'assistant'?"


@pytest.mark.parametrize("text", [None, "", "You are helpful.", "Sun Wukon"])
def test_without_owner_somebody_must_be_named(write: Write, cast: Cast, text: str | None) -> None:
    row = messages(*([] if text is None else [system(text)]), ASK, ANSWER, ASK, ANSWER)
    line = read_one(write, cast, row)
    assert isinstance(line.result, Rejected)
    assert line.result.reason == "unknown-character"
    assert ";" not in line.result.detail  # said once, not for each reply


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda v: st.lists(v, max_size=3)
)
TEXTS = st.sampled_from(["", "a", "tang", "Nobody", "user", "assistant", "system", "tool"]) | VALUES
ITEMS = VALUES | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "name", "weight"]), TEXTS)
ROWS = st.dictionaries(
    st.sampled_from(["messages", "conversations", "prompt", "completion", "instruction", "input", "output", "system"]),
    st.lists(ITEMS, max_size=4) | TEXTS,
) | st.fixed_dictionaries({"prompt": TEXTS, "response": TEXTS}, optional={"history": VALUES, "system": TEXTS})


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=ROWS, owner=st.sampled_from([None, "tang"]))
def test_no_line_whatever_makes_reading_fail(tmp_path: Path, cast: Cast, row: Any, owner: str | None) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (line,) = read_lines(path, cast, owner)
    if isinstance(line.result, Rejected):
        assert line.result.reason in REASONS
        json.dumps(line.result.as_json(), ensure_ascii=False).encode()


# Files that are one array


def read_text(tmp_path: Path, cast: Cast, text: str | bytes, owner: str | None = "wukong") -> list[ReadLine]:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(read_lines(path, cast, owner, "a.json"))


def places(lines: list[ReadLine]) -> list[str]:
    """The place of each element, with the reason where it is rejected."""
    found = []
    for line in lines:
        reason = f" {line.result.reason}" if isinstance(line.result, Rejected) else ""
        found.append(line.result.source.removeprefix("a.json:") + reason)
    return found


@pytest.mark.parametrize("row", SAME.values(), ids=SAME.keys())
def test_array_of_any_format(tmp_path: Path, cast: Cast, row: dict[str, Any]) -> None:
    for text in (json.dumps([row, row]), json.dumps([row, row], indent=4, ensure_ascii=False)):
        lines = read_text(tmp_path, cast, "\ufeff\r\n" + text + "\n")
        assert [turns_of(line) for line in lines] == [SAID, SAID]


def test_elements_are_found_by_their_lines(tmp_path: Path, cast: Cast) -> None:
    one = json.dumps(pair("a", "b"))
    assert places(read_text(tmp_path, cast, f"[\n{one},\n\n  {one}\n,{one}]")) == ["2", "4", "5"]
    assert places(read_text(tmp_path, cast, f"[{one},{one},\n{one},{one}, {one}]")) == ["1", "1#2", "2", "2#2", "2#3"]
    assert places(read_text(tmp_path, cast, f"[\n{one}, {one}]")) == ["2", "2#2"]
    assert read_text(tmp_path, cast, f"[ {one} ]")[0].text == one


def test_bad_element_is_rejected_alone(tmp_path: Path, cast: Cast) -> None:
    good, other = json.dumps(pair("a", "b")), json.dumps(pair("a", "b", system="bajie"))
    bad = [other, "7", "[]", '{"prompt": "x", "output": "a\x01b"}', '{"prompt": "x", "output": "\\ud800"}', "NaN", "{}"]
    lines = read_text(tmp_path, cast, "[" + ",\n".join([*bad, good]) + "]")
    reasons = ["other-character", "wrong-type", "wrong-type", "bad-text", "bad-text", "wrong-type", "wrong-type"]
    assert places(lines) == [*(f"{k} {reason}" for k, reason in enumerate(reasons, 1)), "8"]


def test_bytes_that_are_no_utf8_spoil_one_element(tmp_path: Path, cast: Cast) -> None:
    good = json.dumps(pair("a", "b")).encode()
    lines = read_text(tmp_path, cast, b"[" + good + b",\n" + good.replace(b"a", b"\xff") + b",\n" + good + b"]")
    assert places(lines) == ["1", "2 broken-json", "3"]
    for line in lines:
        json.dumps(line.text, ensure_ascii=False).encode()


GOOD = json.dumps(pair("a", "b"))
BROKEN = {
    "cut off": f"[\n{GOOD},\n{GOOD[:-4]}",
    "no end": f"[\n{GOOD}\n",
    "comma missing": f"[\n{GOOD}\n{GOOD}\n]",
    "comma too many": f"[\n{GOOD},\n]",
    "more after the end": f"[\n{GOOD}]\n{GOOD}",
    "two arrays": f"[\n{GOOD}]\n[{GOOD}]",
    "too deep": f"[\n{GOOD},\n" + "[" * 200_000,
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_broken_array_keeps_what_stands_before(tmp_path: Path, cast: Cast, text: str) -> None:
    lines = read_text(tmp_path, cast, text)
    assert [isinstance(line.result, Scene) for line in lines] == [True, False]
    last = lines[-1].result
    assert isinstance(last, Rejected)
    assert last.reason == "broken-json"


def test_empty_array_is_an_empty_file(tmp_path: Path, cast: Cast) -> None:
    for text in ("[]", " [\n ] "):
        with pytest.raises(InputError, match="the array is empty"):
            read_text(tmp_path, cast, text)


def test_lines_that_are_arrays_are_lines(tmp_path: Path, cast: Cast) -> None:
    assert places(read_text(tmp_path, cast, f"[1, 2]\n{GOOD}\n")) == ["1 wrong-type", "2"]


def test_built_from_an_array(make_run: Callable[..., Run]) -> None:
    rows = [pair(f"q{k}", f"a{k}") for k in range(12)]
    run = make_run({"tang": [json.dumps(rows)], "wukong": rows})
    manifest = build_data(run)
    assert manifest["totals"]["kept"] == 24
    assert manifest["inputs"][0]["formats"] == {"xtuner": 12}
    samples = natural_order(read_samples(run.data / "train.jsonl"), run)
    mine = [s.source for s in samples if s.character == "tang"]
    assert mine == sorted(mine, key=lambda source: int(source.partition("#")[2] or 1))
    assert len({s.scene for s in samples}) == len(samples)


def test_pipe_is_refused(tmp_path: Path, cast: Cast) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="a pipe or device"):
        list(read_lines(tmp_path / "pipe", cast))


def test_real_arrays(shared: Path) -> None:
    folder = shared / "data" / "emollm-personas"
    counts = {}
    for name in ("aiwei", "tiangou", "self_cognition"):
        report = check_data([folder / f"{name}.json"])
        counts[name] = (report.lines, dict(report.formats), dict(report.counts))
        first = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        assert report.lines == len(first) == report.kept + sum(report.counts.values())
    assert counts["aiwei"] == (1600, {"xtuner": 1600}, {})
    assert counts["tiangou"][2]["unknown-character"] == 1  # the first element has no system text
