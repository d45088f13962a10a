"""Packing: samples laid end to end in rows of at most `max_tokens`, in the order given.

    max_tokens = 6, samples of 3, 2, 4, 1 tokens:

    row 0   a a a b b .        "c" does not fit any more, so a new row begins: a row is never filled
    row 1   c c c c d .        out of order (law 5: the order asked for is the order trained)

Each sample keeps positions from 0, which is also how attention knows where it ends (law 6).
"""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Rows of sample numbers, in order; none may be longer than `max_tokens`."""
    rows: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        assert 0 < length <= max_tokens, f"sample {index} has {length} tokens, a row {max_tokens}"
        if length > room:
            rows.append([])
            room = max_tokens
        rows[-1].append(index)
        room -= length
    return rows
