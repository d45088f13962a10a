"""Free memory goes back to the system, also where it lies between pieces in use."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from mrp import heap
from mrp.heap import give_back

PIECES, BYTES = 2000, 100_000  # below the size from which each piece is a mapping of its own


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only on Linux with glibc")
def test_what_lies_between_pieces_in_use_is_given_back() -> None:
    pieces = [bytearray(b"x" * BYTES) for _ in range(PIECES)]
    del pieces[::2]
    before = resident_bytes()
    give_back()
    assert before - resident_bytes() > PIECES // 2 * BYTES // 2
    assert all(piece[-1] == ord("x") for piece in pieces)


def test_it_does_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no such library, none is loaded."""
    heap._trim.cache_clear()
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr("ctypes.CDLL", None)
    give_back()
    heap._trim.cache_clear()
