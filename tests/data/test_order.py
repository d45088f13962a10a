"""Orders: every sample where its order says, the same on every machine, and in the files as in training."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from dialogue_rows import pair, scene
from hypothesis import given
from hypothesis import strategies as st

from mrp.config import Run, load_run
from mrp.data.build import build_data
from mrp.data.order import mixed, permutation
from mrp.data.samples import in_order, order_key, read_samples

MakeRun = Callable[..., Run]
ORDERS = ["sequential", "shuffled", "round-robin", "blocked"]
sizes = st.lists(st.integers(0, 12), min_size=1, max_size=4)


def numbered(counts: list[int], seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    character = np.repeat(np.arange(len(counts)), counts)
    key = np.array([order_key(seed, 0, f"s{i}@c") for i in range(len(character))], np.uint64)
    return character, key


@given(counts=sizes, order=st.sampled_from(ORDERS))
def test_every_sample_comes_once(counts: list[int], order: str) -> None:
    found = permutation(order, *numbered(counts))
    assert sorted(found.tolist()) == list(range(sum(counts)))


@given(counts=sizes)
def test_round_robin_takes_turns_until_somebody_has_no_more(counts: list[int]) -> None:
    character, key = numbered(counts)
    order = character[permutation("round-robin", character, key)].tolist()
    left = list(counts)
    for at in range(0, len(order)):
        before = Counter(order[:at])
        rounds = [before[c] for c in range(len(counts)) if before[c] < counts[c]]
        assert before[order[at]] == min(rounds)  # nobody is ahead of one who could still go
        left[order[at]] -= 1


@given(counts=sizes, replay=st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_blocks_follow_one_another_and_replay_only_what_came_before(counts: list[int], replay: float) -> None:
    character, key = numbered(counts)
    order = permutation("blocked", character, key, replay)
    seen = character[order].tolist()
    assert set(order.tolist()) == set(range(sum(counts)))
    at, present = 0, [c for c in range(len(counts)) if counts[c]]
    for k, who in enumerate(present):
        earlier = sum(counts[c] for c in present[:k])
        again = min(int(replay * counts[who] + 0.5), earlier)
        block = seen[at : at + counts[who] + again]
        assert block.count(who) == counts[who]
        assert all(c < who for c in block if c != who)
        old = [n for n in order[at : at + len(block)].tolist() if character[n] != who]
        assert len(set(old)) == len(old) == again
        at += len(block)
    assert at == len(seen)


def test_keys_are_the_same_on_every_machine() -> None:
    digest = hashlib.sha256(b"3:1:scenes-7@wukong").digest()
    assert order_key(3, 1, "scenes-7@wukong") == int.from_bytes(digest[:8], "big")
    assert int(mixed(0)) == 0xE220A8397B1DCDAF  # the first number that SplitMix64 gives for the seed 0
    assert order_key(3, 1, "scenes-7@wukong#2") == int(mixed(order_key(3, 1, "scenes-7@wukong"), 2))


def many(name: str, count: int) -> list[dict[str, Any]]:
    return [pair(f"{name} question {i}, and more of it", f"{name} reply {i}") for i in range(count)]


@pytest.mark.parametrize("order", ORDERS)
def test_the_file_has_the_order_of_the_first_epoch(make_run: MakeRun, order: str) -> None:
    own = {"tang": many("tang", 9), "wukong": many("wukong", 14)}
    both = [scene(("wukong", f"x {i} of the two"), ("tang", f"y {i} of the two")) for i in range(5)]
    run = make_run(own, both, data={"order": order, "replay": 0.3, "identity": 0.2, "upsample": 2.0})
    build_data(run)
    written = read_samples(run.data / "train.jsonl")
    assert [s.id for s in in_order(written, run, 0)] == [s.id for s in written]
    assert [s.id for s in in_order(written[::-1], run, 0)] == [s.id for s in written]
    again = [s.id for s in in_order(written, run, 1)]
    assert set(again) == {s.id for s in written}
    assert (again == [s.id for s in written]) == (order == "sequential")


def test_orders_hold_the_same_samples(make_run: MakeRun) -> None:
    own = {"tang": many("tang", 9), "wukong": many("wukong", 14)}
    run = make_run(own)
    found = []
    for order in ORDERS:
        asked = load_run(run.path, {"data.order": order})
        build_data(asked)
        found.append({s.id for s in read_samples(asked.data / "train.jsonl")})
    assert all(ids == found[0] for ids in found)
