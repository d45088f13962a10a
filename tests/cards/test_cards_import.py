"""Cards into a cast: what comes where, ids and names, example scenes; all files or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import mrp
from made_cards import V1, V2, V3, write_json_card, write_png

from mrp.cards.card import parse_card
from mrp.cards.character import draft_of, free_id
from mrp.cards.examples import example_scenes
from mrp.cards.take_in import import_cards
from mrp.cast import LoreEntry, load_cast
from mrp.config import load_run
from mrp.data.build import build_data
from mrp.errors import InputError, ManyFaults


def card_named(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "description": "x", **more}


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_card_becomes_a_character_with_all_it_says(tmp_path: Path) -> None:
    source = write_png(tmp_path / "x.png", V3)
    import_cards([source], tmp_path / "cast" / "cast.yaml")
    cast = load_cast(tmp_path / "cast" / "cast.yaml")
    ada = cast["ada"]
    assert (ada.name, ada.aliases) == ("Ada", ["Addie"])
    assert ada.persona == "Addie builds clocks. Addie trusts what ticks.\n\nDry with {{user}}."
    assert cast.persona("ada").endswith("Dry with Someone.")
    assert ada.greeting == "You are late, {{user}}."
    assert ada.alternate_greetings == ["Again?", "Addie nods."]
    assert ada.scenario == "A workshop; {{user}} enters."
    assert ada.lore == [
        LoreEntry(keys=["tower", "bell"], text="The tower clock is Addie's."),
        LoreEntry(keys=[], text="The year is 1820.", constant=True),
    ]
    files = tree(tmp_path / "cast")
    assert files.keys() == {"cast.yaml", "cards/ada.json", "cards/ada.jsonl", "cards/ada.png"}
    assert (ada.card, ada.dialogues, ada.avatar) == ("cards/ada.json", ["cards/ada.jsonl"], "cards/ada.png")
    assert files["cards/ada.png"] == source.read_bytes()
    assert files["cards/ada.json"] == json.dumps(V3).encode()
    assert [json.loads(line) for line in files["cards/ada.jsonl"].splitlines()] == [
        {
            "id": "ada-example-1",
            "participants": ["ada", "other"],
            "scenario": "A workshop; Someone enters.",
            "turns": [
                {"speaker": "other", "text": "How late?"},
                {"speaker": "ada", "text": "Four minutes.\nSit."},
            ],
        },
        {
            "id": "ada-example-2",
            "participants": ["ada", "other"],
            "scenario": "A workshop; Someone enters.",
            "turns": [{"speaker": "ada", "text": "Tick."}, {"speaker": "other", "text": "Tock?"}],
        },
    ]


@pytest.mark.parametrize(
    ("written", "taken"), [(0.8, 0.8), ("0.25", 0.25), (0, 0.0), (7, 0.5), ("nan", 0.5), ("much", 0.5), (None, 0.5)]
)
def test_talkativeness_is_taken_where_it_is_a_share(written: object, taken: float) -> None:
    value = {**V2, "data": {**V2["data"], "extensions": {"talkativeness": written}}}
    assert draft_of(parse_card(json.dumps(value).encode(), "ada.json")).talkativeness == taken


def test_data_build_takes_the_example_scenes(tmp_path: Path) -> None:
    import_cards([write_png(tmp_path / "x.png", V2)], tmp_path / "cast.yaml")
    (tmp_path / "mrp.yaml").write_text("cast: cast.yaml\n", encoding="utf-8")
    done = mrp("data", "build", tmp_path, "--json")
    assert done.code == 0, done.err
    assert done.json["totals"]["rejected"] == {}
    assert done.json["characters"]["ada"]["train"]["samples"] == 2


def test_the_real_cards_come_in(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "character-cards"
    done = mrp(
        "card", "import", folder / "Shodan_v2.png", folder / "Skynet_v2.png", "--cast", tmp_path / "cast.yaml", "--json"
    )
    assert done.code == 0, done.err
    assert [(c["id"], c["version"], c["scenes"]) for c in done.json["characters"]] == [
        ("shodan", 2, 1),
        ("skynet", 1, 0),
    ]
    cast = load_cast(tmp_path / "cast.yaml")
    assert cast.persona("shodan").startswith("Shodan is a hyper-advanced artificial-intelligence system created on Ea")
    assert "{{" not in cast.persona("shodan") and "{{user}}" in cast["shodan"].persona
    assert "no example dialogues" in done.err and "the persona is long" in done.err


def test_the_real_card_builds(shared: Path, tmp_path: Path) -> None:
    import_cards([shared / "data" / "character-cards" / "Shodan_v2.png"], tmp_path / "cast.yaml")
    (tmp_path / "mrp.yaml").write_text("out: run\n", encoding="utf-8")
    assert build_data(load_run(tmp_path / "mrp.yaml"))["totals"]["kept"] == 1


def test_a_cast_that_is_there_keeps_its_text(tmp_path: Path) -> None:
    mrp("init", tmp_path)
    path = tmp_path / "cast.yaml"
    before = path.read_text(encoding="utf-8")
    import_cards([write_json_card(tmp_path / "new.json", card_named("Nova"))], path)
    after = path.read_text(encoding="utf-8")
    assert all(line in after for line in before.splitlines())
    assert [c.id for c in load_cast(path)] == ["ada", "bruno", "nova"]


def test_a_home_of_the_cast_is_where_its_files_go(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "cast.yaml"
    path.write_text("home: ..\ncharacters:\n  - {id: a, name: A}\n", encoding="utf-8")
    import_cards([write_png(tmp_path / "x.png", V2)], path)
    assert (tmp_path / "cards" / "ada.json").is_file() and not (tmp_path / "run" / "cards").exists()


def test_chinese_cards_make_a_chinese_cast(tmp_path: Path) -> None:
    card = card_named(
        "孙悟空",
        description="你是{{char}}，会七十二变。",
        mes_example="<START>\n{{user}}：你是谁？\n{{char}}：俺老孙！",
    )
    import_cards([write_json_card(tmp_path / "wukong.json", card)], tmp_path / "cast.yaml")
    cast = load_cast(tmp_path / "cast.yaml")
    assert (cast.language, cast.characters[0].id) == ("zh", "wukong")
    assert cast.persona("wukong") == "你是孙悟空，会七十二变。"
    (line,) = (tmp_path / "cards" / "wukong.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["turns"][1] == {"speaker": "wukong", "text": "俺老孙！"}


@pytest.mark.parametrize(
    ("name", "nickname", "stem", "expected"),
    [
        ("Zoë O'Neil", "", "x", "zoe-o-neil"),
        ("孙悟空", "", "wukong", "wukong"),
        ("孙悟空", "Monkey", "x", "monkey"),
        ("孙悟空V2", "", "孙悟空", "character"),
        ("../../etc/passwd", "", "x", "etc-passwd"),
        ("CON", "", "x", "con-2"),
        ("Other.", "", "x", "x"),
        ("taken", "", "x", "taken-2"),
        ("A" * 300, "", "x", "a" * 40),
        ("🐒", "", "🐒", "character"),
    ],
)
def test_ids_are_readable_and_safe(name: str, nickname: str, stem: str, expected: str) -> None:
    card = parse_card(json.dumps(card_named(name)).encode(), "x")
    card.data["nickname"] = nickname
    assert free_id(card, stem, {"taken"}) == expected


def test_ids_differ_where_names_make_the_same(tmp_path: Path) -> None:
    cards = [card_named("Ada!"), card_named("Ada?"), card_named("Ada-2"), card_named("Bob", extensions={})]
    paths = [write_json_card(tmp_path / f"{k}.json", card) for k, card in enumerate(cards)]
    import_cards(paths, tmp_path / "cast.yaml")
    assert [(c.id, c.name) for c in load_cast(tmp_path / "cast.yaml")] == [
        ("ada", "Ada!"),
        ("ada-3", "Ada?"),  # ada-2 is somebody's name
        ("ada-2", "Ada-2"),
        ("bob", "Bob"),
    ]


def test_an_alias_that_somebody_has_is_left_out_and_told(tmp_path: Path) -> None:
    paths = [write_json_card(tmp_path / "1.json", card_named("Addie")), write_json_card(tmp_path / "2.json", V3)]
    done = import_cards(paths, tmp_path / "cast.yaml")
    assert load_cast(tmp_path / "cast.yaml")["ada"].aliases == []
    assert "the alias 'Addie' is left out: somebody else in the cast has it" in done["characters"][1]["notes"]


def examples(text: str, **more: Any) -> tuple[list[dict[str, Any]], list[str]]:
    draft = draft_of(parse_card(json.dumps(card_named("Ada (AI)", **more)).encode(), "x"))
    return example_scenes(text, draft, "ada", "en")


def test_what_stands_before_the_first_speaker_sets_the_scene() -> None:
    rows, notes = examples("<start>\nNight falls on {{user}}.\n{{char}}: Who?\n", scenario="A tower.")
    assert rows[0]["scenario"] == "A tower.\n\nNight falls on Someone."
    assert rows[0]["turns"] == [{"speaker": "ada", "text": "Who?"}] and notes == []


def test_the_first_block_needs_no_start() -> None:
    rows, _ = examples("{{char}}: One.\n<START>\nAda (AI): Two.\r\n{{user}}: Three.\n\n{{char}}:\n<bot>: Four: 4.")
    assert [[turn["text"] for turn in row["turns"]] for row in rows] == [["One."], ["Two.", "Three.", "Four: 4."]]


def test_blocks_without_a_line_of_the_character_are_counted() -> None:
    rows, notes = examples("<START>\nNo speaker at all.\n<START>\n{{user}}: Alone?\n<START>\n\n<START>")
    assert rows == [] and notes == ["2 example blocks have no line of the character; they stay in the card alone"]


def test_control_characters_do_not_stop_a_scene(tmp_path: Path) -> None:
    card = card_named("Ada", mes_example="<START>\n{{char}}: be\x07ep\x0b\u2028!", first_mes="\x1b[31mred\x85")
    import_cards([write_json_card(tmp_path / "a.json", card)], tmp_path / "cast.yaml")
    (tmp_path / "mrp.yaml").write_text("cast: cast.yaml\n", encoding="utf-8")
    assert mrp("data", "build", tmp_path, "--json").json["totals"]["rejected"] == {}
    assert load_cast(tmp_path / "cast.yaml")["ada"].greeting == "[31mred"


def test_every_fault_of_every_file_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    paths = [
        write_png(tmp_path / "good.png", V2),
        write_json_card(tmp_path / "no-name.json", card_named("")),
        write_json_card(tmp_path / "same.json", V1),
        write_json_card(tmp_path / "other.json", card_named("Other")),
        write_json_card(tmp_path / "types.json", card_named("T", scenario=1, first_mes=2)),
        tmp_path / "absent.png",
    ]
    before = tree(tmp_path)
    with pytest.raises(ManyFaults) as caught:
        import_cards(paths, tmp_path / "deep" / "cast.yaml")
    assert [(Path(f.where.split(": ")[0]).name, f.what) for f in caught.value.faults] == [
        ("no-name.json", "the card has no name"),
        ("types.json", "wanted is a text, not 1"),
        ("types.json", "wanted is a text, not 2"),
        ("absent.png", "no such file: absent.png"),
        ("same.json", f"the name 'Ada' is not free: the card {paths[0]} has it"),
        ("other.json", "the name 'Other' is kept for unknown speakers"),
    ]
    assert tree(tmp_path) == before and not (tmp_path / "deep").exists()


def test_a_card_cannot_come_twice(tmp_path: Path) -> None:
    source, path = write_png(tmp_path / "x.png", V2), tmp_path / "cast.yaml"
    import_cards([source], path)
    before = tree(tmp_path)
    done = mrp("card", "import", source, "--cast", path)
    assert done.code == 2 and "the name 'Ada' is not free: 'ada' of the cast has it" in done.err
    assert tree(tmp_path) == before


def test_a_broken_cast_is_told_with_the_broken_cards(tmp_path: Path) -> None:
    path = tmp_path / "cast.yaml"
    path.write_text("characters: 7\n", encoding="utf-8")
    done = mrp("card", "import", tmp_path / "absent.png", "--cast", path)
    assert done.code == 2 and "cast.yaml:1" in done.err and "absent.png" in done.err
    assert path.read_text(encoding="utf-8") == "characters: 7\n"


def test_files_in_the_way_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "ada.json").write_text("mine", encoding="utf-8")
    (tmp_path / "cards" / "ada.jsonl").symlink_to(tmp_path / "elsewhere")
    source = write_png(tmp_path / "x.png", V2)
    before = tree(tmp_path)
    with pytest.raises(ManyFaults, match="a file stands where one of 'Ada' would"):
        import_cards([source], tmp_path / "cast.yaml")
    assert tree(tmp_path) == before


def test_files_of_an_import_that_was_killed_are_taken_over(tmp_path: Path) -> None:
    source = write_png(tmp_path / "x.png", V2)
    import_cards([source], tmp_path / "cast.yaml")
    whole = tree(tmp_path)
    (tmp_path / "cast.yaml").unlink()
    (tmp_path / "cards" / "ada.png").unlink()
    import_cards([source], tmp_path / "cast.yaml")
    assert tree(tmp_path) == whole


@pytest.mark.parametrize("failing", ["cast.yaml", "bob.json"])
def test_nothing_stays_where_a_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    paths = [write_png(tmp_path / "x.png", V2), write_json_card(tmp_path / "b.json", card_named("Bob"))]
    before = tree(tmp_path)
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if Path(target).name == failing:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(Exception, match="no space left"):
        import_cards(paths, tmp_path / "new" / "cast.yaml")
    assert tree(tmp_path) == before and not (tmp_path / "new").exists()


def test_a_cast_that_changes_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cast.yaml"
    import mrp.cards.take_in as take_in

    write = take_in._write

    def meddled(target: Path, content: Any) -> None:
        write(target, content)
        path.write_text("characters: [{id: b, name: B}]\n", encoding="utf-8")

    monkeypatch.setattr(take_in, "_write", meddled)
    with pytest.raises(InputError, match="changed while"):
        import_cards([write_json_card(tmp_path / "x.json", V1)], path)
    assert [c.id for c in load_cast(path)] == ["b"] and not (tmp_path / "cards").exists()
