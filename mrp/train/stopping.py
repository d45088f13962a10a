"""Ctrl-C and SIGTERM during training: the step in work is finished and saved first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class StopRequest:
    """Whether somebody asked to stop."""

    asked: bool = False


@contextmanager
def signals_caught(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM into a request for the length of the block; a second Ctrl-C stops at once.

    Outside the main thread nothing is caught: whoever runs us there handles signals.
    """
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        if request.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.asked = True
        with contextlib.suppress(RuntimeError):  # the signal came while this very stream was written to
            say("stopping as soon as this step is done and saved (Ctrl-C again: at once, back to the last checkpoint)")

    try:
        before = {number: signal.signal(number, ask) for number in NUMBERS}
    except ValueError:
        yield request
        return
    try:
        yield request
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)  # None: a handler that Python did not set
