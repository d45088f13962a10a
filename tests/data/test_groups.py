"""Groups of items by equal keys and by pairs: what a dict and a plain union-find say, whatever the passes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrp.data import groups
from mrp.data.groups import components, connected, first_of_equal, is_shared, key_pairs

few_keys = st.lists(st.integers(0, 12) | st.integers(2**64 - 3, 2**64 - 1), max_size=60)
many_pairs = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "READ_AT_ONCE", 7)


def plain_first(keys: Iterable[object]) -> list[int]:
    seen: dict[object, int] = {}
    return [seen.setdefault(key, place) for place, key in enumerate(keys)]


def plain_groups(pairs: Iterable[tuple[int, int]], count: int) -> list[int]:
    group = list(range(count))
    for a, b in pairs:
        old, new = max(group[a], group[b]), min(group[a], group[b])
        group = [new if g == old else g for g in group]
    return group


def columns(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(pairs, np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


@given(keys=few_keys, at_once=st.sampled_from([1, 3, 10, 100]))
def test_first_of_equal_is_what_a_dict_finds(keys: list[int], at_once: int) -> None:
    first = first_of_equal(np.array(keys, np.uint64), at_once)
    assert first.tolist() == plain_first(keys)
    assert is_shared(first).tolist() == [keys.count(key) > 1 for key in keys]


@given(
    keys=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), max_size=60), at_once=st.sampled_from([1, 5, 100])
)
def test_both_halves_of_a_long_key_count(keys: list[tuple[int, int]], at_once: int) -> None:
    high, low = (np.array([key[k] for key in keys], np.uint64) for k in (0, 1))
    assert first_of_equal((high, low), at_once).tolist() == plain_first(keys)


def test_first_of_equal_reads_files_and_one_key_of_all_items(tmp_path: Path) -> None:
    keys = np.random.default_rng(0).integers(0, 500, 3000).astype(np.uint64)
    np.save(tmp_path / "keys.npy", keys)
    mapped = np.load(tmp_path / "keys.npy", mmap_mode="r")
    assert first_of_equal(mapped, 100).tolist() == plain_first(keys.tolist())
    assert not first_of_equal(np.full(3000, 2**64 - 1, np.uint64), 100).any()


@given(chunks=st.lists(many_pairs, max_size=4))
def test_connected_is_what_plain_union_find_gives(chunks: list[list[tuple[int, int]]]) -> None:
    found = connected((columns(chunk) for chunk in chunks), 30)
    together = [pair for chunk in chunks for pair in chunk]
    assert found.tolist() == plain_groups(together, 30)
    shuffled = connected([columns([(b, a) for a, b in reversed(together)])], 30)
    assert shuffled.tolist() == found.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_a_long_path_and_a_star_are_one_group_each(seed: int) -> None:
    count = 5000
    names = np.random.default_rng(seed).permutation(count)
    path = (names[: count // 2 - 1], names[1 : count // 2])
    star = (names[count // 2 :], np.full(count - count // 2, names[-1]))
    labels = connected([path, star], count)
    for members in (names[: count // 2], names[count // 2 :]):
        assert set(labels[members].tolist()) == {int(members.min())}


def test_connected_goes_on_from_earlier_groups() -> None:
    labels = connected([columns([(3, 4), (5, 4)])], 6)
    assert connected([columns([(5, 1)])], 6, labels).tolist() == [0, 1, 2, 1, 1, 1]


@given(kinds=st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 19)), max_size=20), max_size=3))
def test_items_that_share_a_key_of_any_kind_are_one_group(kinds: list[list[tuple[int, int]]]) -> None:
    keyed = [(np.array([k for k, _ in kind], np.uint64), np.array([i for _, i in kind], np.int64)) for kind in kinds]
    pairs = [(a, b) for kind in kinds for k, a in kind for other, b in kind if k == other]
    assert components(keyed, 20).tolist() == plain_groups(pairs, 20)


def test_key_pairs_come_in_chunks_and_join_no_item_with_itself() -> None:
    keys, items = np.array([5, 5, 5, 6] * 10, np.uint64), np.arange(40) // 4
    chunks = list(key_pairs(keys, items))
    assert len(chunks) > 1
    assert all((a != b).all() for a, b in chunks)
