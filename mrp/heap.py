"""Memory that is free, given back to the system.

give_back()
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any


def give_back() -> None:
    """Let the C library hand its free pages to the system, where it is glibc: some milliseconds.

    It keeps them otherwise, in pieces between those in use, so that the memory of a server goes on rising while what it
    keeps stays the same.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Any:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
