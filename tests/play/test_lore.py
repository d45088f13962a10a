"""Lore: which entries come up, which are told where the budget is short, and which patterns are refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pydantic
import pytest
from scripted import CAST

from mrp.cards.lorebook import entry_of, read_lorebook
from mrp.cast import load_cast
from mrp.errors import InputError, ManyFaults
from mrp.lore import SCANNED, LoreEntry
from mrp.play.lore import Lore


def entry(*keys: str, text: str = "A fact.", **more: Any) -> LoreEntry:
    return LoreEntry(keys=list(keys), text=text, **more)


def lore_of(*entries: LoreEntry) -> Lore:
    return Lore.of(CAST.model_copy(update={"lore": list(entries)}), "wukong")


def chosen(lore: Lore, *lines: str, budget: int = 1000, seed: int = 0) -> list[str]:
    return [used.entry.text for used in lore.choose(lines, len, budget, seed)]


@pytest.mark.parametrize(
    ("keys", "more", "text", "found"),
    [
        (["ear"], {}, "Behind his EAR.", True),
        (["ear"], {}, "I hear.", False),
        (["ear"], {"whole_words": False}, "I hear.", True),
        (["Ear"], {"case_sensitive": True}, "an ear", False),
        (["金箍棒"], {}, "俺的金箍棒在此", True),
        (["/st[ae]ff?/i"], {}, "His STAFF", True),
        (["st[ae]ff"], {"regex": True}, "staff", True),
        (["st[ae]ff"], {}, "staff", False),
        (["c++"], {}, "I like c++ much", True),
        ([" "], {}, "a b", False),
        (["a"], {"secondary": ["b", "c"]}, "a c", True),
        (["a"], {"secondary": ["b", "c"]}, "a", False),
        (["a"], {"secondary": ["b", "c"], "logic": "and_all"}, "a c", False),
        (["a"], {"secondary": ["b", "c"], "logic": "and_all"}, "c a b", True),
        (["a"], {"secondary": ["b", "c"], "logic": "not_any"}, "a c", False),
        (["a"], {"secondary": ["b", "c"], "logic": "not_any"}, "a d", True),
        (["a"], {"secondary": ["b", "c"], "logic": "not_all"}, "a c", True),
        (["a"], {"secondary": ["b", "c"], "logic": "not_all"}, "a b c", False),
    ],
)
def test_keys_bring_an_entry_up(keys: list[str], more: dict[str, Any], text: str, found: bool) -> None:
    assert bool(entry(*keys, **more).found_in(text)) is found


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*b", "(.*)(.*)x", ".*a.*b", r"(\w+\s?)*:", "(?:a{0,60}){0,60}b", "x" * 201, "(", "/a/q"]
)
def test_patterns_that_are_none_or_could_hang_are_refused(pattern: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="pattern"):
        entry(pattern, regex=True)


@pytest.mark.parametrize("pattern", [r"\bbuns?\b", "^.*hungry", "(red|blue) (cloud|sky)", r"st.{0,20}ff", "[a-z]+ing"])
def test_patterns_of_daily_use_are_taken(pattern: str) -> None:
    entry(pattern, regex=True).found_in("st" + "a" * (SCANNED - 2))


def test_no_pattern_that_is_taken_takes_long() -> None:
    """A bound, not a speed: the worst pattern that passes would run for years if ways were not bounded."""
    begin = time.monotonic()
    entry("a*a{0,3}b", regex=True).found_in("a" * SCANNED)
    assert time.monotonic() - begin < 60


def test_only_the_last_lines_are_looked_through() -> None:
    lore = lore_of(entry("staff", scan_depth=2))
    assert chosen(lore, "staff", "b") == ["A fact."]
    assert chosen(lore, "staff", "b", "c") == []


def test_short_budget_keeps_constant_entries_then_higher_order_and_tells_them_last() -> None:
    low, high, always = (
        entry("a", text="low", order=1),
        entry("a", text="high", order=9),
        entry(text="all", constant=True),
    )
    lore = lore_of(low, high, always)
    assert chosen(lore, "a") == ["low", "high", "all"]
    room = len(lore.note(lore.choose(["a"], len, 1000))) - 1
    assert chosen(lore, "a", budget=room) == ["high", "all"]
    assert lore.left_out == ["cast.lore[0]"]
    assert chosen(lore, "a", budget=3) == []


def test_sticky_stays_and_then_rests() -> None:
    lore = lore_of(entry("staff", sticky=2, cooldown=1))
    seen = []
    for line in ("staff", "no", "no", "staff", "staff"):
        used = lore.choose([line], len)
        seen.append([u.why for u in used])
        lore.told(used)
    assert seen == [["staff"], ["sticky"], ["sticky"], [], ["staff"]]


def test_probability_is_drawn_with_the_seed() -> None:
    lore = lore_of(*(entry("a", text=f"{k}.", probability=50.0) for k in range(40)))
    assert chosen(lore, "a", seed=1) == chosen(lore, "a", seed=1) != chosen(lore, "a", seed=2)
    assert 8 < len(chosen(lore, "a")) < 32
    assert chosen(lore_of(entry("a", probability=0.0)), "a") == []


def test_entries_of_cards_and_world_info_say_the_same() -> None:
    card = {
        "keys": ["staff"],
        "secondary_keys": ["heavy"],
        "selective": True,
        "content": "It weighs much.",
        "enabled": True,
        "insertion_order": 7,
        "extensions": {"selectiveLogic": 2, "scan_depth": 3, "sticky": 1, "probability": 50, "useProbability": True},
    }
    world = {
        "key": ["staff"],
        "keysecondary": ["heavy"],
        "selective": True,
        "content": "It weighs much.",
        "disable": False,
        "order": 7,
        "selectiveLogic": 2,
        "scanDepth": 3,
        "sticky": 1,
        "probability": 50,
        "useProbability": True,
    }
    wanted = entry(
        *["staff"],
        text="It weighs much.",
        secondary=["heavy"],
        logic="not_any",
        order=7,
        scan_depth=3,
        sticky=1,
        probability=50.0,
    )
    assert entry_of(card) == entry_of(world) == wanted
    assert entry_of({**card, "enabled": False}) is None and entry_of({**world, "disable": True}) is None
    assert entry_of({**world, "key": ["(a+)+b"], "use_regex": True}) is None


def test_lorebook_files_become_lore_of_the_cast(tmp_path: Path) -> None:
    book = {"entries": {"0": {"key": ["river"], "content": "It flows."}, "1": {"key": [], "content": "Never."}}}
    (tmp_path / "world.json").write_text(json.dumps(book), encoding="utf-8")
    assert read_lorebook(tmp_path / "world.json").left_out == 1
    cast = tmp_path / "cast.yaml"
    text = "characters:\n  - id: a\n    name: A\n    lorebooks: [world.json]\nlorebooks: [world.json]\n"
    cast.write_text(text, encoding="utf-8")
    loaded = load_cast(cast)
    river = entry("river", text="It flows.")
    assert (loaded["a"].lore, loaded.lore, loaded["a"].lorebooks) == ([river], [river], [])


@pytest.mark.parametrize(("content", "what"), [("[]", "no lorebook"), ("{}", "no lorebook"), (None, "no such file")])
def test_broken_lorebooks_are_named_with_the_line_that_names_them(
    tmp_path: Path, content: str | None, what: str
) -> None:
    if content is not None:
        (tmp_path / "world.json").write_text(content, encoding="utf-8")
    cast = tmp_path / "cast.yaml"
    cast.write_text("characters:\n  - id: a\n    name: A\n    lorebooks:\n      - world.json\n", encoding="utf-8")
    with pytest.raises((InputError, ManyFaults), match=what) as caught:
        load_cast(cast)
    assert "cast.yaml:5" in str(caught.value)
