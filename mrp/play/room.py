"""What a chat needs beside the player: the router of its run, and the folder where chats are kept.

    room = room_of(Path("runs/pilgrims"), player)
    room.router, room.chats          # RUN/chats; for a model folder: chats/ in the cache of mrp

Used by `mrp chat` and the Python API.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mrp.config import Run, load_run
from mrp.errors import InputError
from mrp.models.bases import cache_folder
from mrp.play.reply import Player
from mrp.play.route import Router, open_router

CHATS = "chats"


@dataclass(frozen=True)
class Room:
    """The router (None: no cast) and the folder for chats."""

    router: Router | None
    chats: Path


def room_of(path: Path, player: Player) -> Room:
    """The room of what `open_player` opened."""
    try:
        run: Run | None = load_run(path)
    except InputError:  # a model folder
        run = None
    router = open_router(run, player.cast, player) if player.cast else None
    return Room(router, run.folder / CHATS if run else cache_folder() / CHATS)
