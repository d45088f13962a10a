"""What the options of `data:` do to a build: repeats, what is taken, caps, copies, the split, general data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from dialogue_rows import pair, scene
from heard import Heard

from mrp.config import Run
from mrp.data.build import build_data
from mrp.data.identity import identity_scenes
from mrp.data.keys import ALIKE
from mrp.data.near import jaccard, ngrams
from mrp.data.samples import Sample, read_samples

MakeRun = Callable[..., Run]
WORDS = ["river", "mountain", "lantern", "monkey", "scripture", "peach", "cloud", "temple", "demon", "staff", "rice"]


def text(number: int, words: int = 12) -> str:
    """A sentence that shares little with those of other numbers."""
    return " ".join(WORDS[(number * 7 + k * (3 + number % 5)) % len(WORDS)] + str(number * k) for k in range(words))


def rows(name: str, count: int, start: int = 0) -> list[dict[str, Any]]:
    return [pair(f"{name} asks {text(i)}", f"{name} says {text(i + 1000)}") for i in range(start, start + count)]


def built(run: Run) -> tuple[dict[str, Any], list[Sample], list[Sample]]:
    manifest = build_data(run)
    held = run.data / "held-out.jsonl"
    return (
        manifest,
        read_samples(run.data / "train.jsonl"),
        read_samples(held) if held.stat().st_size else [],
    )


def rejects(run: Run) -> list[dict[str, str]]:
    return [json.loads(line) for line in (run.data / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]


REPEATS = [
    pair("Who goes there tonight?", "I am the Great Sage, and I go where I please."),
    pair("Who goes there tonight?", "I am the Great Sage, and I go where I please."),
    pair("And where is the master, friend?", "Praying, as always, while we starve in the rain."),
    pair("who goes there, tonight", "I am the great sage and I go where I please!"),
    pair("Who goes there tonight?", "I am the Great Sage, and I go where I please."),
    pair("Who goes there tonight, friend?", "I am the Great Sage, and I go wherever I please."),
]


@pytest.mark.parametrize(
    ("dedupe", "gone"),
    [
        ("none", {}),
        ("adjacent", {2: "duplicate"}),
        ("exact", {2: "duplicate", 5: "duplicate"}),
        ("normalised", {2: "duplicate", 4: "duplicate", 5: "duplicate"}),
        ("near", {2: "duplicate", 4: "duplicate", 5: "duplicate", 6: "near-duplicate"}),
    ],
)
def test_repeats_go_as_asked_and_name_what_they_repeat(make_run: MakeRun, dedupe: str, gone: dict[int, str]) -> None:
    run = make_run({"wukong": REPEATS}, people=["wukong"], data={"dedupe": dedupe, "held_out": 0, "similarity": 0.5})
    manifest, train, _ = built(run)
    assert {int(r["source"].split(":")[1]): r["reason"] for r in rejects(run)} == gone
    assert all("wukong.jsonl:1" in r["detail"] for r in rejects(run))
    assert len(train) == len(REPEATS) - len(gone) == manifest["totals"]["kept"]


def test_alike_lines_of_two_characters_are_no_repeats(make_run: MakeRun) -> None:
    row = pair("Who goes there tonight, and why?", "A pilgrim, and a tired one, friend.")
    run = make_run({"tang": [row], "wukong": [row]}, data={"dedupe": "near", "held_out": 0})
    assert len(built(run)[1]) == 2


def test_head_and_tail_of_each_file_and_nothing_twice(make_run: MakeRun) -> None:
    own = {"tang": rows("tang", 12), "wukong": rows("wukong", 4)}
    run = make_run(own, data={"take": "head-tail", "head": 3, "tail": 2, "held_out": 0, "order": "sequential"})
    heard = Heard()
    manifest = build_data(run, heard)
    train = read_samples(run.data / "train.jsonl")
    assert [item.get("head_and_tail_meet", False) for item in manifest["inputs"]] == [False, True]
    assert [line for line in heard.lines if "head and tail meet" in line and "wukong.jsonl (4)" in line]
    assert [s.source for s in train] == [
        *(f"tang.jsonl:{n}" for n in (1, 2, 3, 11, 12)),
        *(f"wukong.jsonl:{n}" for n in (1, 2, 3, 4)),  # head and tail overlap: each line once
    ]
    assert manifest["totals"]["rejected"] == {"not-taken": 7}
    assert {r["reason"] for r in rejects(run)} == {"not-taken"}


def test_repeats_do_not_count_for_head_and_tail(make_run: MakeRun) -> None:
    lines = rows("tang", 3)
    run = make_run(
        {"tang": [lines[0], lines[0], lines[1], lines[2], lines[2]]},
        people=["tang"],
        data={"take": "head-tail", "head": 1, "tail": 1, "held_out": 0, "order": "sequential"},
    )
    assert [s.source for s in built(run)[1]] == ["tang.jsonl:1", "tang.jsonl:4"]


@pytest.mark.parametrize("take", ["random", "stratified"])
def test_a_sample_is_drawn_by_the_seed(make_run: MakeRun, take: str) -> None:
    own = {"tang": rows("tang", 30), "wukong": rows("wukong", 10)}
    found = [
        {s.id for s in built(make_run(own, data={"take": take, "sample": 12, "held_out": 0}, seed=seed))[1]}
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]
    assert all(len(ids) == 12 for ids in found)
    if take == "stratified":
        assert Counter(i.split("-")[0] for i in found[2]) == {"tang": 9, "wukong": 3}


def test_caps_hold_for_each_character(make_run: MakeRun) -> None:
    own = {"tang": rows("tang", 20), "wukong": rows("wukong", 3)}
    manifest, train, _ = built(make_run(own, data={"cap_samples": 5, "held_out": 0}))
    assert Counter(s.character for s in train) == {"tang": 5, "wukong": 3}
    assert manifest["totals"]["rejected"] == {"over-cap": 15}
    manifest, train, _ = built(make_run(own, data={"cap_turns": 9, "held_out": 0}))
    assert Counter(s.character for s in train) == {"tang": 4, "wukong": 3}
    manifest, train, _ = built(make_run(own, data={"cap_tokens": 200, "held_out": 0}))
    assert 0 < manifest["characters"]["tang"]["train"]["tokens"] <= 200


def test_copies_bring_small_characters_nearer_to_the_largest(make_run: MakeRun) -> None:
    own = {"tang": rows("tang", 20), "wukong": rows("wukong", 8), "bajie": rows("bajie", 2)}
    manifest, train, _ = built(make_run(own, data={"upsample": 4.0, "held_out": 0}))
    assert Counter(s.character for s in train) == {"tang": 20, "wukong": 20, "bajie": 8}
    assert len({s.id for s in train}) == len(train)
    of_wukong = Counter(s.scene for s in train if s.character == "wukong")
    assert set(of_wukong.values()) == {2, 3} and len(of_wukong) == 8
    assert manifest["characters"]["wukong"]["upsampled"] == 2.5
    assert manifest["characters"]["bajie"]["upsampled"] == 4.0
    assert "upsampled" not in manifest["characters"]["tang"]


def test_held_out_scenes_are_never_copied(make_run: MakeRun) -> None:
    own = {"tang": rows("tang", 40), "wukong": rows("wukong", 10)}
    _, train, held = built(make_run(own, data={"upsample": 3.0, "held_out": 0.2}))
    assert Counter(s.character for s in held) == {"tang": 8, "wukong": 2}
    assert not {s.scene for s in held} & {s.scene for s in train}


def test_a_strict_split_has_nothing_alike_on_both_sides(make_run: MakeRun) -> None:
    base = rows("tang", 30)
    near = [pair(f"{r['conversation'][0]['input']} now", r["conversation"][0]["output"]) for r in base[:15]]
    asked = [pair(base[k]["conversation"][0]["input"], f"Another answer: {text(k + 5000)}") for k in range(15, 25)]
    told = [pair(f"Tell me of {text(k + 9000, 3)}", base[k]["conversation"][0]["output"]) for k in range(25, 30)]
    run = make_run({"tang": base + near + asked + told}, people=["tang"], data={"held_out": 0.3})
    manifest, train, held = built(run)
    assert manifest["split"]["kind"] == "strict" and manifest["split"]["scenes_in_groups"] == 60
    assert len(held) == 18

    def whole(sample: Sample) -> str:
        return "\n".join(turn.text for turn in sample.turns)

    sets = [[ngrams([whole(s)]).of(0) for s in side] for side in (train, held)]
    assert max(jaccard(a, b) for a in sets[0] for b in sets[1]) < ALIKE
    for place in (0, 1):
        assert not {s.turns[place].text for s in train} & {s.turns[place].text for s in held}


def test_a_plain_split_keeps_scenes_whole_and_no_more(make_run: MakeRun) -> None:
    both = [scene(("wukong", f"x {text(i)}"), ("tang", f"y {text(i + 50)}")) for i in range(20)]
    manifest, train, held = built(make_run(scenes=both, people=["tang", "wukong"], data={"split": "scenes"}))
    assert manifest["split"] == {"kind": "scenes"}
    assert not {s.scene for s in held} & {s.scene for s in train}


def test_identity_questions_stand_beside_the_lines_and_are_never_held_out(make_run: MakeRun) -> None:
    own = {"tang": rows("tang", 20), "wukong": rows("wukong", 10)}
    manifest, train, held = built(make_run(own, data={"identity": 0.2, "held_out": 0.1}))
    asked = [s for s in train if s.source.startswith("identity:")]
    assert Counter(s.character for s in asked) == {"tang": 4, "wukong": 2}
    assert manifest["characters"]["tang"]["identity"] == 4
    assert not [s for s in held if s.source.startswith("identity:")]
    assert all(s.loss == (False, True) for s in asked)


def test_no_more_identity_questions_are_trained_than_there_are(make_run: MakeRun) -> None:
    run, heard = make_run({"tang": rows("tang", 80)}, people=["tang"], data={"identity": 1.0, "held_out": 0}), Heard()
    manifest = build_data(run, heard)
    existing = len(identity_scenes(run.cast, "tang", "train"))
    assert 0 < manifest["characters"]["tang"]["identity"] == existing < 80
    assert heard.warnings == [
        f"80 identity questions are asked for tang by data.identity, and {existing} exist: each is taken once"
    ]


def test_general_data_stands_beside_the_cast_in_the_ratio_asked_for(make_run: MakeRun) -> None:
    own = {"tang": rows("tang", 20), "wukong": rows("wukong", 10)}
    run = make_run(own)
    general = [{"messages": [{"role": "user", "content": text(i)}, {"role": "assistant", "content": text(i + 300)}]}
               for i in range(50)]  # fmt: skip
    (run.path.parent / "general.jsonl").write_text("".join(json.dumps(g) + "\n" for g in general), encoding="utf-8")
    run = make_run(own, data={"mix": 0.5, "mix_files": ["general.jsonl"], "held_out": 0.2})
    manifest, train, held = built(run)
    assert manifest["characters"]["plain"]["train"]["samples"] == 12
    assert manifest["characters"]["plain"]["held_out"]["samples"] == 3
    assert Counter(s.character for s in train + held)["plain"] == 15
    assert manifest["totals"]["rejected"] == {"not-taken": 35}


def test_findings_are_counted_and_rejected_only_on_demand(make_run: MakeRun) -> None:
    odd = pair("Where is the road?", "As an AI language model, I cannot walk, but the road lies east.")
    own = {"tang": [*rows("tang", 5), odd]}
    manifest, train, _ = built(make_run(own, people=["tang"], data={"held_out": 0}))
    assert manifest["totals"]["findings"] == {"assistant-ism": 1} and len(train) == 6
    run = make_run(own, people=["tang"], data={"held_out": 0, "reject": ["assistant-ism"]})
    manifest, train, _ = built(run)
    assert manifest["totals"]["rejected"] == {"assistant-ism": 1} and len(train) == 5
    assert "AI language model" in rejects(run)[0]["text"]
