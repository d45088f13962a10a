"""Characters as cards again: nothing is lost on the way in and out, and what was edited in the cast comes out."""

from __future__ import annotations

import base64
import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import mrp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_cards import V1, V2, V2_DATA, V3, png_with, text_chunk, write_json_card, write_png
from test_cards_json import JSON

from mrp.cards.card import read_card
from mrp.cards.hand_out import export_card
from mrp.cards.png import blank_png, read_texts
from mrp.cards.take_in import import_cards
from mrp.cast import Character, load_cast
from mrp.config import Run, load_run
from mrp.errors import InputError


def imported(source: Path, folder: Path) -> Run:
    """A run whose cast is this one card."""
    import_cards([source], folder / "cast.yaml")
    (folder / "mrp.yaml").write_text("cast: cast.yaml\n", encoding="utf-8")
    return load_run(folder / "mrp.yaml")


def edited(run: Run, **changes: Any) -> Run:
    """The run after somebody changed keys of its character."""
    value = yaml.safe_load(run.cast_path.read_text(encoding="utf-8"))
    value["characters"][0] |= changes
    run.cast_path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")  # JSON is YAML
    return load_run(run.path)


def texts_of(character: Character) -> dict[str, Any]:
    return character.model_dump(exclude={"avatar", "dialogues", "card"})


