"""Free memory goes back to the system, also where it lies between pieces in use."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mrp.heap import give_back

PIECES, BYTES = 2000, 100_000  # below the size from which each piece is a mapping of its own


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux")
def test_what_lies_between_pieces_in_use_is_given_back() -> None:
    pieces = [bytearray(b"x" * BYTES) for _ in range(PIECES)]
    del pieces[::2]
    before = resident_bytes()
    give_back()
    assert before - resident_bytes() > PIECES // 2 * BYTES // 2
    assert all(piece[-1] == ord("x") for piece in pieces)


def test_it_does_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from mrp import heap

    heap._trim.cache_clear()
    monkeypatch.setattr("sys.platform", "win32")
    give_back()
    heap._trim.cache_clear()
