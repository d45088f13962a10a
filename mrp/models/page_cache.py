"""What the system keeps of a file in memory: asked for ahead, let go behind.

    read_ahead(path, start, count)          # fetch these bytes while something else is computed
    let_go(path, start, count)              # they will not be read again soon
    stays_in_memory(29 * 10**9)             # would files of 29 GB find room beside what runs?

Requests only: no number changes by them, and where a system does not know them (Windows, macOS) nothing happens.
A merge goes once over two models. Where both together are larger than the memory, each page that it leaves behind
would push out one that is needed, and the system's time for finding new pages is as much as the arithmetic's.
"""

from __future__ import annotations

import os
from pathlib import Path

ASKED_BYTES = 2**20  # Linux cuts longer wishes short


def read_ahead(path: Path, start: int, count: int) -> None:
    """Ask for `count` bytes from `start` on."""
    if hasattr(os, "posix_fadvise") and path.is_file():
        with path.open("rb") as file:
            for at in range(start, start + count, ASKED_BYTES):
                os.posix_fadvise(file.fileno(), at, min(ASKED_BYTES, start + count - at), os.POSIX_FADV_WILLNEED)


def let_go(path: Path, start: int = 0, count: int = 0) -> None:
    """Give back the memory of `count` bytes from `start` on (0: to the end), as far as they are on the disk."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), start, count, os.POSIX_FADV_DONTNEED)


def stays_in_memory(count: int) -> bool:
    """True if that many bytes of files find room in the memory that is free now."""
    import psutil

    return count <= psutil.virtual_memory().available
