"""The JSON of cards: versions, faults with their place, and what never stops the program."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_cards import V1, V2, V2_DATA, V3, base64_of, png_with, text_chunk, write_json_card, write_png

from mrp.cards.card import MAX_CARD_BYTES, MAX_DEPTH, Card, parse_card, read_card
from mrp.errors import InputError, ManyFaults, MrpError


def faults_of(raw: bytes) -> list[MrpError]:
    with pytest.raises(InputError) as caught:
        parse_card(raw, "card.json")
    faults = caught.value.faults if isinstance(caught.value, ManyFaults) else [caught.value]
    for fault in faults:
        assert fault.what and fault.where.startswith("card.json") and fault.fix
        str(fault).encode()
    return faults


def fault_of(raw: bytes) -> str:
    (fault,) = faults_of(raw)
    return f"{fault.what} @ {fault.where}"


@pytest.mark.parametrize(("value", "version"), [(V1, 1), (V2, 2), (V3, 3)])
def test_each_version_comes_back_as_it_was(tmp_path: Path, value: dict[str, Any], version: int) -> None:
    for card in (
        read_card(write_json_card(tmp_path / "card.json", value)),
        read_card(write_png(tmp_path / "card.png", value)),
    ):
        assert card.version == version
        assert card.data["name"] == "Ada"
        assert card.as_json(version) == value


def test_a_v1_card_as_v2_and_v3_has_all_that_they_want() -> None:
    card = parse_card(json.dumps(V1).encode(), "x")
    second, third = card.as_json(2), card.as_json(3)
    assert (second["spec"], third["spec"]) == ("chara_card_v2", "chara_card_v3")
    assert second["metadata"] == V1["metadata"]
    assert second["data"]["alternate_greetings"] == [] and second["data"]["creator_notes"] == ""
    assert third["data"] == second["data"] | {"group_only_greetings": []}
    assert {key: third["data"][key] for key in V1 if key != "metadata"} == card.data


def test_v3_entries_say_whether_their_keys_are_patterns() -> None:
    third = parse_card(json.dumps(V2).encode(), "x").as_json(3)
    assert all(entry["use_regex"] is False for entry in third["data"]["character_book"]["entries"])
    assert "use_regex" not in json.dumps(V2)


def test_ccv3_wins_over_chara(tmp_path: Path) -> None:
    old = {**V2, "data": {**V2_DATA, "name": "Old"}}
    path = tmp_path / "card.png"
    path.write_bytes(png_with(text_chunk("chara", base64_of(old)), text_chunk("ccv3", base64_of(V3))))
    assert (read_card(path).version, read_card(path).data["name"]) == (3, "Ada")


def test_lines_within_the_base64_are_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "card.png"
    path.write_bytes(png_with(text_chunk("chara", base64.encodebytes(json.dumps(V1).encode()))))
    assert read_card(path).data["name"] == "Ada"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"!!!", "not base64"),
        (b"eyJ", "not base64"),
        (b"", "broken JSON"),
        (base64.b64encode(b'{"name": "\xff"}'), "not UTF-8 text (byte 10)"),
        (base64.b64encode(b"[]"), "no character card"),
    ],
)
def test_a_broken_card_in_a_png_names_its_chunk(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "card.png"
    path.write_bytes(png_with(text_chunk("chara", text)))
    with pytest.raises(InputError) as caught:
        read_card(path)
    assert words in caught.value.what and "chunk 'chara'" in caught.value.where and caught.value.fix


def test_a_picture_without_a_card_is_told(tmp_path: Path) -> None:
    path = tmp_path / "card.png"
    path.write_bytes(png_with(text_chunk("comment", b"hello")))
    with pytest.raises(InputError, match="holds no character card"):
        read_card(path)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"name": "A", }', "broken JSON: Expecting property name enclosed in double quotes @ card.json, line 1, col"),
        (b'{"name": "A", "description": NaN}', "NaN is not JSON"),
        (b'{"name": "A", "description": "", "x": 1e999}', "the number 1e999 is too large"),
        (b'{"name": "A", "description": "", "x": ' + b"9" * 5000 + b"}", "broken JSON"),
        (b"\xff\xfe{", "not UTF-8 text (byte 0)"),
        (b"[1]", "not an object"),
        (b"{}", "no character card"),
        (b'{"name": "Ada", "age": 7}', "no character card"),
        (b'{"data": {"name": "Ada"}}', 'has "data" but no "spec"'),
        (b'{"spec": "lorebook_v3", "data": {}}', "unknown kind of card: spec is 'lorebook_v3' @ card.json: spec"),
        (b'{"spec": {"a": 1}, "data": {}}', "unknown kind of card"),
        (b'{"spec": "chara_card_v2"}', 'no object "data" @ card.json: data'),
        (b'{"spec": "chara_card_v2", "data": []}', 'no object "data"'),
        (b'{"spec": "chara_card_v2", "data": {}}', "the card has no name @ card.json: data.name"),
        (b'{"name": " \\n\\u200b", "description": ""}', "the card has no name @ card.json: name"),
        (b'{"name": null, "description": ""}', "the card has no name"),
        (b'{"name": 7, "description": ""}', "wanted is a text, not 7 @ card.json: name"),
        (b'{"name": "A", "description": "\\ud800"}', "lone surrogate U+D800) @ card.json: description"),
        (b'{"name": "A", "description": "", "x": [{"k\\udc00": 1}]}', "U+DC00) @ card.json: x[0] (a key)"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:30],
)
def test_what_is_no_card_is_told_with_its_place(raw: bytes, words: str) -> None:
    assert words in fault_of(raw)


def test_all_wrong_fields_are_told_in_one_pass() -> None:
    data: dict[str, Any] = {
        "name": "A",
        "description": 7,
        "first_mes": ["x"],
        "nickname": {},
        "extensions": [],
        "alternate_greetings": ["fine", None, 3],
        "character_book": {
            "entries": ["x", {"keys": "k", "content": 1, "enabled": 1, "constant": "no"}, {"keys": [4]}]
        },
    }
    faults = faults_of(json.dumps({"spec": "chara_card_v2", "data": data}).encode())
    assert [fault.where.removeprefix("card.json: data.") for fault in faults] == [
        "description",
        "first_mes",
        "nickname",
        "extensions",
        "alternate_greetings[1]",
        "alternate_greetings[2]",
        "character_book.entries[0]",
        "character_book.entries[1].content",
        "character_book.entries[1].enabled",
        "character_book.entries[1].constant",
        "character_book.entries[1].keys",
        "character_book.entries[2].keys[0]",
    ]


def test_null_is_a_missing_text() -> None:
    data = dict.fromkeys(V2_DATA, None) | {"name": "A"}
    card = parse_card(json.dumps({"spec": "chara_card_v2", "data": data}).encode(), "x")
    assert card.as_json(2)["data"] == data  # as it was
    assert card.as_json(3)["data"]["extensions"] == {}


@pytest.mark.parametrize("nest", [MAX_DEPTH + 1, 500, 100_000])
def test_deep_nesting_is_refused(nest: int) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        deep = opening * nest + (b"1" if opening != b"[" else b"") + closing * nest
        assert "deeper than" in fault_of(b'{"name": "A", "description": "", "extensions": {"x": ' + deep + b"}}")


def test_nesting_that_is_allowed_can_be_written_again() -> None:
    deep: Any = []
    for _ in range(MAX_DEPTH - 4):
        deep = [deep]
    card = parse_card(json.dumps({**V1, "x": deep}).encode(), "x")
    assert json.loads(json.dumps(card.as_json(3)))["x"] == deep


def test_a_card_with_a_million_faults_stays_small() -> None:
    raw = b'{"name": "A", "description": "", "extensions": {}, "x": [' + b'"\\udcff",' * 500_000 + b'""]}'
    assert len(faults_of(raw)) == 1000
    greetings = b"[" + b"1," * 500_000 + b"1]"
    raw = b'{"spec": "chara_card_v2", "data": {"name": "A", "alternate_greetings": ' + greetings + b"}}"
    assert len(faults_of(raw)) == 1000


def test_too_long_a_card_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    with path.open("wb") as file:
        file.write(b'{"name": "')
        file.truncate(2**33)  # sparse: 8 GiB that nobody may read whole
    with pytest.raises(InputError, match="too long"):
        read_card(path)
    assert "too long" in fault_of(b'{"name": "' + b"a" * MAX_CARD_BYTES + b'"}')


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "jpeg").write_bytes(b"\xff\xd8\xff")
    for name, words in {
        "absent": "no such file",
        "pipe": "not an ordinary file",
        ".": "not an ordinary file",
        "empty": "empty",
        "jpeg": "neither a PNG nor",
    }.items():
        with pytest.raises(InputError, match=words) as caught:
            read_card(tmp_path / name)
        assert caught.value.fix


def test_keys_given_twice_are_told(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text('\ufeff{"name": "A", "description": "1", "description": "2"}', encoding="utf-8")
    card = read_card(path)
    assert card.data["description"] == "2"
    assert "('description'); the last of each counts" in card.notes[0]


JSON_TEXTS = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | JSON_TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(JSON_TEXTS, inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from([*V2_DATA, "nickname", "spec", "data", "keys", "entries", "content", "extensions"])
NEARLY_CARDS = st.recursive(JSON, lambda inner: st.dictionaries(FIELDS, inner, max_size=6), max_leaves=8)


@settings(deadline=None)
@given(
    st.binary(max_size=60)
    | NEARLY_CARDS.map(lambda value: json.dumps(value).encode())
    | st.builds(lambda spec, data: json.dumps({"spec": f"chara_card_v{spec}", "data": data}).encode(),
                st.integers(1, 4), NEARLY_CARDS)
)  # fmt: skip
def test_any_json_is_a_card_or_refused_with_what_where_and_fix(raw: bytes) -> None:
    try:
        card = parse_card(raw, "card.json")
    except ManyFaults as error:
        assert all(fault.what and fault.where and fault.fix for fault in error.faults)
    except InputError as error:
        assert error.what and error.where and error.fix
    else:
        assert isinstance(card, Card) and json.loads(raw) == card.as_json(card.version)
        json.dumps([card.as_json(2), card.as_json(3)], ensure_ascii=False).encode()
