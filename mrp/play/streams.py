"""Streams of the embedded engine: a reply in the making, what the engine counts, and its errors in words.

stream = Stream(request, stops, drawing, left=256)
with known_errors(): ...        # whatever a model does wrong, as an `MrpError`
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from mrp.errors import MrpError
from mrp.models.load import Hardware
from mrp.play.engine import Request, Token
from mrp.play.kv import KeysValues
from mrp.play.parked import shared_beginning
from mrp.play.sampling import Drawing

log = logging.getLogger("mrp.play")

AHEAD = 4  # tokens that a stream may be ahead of its reader
WORTH = 16  # tokens of a shared beginning for which it is worth waiting


@dataclass
class Stats:
    """What the engine did so far: tokens of prompts read and taken from earlier ones, tokens of replies, caches."""

    computed: int = 0
    reused: int = 0
    generated: int = 0
    dropped: int = 0  # caches, because memory was short
    steps: int = 0  # passes through the model for tokens of replies and pieces of prompts
    graphed: int = 0  # of them those that were one CUDA graph
    cache_bytes: int = 0  # of parked ones and those in use


@dataclass(eq=False)
class Stream:
    """One reply in the making."""

    request: Request
    stops: set[int]
    drawing: Drawing
    kept: KeysValues | None = None
    unread: list[int] = field(default_factory=list)
    waiting: deque[Token] = field(default_factory=deque)
    left: int = 0  # tokens still to be said
    over: bool = False  # nothing more will come
    error: MrpError | None = None
    cache: Any = None  # transformers' own, where rows do not work

    @property
    def can_speak(self) -> bool:
        return not self.over and len(self.unread) == 1 and len(self.waiting) < AHEAD


def begins_as(stream: Stream, other: Stream) -> bool:
    """Whether the other is about to read a beginning that the stream would have to read too."""
    if other.kept is None or stream.request.voice != other.request.voice:
        return False
    return shared_beginning(stream.request.ids, other.request.ids) - len(other.kept.ids) >= WORTH


def count_drop(stats: Stats, one: KeysValues) -> None:
    """Count it, and say the first one aloud: a server that is busy drops many."""
    stats.dropped += 1
    whose = f" of {one.voice}" if one.voice else ""
    level = logging.WARNING if stats.dropped == 1 else logging.INFO
    log.log(level, "memory is short: %d tokens%s will be read again when they are needed", len(one.ids), whose)


def free_bytes(on: Hardware) -> int:
    """How much keys and values may take by default: half of what is free on the GPU, a quarter on the CPU."""
    if on.device == "cuda":
        return int(torch.cuda.mem_get_info()[0]) // 2
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, OSError, ValueError):  # not on Windows
        return 2**30


@contextmanager
def known_errors() -> Iterator[None]:
    """Whatever a model does wrong, as an `MrpError`."""
    try:
        yield
    except MrpError:
        raise
    except torch.OutOfMemoryError as error:
        fix = "lower chat.context_tokens, take --bits 4, or have fewer chats at once"
        raise MrpError("the GPU's memory is full", str(error).partition("\n")[0][:200], fix) from error
    except Exception as error:
        what = f"the model failed in the middle of its work: {type(error).__name__}: {error}"
        raise MrpError(what, "", "ask again") from error
