"""What was read is taken up again: the longest beginning, of the same voice, and never somebody else's storage."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from mrp.play.kv import KeysValues  # noqa: E402
from mrp.play.parked import Parked  # noqa: E402


def kept(*ids: int, voice: str | None = None) -> KeysValues:
    state = torch.arange(float(len(ids)))[None, :, None]
    return KeysValues(voice, list(ids), 0, {0: (state.clone(), state.clone())})


def parked(*some: KeysValues) -> Parked:
    found = Parked(2**20, lambda _: None)
    found.kept = list(some)
    return found


def test_the_longest_beginning_is_taken_and_the_last_token_is_left_to_read() -> None:
    short, long = kept(1, 2), kept(1, 2, 3, 4)
    assert parked(short, long).take([1, 2, 3, 4], None) is long
    assert long.ids == [1, 2, 3]
    assert parked(kept(1, 2, voice="bajie")).take([1, 2, 3], "wukong").ids == []


def test_one_that_is_parked_is_taken_where_an_equal_one_is_in_use() -> None:
    """Two who said the same are two storages: one may be taken up, the other is copied."""
    free, used = kept(1, 2, 3), kept(1, 2, 3)
    assert parked(free).take([1, 2, 3, 4], None, [used]) is free
    copied = parked().take([1, 2, 3, 4], None, [used])
    assert copied is not used and copied.ids == used.ids
    assert copied.layers[0][0].data_ptr() != used.layers[0][0].data_ptr()