def contains(whole: Any, part: Any) -> bool:
    """True if every field of `part` is in `whole`; null and missing are one where `whole` has an empty value."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(contains(whole.get(key), value) for key, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(whole) == len(part) and all(map(contains, whole, part))
    return bool(whole == part) or (part is None and whole in ("", [], {}))


def round_trip(source: Path, folder: Path) -> None:
    """Import, export in both ways, import both: the same character, and no field of the card is lost."""
    first = imported(source, folder / "1")
    name, original = first.cast.characters[0].id, read_card(source)
    png, text = folder / "out" / source.with_suffix(".png").name, folder / "out" / source.with_suffix(".json").name
    export_card(first, name, png)
    export_card(first, name, text)
    assert text.read_text(encoding="utf-8") == original.text
    again = read_card(png)
    assert again.version == 3 and contains(again.data, original.data)
    assert original.top.items() <= (again.top | {"spec_version": original.top.get("spec_version")}).items()
    for k, out in enumerate((png, text)):
        second = imported(out, folder / f"2{k}")
        assert texts_of(second.cast.characters[0]) == texts_of(first.cast.characters[0])
        scenes = [run.cast_path.parent / "cards" / f"{name}.jsonl" for run in (first, second)]
        assert scenes[0].exists() == scenes[1].exists()
        assert not scenes[0].exists() or scenes[0].read_bytes() == scenes[1].read_bytes()
    third = folder / "out" / "third.png"
    export_card(load_run(folder / "20" / "mrp.yaml"), name, third)
    assert (read_card(third).data, read_card(third).top) == (again.data, again.top)  # nothing is added any more


@pytest.mark.parametrize("card", [V1, V2, V3], ids=["V1", "V2", "V3"])
@pytest.mark.parametrize("kind", ["png", "json"])
def test_a_round_trip_loses_nothing(tmp_path: Path, card: dict[str, Any], kind: str) -> None:
    write = write_png if kind == "png" else write_json_card
    round_trip(write(tmp_path / f"ada.{kind}", card), tmp_path)


@pytest.mark.parametrize("name", ["Shodan_v2", "Skynet_v2"])
def test_a_round_trip_of_a_real_card_loses_nothing(shared: Path, tmp_path: Path, name: str) -> None:
    round_trip(shared / "data" / "character-cards" / f"{name}.png", tmp_path)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["{{char}} and <USER>", "<START>\n{{char}}: a\n{{user}}: b", " 1e5 ", "# no\n", "\u2028", "{{CHAR}}: {{ user }}"]
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "keys": st.lists(TEXT, max_size=2),
        "content": TEXT,
        "enabled": st.booleans(),
        "constant": st.booleans() | st.none(),
        "secondary_keys": JSON,
        "extensions": JSON,
    },
)
DATA = st.fixed_dictionaries(
    {"name": TEXT.map(lambda name: f"A{name}")},
    optional={
        **dict.fromkeys(("description", "personality", "scenario", "first_mes", "mes_example", "nickname"), TEXT),
        "alternate_greetings": st.lists(TEXT, max_size=2),
        "character_book": st.fixed_dictionaries({"entries": st.lists(ENTRY, max_size=3), "name": JSON}) | st.none(),
        "extensions": st.dictionaries(TEXT, JSON, max_size=3),
        "tags": JSON,
        "whatever": JSON,
    },
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(DATA, st.sampled_from([2, 3]), st.dictionaries(st.text("xyz", max_size=3), JSON, max_size=2))
def test_a_round_trip_of_any_card_loses_nothing(data: dict[str, Any], version: int, top: dict[str, Any]) -> None:
    card = {"spec": f"chara_card_v{version}", "spec_version": f"{version}.0", **top, "data": data}
    with tempfile.TemporaryDirectory() as folder:
        round_trip(write_png(Path(folder) / "card.png", card, "ccv3" if version == 3 else "chara"), Path(folder))


PLAIN = st.text(st.characters(categories=["L", "N", "P", "Zs"], exclude_characters="{}<>"), max_size=20).map(str.strip)
LORE = st.fixed_dictionaries({"keys": st.lists(PLAIN.filter(bool), min_size=1, max_size=2), "text": PLAIN.filter(bool)})
LIKE_THE_CARDS = [
    {"keys": ["tower", "bell"], "text": "Fell."},
    {"keys": [], "text": "The year is 1820.", "constant": True},
    {"keys": ["year"], "text": "The year is 1820."},
]
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["Ada", "Countess", "孙悟空"]),
        "aliases": st.sampled_from([[], ["Addie"], ["A.", "B."]]),
        "persona": PLAIN,
        "greeting": PLAIN,
        "scenario": PLAIN,
        "alternate_greetings": st.lists(PLAIN.filter(bool), max_size=2),
        "talkativeness": st.sampled_from([0.0, 0.25, 0.5, 1.0]),
        "lore": st.lists(LORE | st.sampled_from(LIKE_THE_CARDS), max_size=3),
    },
)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([V1, V2, V3]), CHANGES, st.sampled_from(["png", "json"]))
def test_importing_an_export_gives_the_edited_character(card: Any, changes: dict[str, Any], kind: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = edited(imported(write_png(folder / "ada.png", card), folder / "1"), **changes)
        out = folder / f"out.{kind}"
        export_card(run, "ada", out)
        again = imported(out, folder / "2").cast.characters[0]
        wanted = run.cast["ada"]
        assert {**texts_of(again), "id": ""} == {**texts_of(wanted), "id": ""}


def test_edited_fields_come_from_the_cast_and_all_others_from_the_card(tmp_path: Path) -> None:
    run = imported(write_png(tmp_path / "ada.png", V2), tmp_path)
    lore = [
        {"keys": ["year"], "text": "The year is 1820."},  # now with a key, and not always
        {"keys": ["tower", "bell"], "text": "It fell."},
        {"keys": ["new"], "text": "A new fact."},
    ]
    run = edited(run, persona="New persona.", lore=lore, aliases=["Countess"])
    export_card(run, "countess", tmp_path / "out.json")
    value = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    wanted = copy.deepcopy(V2)
    data: dict[str, Any] = wanted["data"]
    data |= {"description": "New persona.", "personality": ""}
    data["extensions"]["mrp_llm"] = {"aliases": ["Countess"]}
    tower, secret, year, never = data["character_book"]["entries"]
    data["character_book"]["entries"] = [
        {**year, "keys": ["year"], "constant": False},
        {**tower, "content": "It fell."},
        {
            "keys": ["new"],
            "content": "A new fact.",
            "constant": False,
            "extensions": {},
            "enabled": True,
            "insertion_order": 100,
            "use_regex": False,
        },
        secret,
        never,
    ]
    assert value == wanted


def test_a_v1_card_stays_v1_until_it_has_more(tmp_path: Path) -> None:
    run = edited(imported(write_json_card(tmp_path / "ada.json", V1), tmp_path), greeting="Hm.")
    export_card(run, "ada", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == {**V1, "first_mes": "Hm."}
    export_card(edited(run, alternate_greetings=["Oh."]), "ada", tmp_path / "out.json")
    value = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert value["spec"] == "chara_card_v2" and value["metadata"] == V1["metadata"]
    assert value["data"]["alternate_greetings"] == ["Oh."]


def test_copies_of_fields_at_the_top_of_a_card_follow(tmp_path: Path) -> None:
    card = {**V2, "name": "Ada", "first_mes": V2_DATA["first_mes"], "scenario": "another"}
    run = edited(imported(write_json_card(tmp_path / "ada.json", card), tmp_path), greeting="Hm.", scenario="")
    export_card(run, "ada", tmp_path / "out.json")
    value = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert (value["first_mes"], value["data"]["first_mes"]) == ("Hm.", "Hm.")
    assert (value["scenario"], value["data"]["scenario"]) == ("another", "")


def test_a_png_carries_both_chunks_in_the_picture_of_the_character(tmp_path: Path) -> None:
    other = text_chunk("Software", b"a painter")
    source = tmp_path / "ada.png"
    source.write_bytes(png_with(other, text_chunk("chara", base64.b64encode(json.dumps(V2).encode()))))
    out = tmp_path / "out.PNG"
    export_card(imported(source, tmp_path), "Ada", out)
    with out.open("rb") as file:
        texts = read_texts(file, "x", ("chara", "ccv3"))
    second, third = (json.loads(base64.b64decode(texts[key])) for key in ("chara", "ccv3"))
    assert second == V2 and (third["spec"], third["spec_version"]) == ("chara_card_v3", "3.0")
    assert out.read_bytes() == png_with(other, *(text_chunk(key, texts[key]) for key in ("chara", "ccv3")))


def bare_run(folder: Path, **character: Any) -> Run:
    value = {"characters": [{"id": "wukong", "name": "孙悟空", **character}]}
    (folder / "cast.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")
    (folder / "mrp.yaml").write_text("cast: cast.yaml\n", encoding="utf-8")
    return load_run(folder / "mrp.yaml")


@pytest.mark.parametrize("kind", ["png", "json"])
def test_a_character_without_a_card_gets_one(tmp_path: Path, kind: str) -> None:
    lore = [{"keys": ["staff"], "text": "It weighs 13,500 jin."}]
    run = bare_run(tmp_path, aliases=["行者"], persona="You are the Monkey King.", greeting="Ha!", lore=lore)
    out = tmp_path / f"out.{kind}"
    export_card(run, "行者", out)
    card = read_card(out)
    assert card.version == 3 and card.data["group_only_greetings"] == []
    again = imported(out, tmp_path / "again")
    assert texts_of(again.cast["wukong"]) == texts_of(run.cast["wukong"])


def test_a_picture_that_is_no_png_is_told(tmp_path: Path) -> None:
    (tmp_path / "face.jpg").write_bytes(b"\xff\xd8\xff")
    run = bare_run(tmp_path, avatar="face.jpg")
    done = mrp("card", "export", run.path, "wukong", tmp_path / "out.png")
    assert done.code == 0 and "face.jpg is no PNG" in done.err
    with (tmp_path / "out.png").open("rb") as file:
        assert file.read(60) == blank_png()[:60]


def test_what_cannot_be_exported_is_told_and_the_old_file_stays(tmp_path: Path) -> None:
    run = imported(write_png(tmp_path / "ada.png", V2), tmp_path)
    old = tmp_path / "out.png"
    old.write_bytes(b"old")
    cards = tmp_path / "cards"
    cases: list[tuple[Run, str, Path, str]] = [
        (run, "Adda", old, "no character 'Adda'"),
        (run, "ada", tmp_path / "out.webp", "cards are .png or .json files, not '.webp'"),
        (run, "ada", cards / "ada.png", "is a file of the character itself"),
        (run, "ada", cards / "ada.json", "is a file of the character itself"),
        (edited(run, avatar="gone.png"), "ada", old, "the picture of 'ada' is not there"),
        (edited(run, card="gone.json"), "ada", old, "no such file: gone.json"),
    ]
    (cards / "broken.png").write_bytes(blank_png()[:-1])
    (cards / "broken.json").write_text('{"name": ', encoding="utf-8")
    cases.append((edited(run, avatar="cards/broken.png", card="cards/ada.json"), "ada", old, "IEND"))
    cases.append((edited(run, card="cards/broken.json"), "ada", old, "broken JSON"))
    for one, name, out, words in cases:
        with pytest.raises(InputError, match=words) as caught:
            export_card(one, name, out)
        assert caught.value.where and caught.value.fix
    assert old.read_bytes() == b"old" and not list(tmp_path.glob(".mrp*"))


def test_the_commands_tell_what_they_did(tmp_path: Path) -> None:
    source = write_png(tmp_path / "ada.png", V3)
    done = mrp("card", "import", source, "--cast", tmp_path / "cast.yaml")
    assert done.code == 0
    assert done.out.startswith("ada: Ada (V3 card ada.png), 2 example scenes, 2 lore entries\n")
    assert "2 lore entries are switched off" in done.err
    (tmp_path / "mrp.yaml").write_text("cast: cast.yaml\n", encoding="utf-8")
    out = tmp_path / "deep" / "out.json"
    done = mrp("card", "export", tmp_path, "Addie", out, "--json")
    assert done.json == {"character": "ada", "file": str(out)}
    assert json.loads(out.read_text(encoding="utf-8")) == V3
    assert mrp("card", "export", tmp_path, "nobody", out).code == 2


def test_the_kept_cast_of_a_run_folder_exports_too(tmp_path: Path) -> None:
    imported(write_png(tmp_path / "ada.png", V2), tmp_path)
    assert mrp("data", "build", tmp_path).code == 0
    assert mrp("card", "export", tmp_path / "run", "ada", tmp_path / "out.json").code == 0
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == V2
    assert load_cast(tmp_path / "run" / "cast.yaml")["ada"].card == "cards/ada.json"
