"""Files changed at random places, for readers that must never do more than refuse.

@given(data=st.sampled_from(FILES), steps=changes(PIECES))
def test_reader(data, steps): read(changed(data, steps))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

Step = tuple[str, float, Any]  # what is done, at which part of the length, with what


def changes(pieces: Sequence[bytes], most: int = 5) -> st.SearchStrategy[list[Step]]:
    """Steps that put pieces in, cut some bytes out, repeat some, flip bits of one, or cut the rest off."""
    places = st.floats(0, 1)
    step = st.one_of(
        st.tuples(st.just("put"), places, st.sampled_from(pieces) | st.binary(max_size=4)),
        st.tuples(st.just("cut"), places, st.integers(1, 60)),
        st.tuples(st.just("again"), places, st.integers(1, 40)),
        st.tuples(st.just("flip"), places, st.integers(1, 255)),
        st.tuples(st.just("end"), places, st.just(0)),
    )
    return st.lists(step, min_size=1, max_size=most)


def changed(data: bytes, steps: Sequence[Step]) -> bytes:
    """`data` after all steps."""
    for what, place, value in steps:
        at = int(place * len(data))
        if what == "put":
            data = data[:at] + value + data[at:]
        elif what == "cut":
            data = data[:at] + data[at + value :]
        elif what == "again":
            data = data[: at + value] + data[at:]
        elif what == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]
        elif what == "end":
            data = data[:at]
    return data
