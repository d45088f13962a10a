"""The cast file: strict, every fault in one pass, with file, line and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from projects import write_yaml

from mrp.cast import OTHER, Cast, Character, load_cast
from mrp.errors import InputError, ManyFaults

WHOLE = """\
language: zh
scenario: 西天路上。
characters:
  - id: swk
    name: 孙悟空
    aliases: [行者, 大圣]
    persona: 你是孙悟空。
    greeting: 俺老孙来也！
    avatar: swk.png
    dialogues: [swk.jsonl]
    lore:
      - keys: [金箍棒]
        text: 重一万三千五百斤。
  - id: zbj
    name: 猪八戒
dialogues: [scenes.jsonl]
"""


def cast_file(folder: Path, text: str) -> Path:
    path = folder / "cast.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults_of(path: Path) -> list[str]:
    """The faults of a cast file, each as one line: what @ file:line, key -> fix."""
    with pytest.raises(InputError) as caught:
        load_cast(path)
    error = caught.value
    faults = error.faults if isinstance(error, ManyFaults) else [error]
    return [f"{f.what} @ {f.where.removeprefix(str(path.parent) + '/')} -> {f.fix}" for f in faults]


def test_every_key_of_a_cast_is_kept(tmp_path: Path) -> None:
    cast = load_cast(cast_file(tmp_path, WHOLE))
    swk, zbj = cast.characters
    assert (cast.language, cast.scenario, cast.dialogues) == ("zh", "西天路上。", ["scenes.jsonl"])
    assert (swk.id, swk.name, swk.aliases) == ("swk", "孙悟空", ["行者", "大圣"])
    assert (swk.greeting, swk.avatar, swk.dialogues) == ("俺老孙来也！", "swk.png", ["swk.jsonl"])
    assert swk.lore[0].keys == ["金箍棒"]
    assert (zbj.persona, zbj.aliases, zbj.lore, zbj.avatar) == ("", [], [], None)


def test_an_identity_is_the_persona_or_says_the_name(tmp_path: Path) -> None:
    cast = load_cast(cast_file(tmp_path, WHOLE))
    assert cast.persona("swk") == "你是孙悟空。"
    assert cast.persona("zbj") == "你是猪八戒。"
    assert Cast(characters=[Character(id="a", name="Ada")]).persona("a") == "You are Ada."


def test_a_character_is_found_by_id_name_or_alias_whatever_its_case() -> None:
    cast = Cast(characters=[Character(id="wukong", name="Sun Wukong", aliases=["Monkey King"])])
    for name in ("wukong", " WUKONG ", "sun wukong", "MONKEY KING"):
        assert cast.find(name).id == "wukong"
    assert cast.get("nobody") is None
    with pytest.raises(InputError, match=r"no character 'Monky King'") as caught:
        cast.find("Monky King", "--as")
    assert (caught.value.where, caught.value.fix) == ("--as", "did you mean 'Monkey King'?")
    with pytest.raises(KeyError):
        cast["nobody"]


def test_speakers_have_names_for_people() -> None:
    cast = Cast(characters=[Character(id="wukong", name="Sun Wukong")])
    assert [cast.display_name(s) for s in ("wukong", OTHER, "An old man")] == ["Sun Wukong", "Someone", "An old man"]
    assert cast.model_copy(update={"language": "zh"}).display_name(OTHER) == "旁人"


def test_an_unknown_key_has_its_line_and_the_nearest_known_one(tmp_path: Path) -> None:
    path = cast_file(tmp_path, WHOLE.replace("greeting", "greting").replace("keys:", "kys:"))
    assert faults_of(path) == [
        "unknown key 'greting' @ cast.yaml:8, characters[0].greting -> did you mean 'greeting'?",
        "the key 'keys' is missing @ cast.yaml:12, characters[0].lore[0].keys -> add `keys: ...`",
        "unknown key 'kys' @ cast.yaml:12, characters[0].lore[0].kys -> did you mean 'keys'?",
    ]


def test_names_used_twice_are_all_told(tmp_path: Path) -> None:
    people = [
        {"id": "a", "name": "Ada", "aliases": ["Countess"]},
        {"id": "b", "name": "ADA"},
        {"id": "a", "name": "Anna"},
        {"id": "c", "name": "Carl", "aliases": ["Charles", "countess"]},
        {"id": "B", "name": "Bea"},
        {"id": "d", "name": "d", "aliases": ["D", "d"]},  # one character may repeat itself
    ]
    path = tmp_path / "cast.yaml"
    write_yaml(path, {"characters": people})
    fix = "give each character names that no other has"
    assert faults_of(path) == [
        f"'ADA' is also a name of 'a' @ cast.yaml:7, characters[1].name -> {fix}",
        f"the id 'a' is used twice @ cast.yaml:8, characters[2].id -> {fix}",
        f"'countess' is also a name of 'a' @ cast.yaml:14, characters[3].aliases[1] -> {fix}",
        f"the id 'B' is used twice @ cast.yaml:15, characters[4].id -> {fix}",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "../up"}, "cannot be a file name"),
        ({"id": "悟空"}, "cannot be a file name"),
        ({"id": "Other"}, "kept for unknown speakers"),
        ({"id": 7}, "valid string, not 7"),
        ({"name": ""}, "at least 1 character"),
        ({"name": "  "}, "is no name"),
        ({"name": "two\nlines"}, "is no name"),
        ({"name": "other"}, "kept for unknown speakers"),
        ({"aliases": ["x", ""]}, "is no name"),
        ({"aliases": "x"}, "valid list, not 'x'"),
        ({"persona": None}, "valid string, not None"),
        ({"dialogues": "a.jsonl"}, "valid list"),
        ({"lore": ["x"]}, "wanted are `key: value` lines, not 'x'"),
        ({"lore": [{"keys": [], "text": "x"}]}, "at least 1 item"),
    ],
)
def test_wrong_values_are_told_with_their_place(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "cast.yaml"
    write_yaml(path, {"characters": [{"id": "a", "name": "Ada"} | change]})
    (fault,) = faults_of(path)
    assert words in fault
    assert f"characters[0].{next(iter(change))}" in fault and "cast.yaml:" in fault
    assert not fault.endswith("-> ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the key 'characters' is missing @ cast.yaml, characters"),
        ("characters: []\n", "at least 1 item"),
        ("- a\n", "wanted are `key: value` lines"),
        ("language: fr\ncharacters: [{id: a, name: A}]\n", "'en' or 'zh', not 'fr' @ cast.yaml:1, language"),
        ("characters:\n  - id: a\n    name: A\n    id: b\n", "key given twice (first on line 2) @ cast.yaml:4"),
        ("characters:\n  - {id: a, name: [}\n", "broken YAML"),
        ("characters: [{id: a, name: A}]\n? [x]\n: y\n", "a key is a list or a mapping @ cast.yaml:2"),
        ("characters: !!python/name:os.system\n", "broken YAML: could not determine a constructor"),
        ("scenario: 2026-02-31\n", "broken YAML: day is out of range for month"),
        ("characters: &a [*a]\n", "goes deeper"),
    ],
)
def test_a_file_that_is_no_cast_is_told_with_the_reason(tmp_path: Path, text: str, words: str) -> None:
    assert any(words in fault for fault in faults_of(cast_file(tmp_path, text)))


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such file: cast.yaml" in faults_of(tmp_path / "cast.yaml")[0]
    assert "no such file: x" in faults_of(cast_file(tmp_path, "a: b") / "x")[0]
    (tmp_path / "cast.yaml").write_bytes("name: é".encode("latin-1"))
    assert "not UTF-8 text (byte 6)" in faults_of(tmp_path / "cast.yaml")[0]
    (tmp_path / "folder").mkdir()
    assert "a folder stands where a file is wanted" in faults_of(tmp_path / "folder")[0]

    def refused(*_: object, **__: object) -> str:
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", refused)
    assert "may not be read" in faults_of(tmp_path / "cast.yaml")[0]
