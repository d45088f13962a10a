"""Tallies of parts add up to the tally of the whole, in any order, and come back from JSON."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mrp.data.tally as tally_module
from mrp.cast import OTHER
from mrp.data.lint import Finding
from mrp.data.tally import EDGES, LARGE_IMBALANCE, REST, Tally, bin_end, bin_of
from mrp.dialogue import Scene, Turn

MEMBERS = ("wukong", "bajie", "tang")


def is_character(speaker: str) -> bool:
    return speaker in MEMBERS


def scene(*turns: tuple[str, str]) -> Scene:
    return Scene("s", tuple(dict.fromkeys(who for who, _ in turns)), tuple(Turn(*turn) for turn in turns))


def tally_of(*scenes: Scene, findings: tuple[Finding, ...] = ()) -> Tally:
    tally = Tally()
    for one in scenes:
        tally.lines += 1
        tally.formats["scene"] += 1
        tally.add(one, findings, is_character)
    return tally


spoken = st.tuples(st.sampled_from([*MEMBERS, OTHER, "Innkeeper", "Guard"]), st.text(min_size=1, max_size=60))
scenes = st.lists(spoken, min_size=1, max_size=6).map(lambda turns: scene(*turns))
findings = st.lists(st.builds(Finding, st.sampled_from(["mojibake", "same-text"]), st.just("x"), st.integers(0, 3)))
parts = st.lists(st.tuples(scenes, findings), max_size=5)


def tally_part(part: list[tuple[Scene, list[Finding]]]) -> Tally:
    tally = Tally(lines=len(part), rejected=Counter({"duplicate": len(part)}), duplicates=Counter(exact=1))
    for one, found in part:
        tally.add(one, found, is_character)
    return tally


def merged(*tallies: Tally) -> Tally:
    whole = Tally()
    for tally in tallies:
        whole.merge(tally)
    return whole


@given(parts, parts, parts)
def test_merging_is_free_of_order_and_grouping(a: list, b: list, c: list) -> None:  # type: ignore[type-arg]
    x, y, z = tally_part(a), tally_part(b), tally_part(c)
    whole = merged(x, y, z).as_json()
    assert merged(z, x, y).as_json() == whole
    assert merged(merged(x, y), z).as_json() == whole
    assert merged(x, merged(y, z)).as_json() == whole
    once = tally_part([*a, *b, *c])
    once.duplicates = Counter(exact=3)
    assert once.as_json() == whole
    text = json.dumps(whole, ensure_ascii=False)
    assert Tally.from_json(json.loads(text)).as_json() == whole


def test_what_is_counted() -> None:
    tally = tally_of(
        scene((OTHER, "Who?"), ("wukong", "俺老孙"), ("Innkeeper", "Oh")),
        scene(("wukong", "a" * 40), ("bajie", "Oof!")),
        findings=(Finding("mojibake", "x", 0), Finding("mojibake", "x", 1)),
    )
    assert (tally.scenes, tally.turns, tally.replies, tally.tokens) == (2, 5, 3, 1 + 3 + 1 + 10 + 1)
    assert tally.by_character["wukong"].tokens == 13 and tally.by_character["wukong"].scenes == 2
    assert tally.strangers == {"Innkeeper": 1} and tally.top_strangers() == [("Innkeeper", 1)]
    assert tally.findings == {"mojibake": 4} and tally.scenes_with == {"mojibake": 2}
    assert tally.scene_turns == {3: 1, 2: 1}
    assert sum(tally.by_character["wukong"].reply_tokens.values()) == tally.by_character["wukong"].replies


def test_entrances_are_no_turns() -> None:
    one = Scene("s", (OTHER,), (Turn(OTHER, "Who?"), Turn("Guard", enters=True), Turn("wukong", "I!")))
    assert tally_of(one).turns == 2 and not tally_of(one).strangers


def test_balance_is_measured_three_ways() -> None:
    pairs = [scene(("wukong", "word " * 8), ("wukong", "word " * 8)) for _ in range(4)]
    tally = tally_of(*pairs, scene(("bajie", "word " * 8), ("bajie", "word " * 8)))
    ratios = {word: (b.ratio, b.largest, b.smallest) for word, b in tally.balance().items()}
    assert ratios == dict.fromkeys(("lines", "turns", "tokens"), (4.0, "wukong", "bajie"))
    assert all(sum(b.shares.values()) == pytest.approx(1) for b in tally.balance().values())
    assert tally.imbalances() == []
    tally.merge(tally_of(scene(*[("wukong", "word " * 8)] * 5)))
    assert [f.detail.split(":")[0] for f in tally.imbalances()] == ["turns", "tokens"]
    assert all(b.ratio > LARGE_IMBALANCE for word, b in tally.balance().items() if word != "lines")
    assert tally_of(scene(("wukong", "Ha!"))).balance() == {}


@given(st.integers(0, 10**9))
def test_bins_hold_their_values(value: int) -> None:
    edge = bin_of(value)
    assert edge in EDGES and edge <= value
    assert value < bin_end(edge) or edge == EDGES[-1]


def test_bins_are_in_order() -> None:
    assert list(EDGES) == sorted(set(EDGES))


def test_memory_is_bounded_by_a_common_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_module, "MOST_NAMES", 3)
    tally = Tally()
    for k in range(10):
        tally.add(scene((f"stranger {k}", "Oh"), (f"member {k}", "Ah")), [], lambda s: s.startswith("member"))
    assert len(tally.strangers) == 4 and tally.strangers[REST] == 7
    assert len(tally.by_character) == 4 and tally.by_character[REST].replies == 7
    assert REST not in dict(tally.top_strangers()) and REST not in tally.balance()["turns"].shares
