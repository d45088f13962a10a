"""Benchmarks in their own formats: what is read, what is played, and what is said of damaged files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from benchmark_data import charactereval, coser, rolebench, write
from projects import write_rows
from scripted import CAST, prompt_text, scripted

from mrp.cast import OTHER, Cast, Character
from mrp.dialogue import Turn
from mrp.errors import InputError
from mrp.evaluate.asking import answer_all
from mrp.evaluate.benchmark_cast import ask_item, cast_of, player_of
from mrp.evaluate.benchmark_charactereval import write as write_charactereval
from mrp.evaluate.benchmark_files import Benchmark, read_benchmark
from mrp.evaluate.benchmark_rolebench import write as write_rolebench
from mrp.evaluate.benchmark_rouge import common_subsequence, rouge_l
from mrp.evaluate.benchmark_simulation import simulate, turns_to_play, write_simulation
from mrp.evaluate.kept import Kept
from mrp.files import read_json


def test_charactereval_is_read_in_its_own_format(tmp_path: Path) -> None:
    folder = charactereval(tmp_path)
    found = read_benchmark("charactereval", folder)
    assert found.language == "zh" and [item.id for item in found.items] == ["7", "8", "9"]
    first, second, third = found.items
    assert first.turns[-1] == Turn("师父", "小心些：山高。") and len(first.turns) == 3
    assert second.turns == (Turn("客人", "你会唱歌吗？\n再大声些。"),)
    assert len({first.unit, second.unit, third.unit}) == 3  # other dialogues
    assert found.people["孙悟空"].persona == "你是孙悟空。\n性别：男\n身份：齐天大圣、大师兄"
    assert found.people["石匠"].persona == "你是石匠。\n一个爱唱歌的石匠。"
    for path in (folder / "data", folder / "data" / "test_data.jsonl"):
        assert read_benchmark("charactereval", path) == found


def test_rolebench_is_read_in_its_own_format(tmp_path: Path) -> None:
    home = rolebench(tmp_path)
    found = read_benchmark("rolebench", home)
    assert found.language == "en" and len(found.items) == 8 and len(found.files) == 3
    assert found.items[0].turns == (Turn(OTHER, "A general question 0?"),)
    assert found.items[0].references == ("Sun Wukong knows general 0.", "Nobody.")
    assert found.people["Old Mason"].persona == "You are Old Mason.\nA mason who sings."
    assert len(read_benchmark("rolebench", home / "general" / "test.jsonl").items) == 4
    with pytest.raises(InputError, match="no set of RoleBench") as caught:
        read_benchmark("rolebench", tmp_path)
    assert "rolebench-eng/instruction-generalization" in caught.value.fix


def test_coser_is_read_in_its_own_format(tmp_path: Path) -> None:
    found = read_benchmark("coser", coser(tmp_path))
    assert found == read_benchmark("coser", tmp_path)
    assert [item.references[0] for item in found.items] == ["Late? I flew!", "Then fly again.", "Ha! Watch me."]
    mason = found.items[1]
    assert mason.turns == (
        Turn("Old Mason", "(looks up) You are late, friend."),
        Turn("Sun Wukong", "Late? I flew!"),
        Turn("Environment", "The wind rises."),
    )
    assert mason.scenario == "A wall at dusk.\n\nTired.\n\nHe wants to go home."
    assert found.items[0].scenario == "A wall at dusk."  # what moves the mason is not the other's to know
    assert not any("[" in turn.text for item in found.items for turn in item.turns)


@pytest.mark.parametrize(
    ("name", "path", "words"),
    [
        ("charactereval", "nowhere", ("nowhere", "CharacterEval")),
        ("coser", "empty", ("test_set.json", "CoSER")),
        ("rolebench", "empty", ("no set of RoleBench", "RoleBench")),
        ("charactereval", "empty", ("character_profiles.json", "CharacterEval")),
        ("rolbench", "empty", ("rolbench", "did you mean 'rolebench'")),
    ],
)
def test_missing_files_are_named_with_where_to_get_them(
    tmp_path: Path, name: str, path: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        read_benchmark(name, tmp_path / path)
    assert all(word in str(caught.value) for word in words)
    assert caught.value.fix and caught.value.where


def test_every_fault_of_a_damaged_file_is_named_with_its_place(tmp_path: Path) -> None:
    file = charactereval(tmp_path) / "data" / "test_data.jsonl"
    rows = json.loads(file.read_text(encoding="utf-8"))
    rows[0]["role"], rows[1]["context"], rows[2]["context"] = "无名", "", "客人：你好\n石匠：你好"
    write(file, [*rows, "no object", {"id": 9, "role": "石匠", "context": "没有名字"}])
    with pytest.raises(InputError) as caught:
        read_benchmark("charactereval", tmp_path)
    for word in (
        "element 0",
        "无名",
        "element 1",
        "element 2",
        "somebody else",
        "element 3",
        "element 4",
        "stands twice",
    ):
        assert word in str(caught.value), word
    home = rolebench(tmp_path)
    write_rows(home / "general" / "test.jsonl", ['{"role": "Sun', {"role": "Nobody", "question": "?", "generated": []}])
    with pytest.raises(InputError) as caught:
        read_benchmark("rolebench", home)
    for word in ("test.jsonl:1", "no JSON", "test.jsonl:2", "no description", "at least one answer"):
        assert word in str(caught.value), word
    for text in ("{", "[1]", '[{"book": "\\ud83d"}]', '[{"book": "B"}]', "\xff"):
        (tmp_path / "test_set.json").write_text(text, encoding="latin-1")
        with pytest.raises(InputError) as caught:
            read_benchmark("coser", tmp_path)
        assert "test_set.json" in str(caught.value) and "fix:" in str(caught.value)
    (tmp_path / "test_set.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="no place to speak in"):
        read_benchmark("coser", tmp_path)


def asked(benchmark: Benchmark, number: int, folder: Path, cast: Cast = CAST) -> str:
    """The prompt of an item, as text."""
    players = cast_of(benchmark, cast, "here")
    player = scripted(cast, "Ha!")
    ask = ask_item(players, benchmark.items[number], 0)
    with Kept(folder / f"kept-{number}.jsonl") as kept:
        answer_all(player_of(player, players), "m", [ask], kept, 1)
    assert player.engine.voices == [ask.character]
    return prompt_text(player)


def test_roles_are_played_through_the_same_view_and_the_runs_own_as_they_were_trained(tmp_path: Path) -> None:
    found = read_benchmark("rolebench", rolebench(tmp_path))
    players = cast_of(found, CAST, "here")
    assert players.own == ("Sun Wukong",) and players.ids["Sun Wukong"] == "wukong"
    own, stranger = asked(found, 0, tmp_path), asked(found, 2, tmp_path)
    assert CAST["wukong"].persona in own and "A monkey king." not in own
    assert "You are Old Mason.\nA mason who sings." in stranger and "A general question 0?" in stranger


def test_a_role_that_the_run_calls_by_another_name_keeps_its_lines(tmp_path: Path) -> None:
    cast = Cast(
        characters=[Character(id="ape", name="Great Sage", aliases=["Sun Wukong"], persona="You are the Sage.")]
    )
    found = read_benchmark("coser", coser(tmp_path))
    last = asked(found, 2, tmp_path, cast)
    before, _, after = last.partition("You are the Sage.")
    assert before.endswith("system\n") and "Old Mason: (looks up) You are late, friend." in after
    assert "assistant\nLate? I flew!" in after and "Sun Wukong:" not in after  # its own line, not somebody's
    assert "Environment: The wind rises." in after


def test_names_that_no_character_can_have_are_refused(tmp_path: Path) -> None:
    home = rolebench(tmp_path)
    write_rows(home / "general" / "test.jsonl", [{"role": "other", "question": "?", "generated": ["x"]}])
    write(tmp_path / "profiles-eng" / "desc.json", {"other": "x", "Sun Wukong": "y", "Old Mason": "z"})
    with pytest.raises(InputError, match="cannot be played"):
        cast_of(read_benchmark("rolebench", home), CAST, "here")


def test_replies_are_written_as_the_benchmarks_own_scorers_read_them(tmp_path: Path) -> None:
    found = read_benchmark("charactereval", charactereval(tmp_path / "c"))
    rows = read_json(write_charactereval(tmp_path, found, {"7": "我去！", "9": "山里来。"}))
    assert [(row["id"], row["model_output"]) for row in rows] == [(7, "我去！"), (9, "山里来。")]
    assert set(rows[0]) == {"id", "role", "novel_name", "context", "model_output"}
    bench = read_benchmark("rolebench", rolebench(tmp_path / "r"))
    file = write_rolebench(tmp_path, bench, {bench.items[0].id: "Ha!"})
    assert json.loads(file.read_text(encoding="utf-8")) == {
        "role": "Sun Wukong", "question": "A general question 0?", "generated": ["Ha!"]
    }  # fmt: skip


def test_a_scene_is_played_on_the_models_own_lines_in_the_real_order(tmp_path: Path) -> None:
    found = read_benchmark("coser", coser(tmp_path / "c"))
    players = cast_of(found, CAST, "here")
    scripted_player = scripted(CAST, "Hm.", "Hey!", "So.", "Yes!")
    scene = found.items[0].unit
    assert turns_to_play(found, [scene]) == 4
    with Kept(tmp_path / "kept.jsonl") as kept:
        said = simulate(player_of(scripted_player, players), "m", players, found, [scene], kept, 1, 0)
    last = prompt_text(scripted_player)
    assert "You are late" not in last and "Old Mason: Hm." in last and "assistant\nHey!" in last
    (row,) = read_json(write_simulation(tmp_path, found, said))
    assert [(m["role"], m["content"]) for m in row["simulation"]] == [
        ("Old Mason", "Old Mason: Hm."),
        ("Sun Wukong", "Sun Wukong: Hey!"),
        ("Environment", "Environment: The wind rises."),
        ("Old Mason", "Old Mason: So."),
        ("Sun Wukong", "Sun Wukong: Yes!"),
    ]
    assert row["i_p"] == row["circumstance"]["plot"].get("i_p", 3) and row["book_title"] == "The Wall"
    assert row["involved_character_profiles"]["Old Mason"] == "Tired.\n\nA mason who sings."


def test_rouge_l_is_that_of_the_definition() -> None:
    assert rouge_l("Ha! Old Monkey", "Old Monkey is here") == pytest.approx(2 * 2 / 7)
    assert rouge_l("老孙来也", "老孙去也") == pytest.approx(2 * 3 / 8)
    assert rouge_l("", "x") == rouge_l("x", "") == rouge_l("...", "...") == 0 and rouge_l("The Cat", "the cat!") == 1
    generator = random.Random(0)
    for _ in range(200):
        a, b = ([generator.choice("abcd") for _ in range(generator.randrange(9))] for _ in range(2))
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert common_subsequence(a, b) == table[-1][-1]
