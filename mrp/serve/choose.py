"""Who answers: the seam between the server and the router.

    choose_character(player, turns, current="wukong", candidates=["wukong", "bajie"])
    Choice("bajie", "named: Pigsy", None)

Here: whoever the last line names, else who answered last. `next_in_scene` keeps a scene going the same way, in turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mrp.cast import Cast
from mrp.dialogue import Turn
from mrp.play.reply import Player


@dataclass(frozen=True)
class Choice:
    """Who speaks, and why. `confidence` (0 to 1): None where nothing was estimated."""

    character: str
    reason: str
    confidence: float | None = None


def choose_character(player: Player, turns: Sequence[Turn], current: str | None, candidates: Sequence[str]) -> Choice:
    """Who of `candidates` answers the last line."""
    last = next((turn for turn in reversed(turns) if not turn.enters), None)
    if last and player.cast and (found := named(last.text, player.cast, candidates)):
        return Choice(found[0], f"named: {found[1]}")
    if current in candidates:
        return Choice(str(current), "answered last")
    return Choice(candidates[0], "nobody is named; the first of the cast")


def next_in_scene(player: Player, turns: Sequence[Turn], candidates: Sequence[str]) -> Choice:
    """Who of `candidates` has the next turn of a scene: one who is named by somebody else, else the next in order."""
    said = [turn for turn in turns if not turn.enters]
    last = said[-1] if said else None
    if last and player.cast:
        others = [c for c in candidates if c != last.speaker]
        if found := named(last.text, player.cast, others):
            return Choice(found[0], f"named: {found[1]}")
    spoke = next((turn.speaker for turn in reversed(said) if turn.speaker in candidates), None)
    if spoke is None:
        return Choice(candidates[0], "opens")
    return Choice(candidates[(candidates.index(spoke) + 1) % len(candidates)], "next in turn")


def named(text: str, cast: Cast, candidates: Sequence[str]) -> tuple[str, str] | None:
    """The candidate named first in `text`, and by which name."""
    found: list[tuple[int, int, str, str]] = []
    for character in candidates:
        for name in cast[character].names:
            edge = r"(?<![\w])", r"(?![\w])"
            pattern = re.escape(name) if not name.isascii() else f"{edge[0]}{re.escape(name)}{edge[1]}"
            if match := re.search(pattern, text, re.IGNORECASE):
                found.append((match.start(), -len(name), character, match.group()))
    return min(found)[2:] if found else None
