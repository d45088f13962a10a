"""Held-out scenes: whole scenes, about the share of every character, never all of one."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrp.data.split import MIN_SCENES, held_out_scenes

CHARACTERS = ["a", "b", "c", "d"]
many_scenes = st.lists(st.lists(st.sampled_from(CHARACTERS), min_size=1, max_size=4, unique=True), max_size=60)


def numbered(scenes: list[list[str]]) -> dict[str, list[str]]:
    return {f"s{i}": characters for i, characters in enumerate(scenes)}


def shares(scenes: dict[str, list[str]], held: set[str]) -> dict[str, tuple[int, int]]:
    total = Counter(c for characters in scenes.values() for c in characters)
    out = Counter(c for scene in held for c in scenes[scene])
    return {c: (out[c], total[c]) for c in total}


@given(scenes=many_scenes, share=st.sampled_from([0.05, 0.1, 0.3, 0.5]), seed=st.integers(0, 3))
def test_every_character_keeps_a_scene_to_train(scenes: list[list[str]], share: float, seed: int) -> None:
    found = numbered(scenes)
    held = held_out_scenes(found, share, seed)
    assert held <= set(found)
    for out, total in shares(found, held).values():
        assert out < total


@given(st.lists(st.sampled_from(CHARACTERS), max_size=80), st.sampled_from([0.05, 0.1, 0.3]))
def test_scenes_of_one_character_give_the_share_exactly(owners: list[str], share: float) -> None:
    found = numbered([[c] for c in owners])
    for out, total in shares(found, held_out_scenes(found, share, 0)).values():
        least = 1 if total >= MIN_SCENES else 0
        assert out == min(total - 1, max(least, int(share * total + 0.5)))


@pytest.mark.parametrize("seed", range(5))
def test_shares_come_out_right_where_scenes_are_shared(seed: int) -> None:
    kinds = [["a"], ["a", "b"], ["a", "b", "c", "d"], ["b"], ["c", "a"], ["d", "b"]]
    found = numbered([kinds[i % len(kinds)] for i in range(300)])
    for out, total in shares(found, held_out_scenes(found, 0.1, seed)).values():
        assert 0.07 <= out / total <= 0.13


def test_character_who_is_never_alone_has_a_held_out_scene() -> None:
    found = numbered([["a", "b", "c", "d"]] * 12)
    assert len(held_out_scenes(found, 0.01, 0)) == 1
    rare = numbered([["a"]] * 100 + [["a", "b"]] * 5)
    assert shares(rare, held_out_scenes(rare, 0.01, 0))["b"][0] == 1


def test_same_seed_same_scenes_another_seed_others() -> None:
    found = numbered([["a"]] * 100)
    assert held_out_scenes(found, 0.2, 0) == held_out_scenes(dict(reversed(found.items())), 0.2, 0)
    assert held_out_scenes(found, 0.2, 0) != held_out_scenes(found, 0.2, 1)
    assert held_out_scenes(found, 0.2, 0) != held_out_scenes(found, 0.2, 0, purpose="dev")
    assert held_out_scenes(found, 0, 0) == set()
