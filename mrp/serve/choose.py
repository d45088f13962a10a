"""Who answers at the server: the router for `auto`, the natural director for `scene:`, as in every other room.

choose_speaker(player, router, find_room(cast, "auto"), asked)
Choice("bajie", "'pigsy' is called at the start", 1.0, {...})
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from mrp.dialogue import Turn
from mrp.play.director import choose
from mrp.play.reply import Player
from mrp.play.route import Router
from mrp.play.scene import Stage
from mrp.play.scene_plan import ScenePlan
from mrp.serve.turns import Asked, Room


@dataclass(frozen=True)
class Choice:
    """Who speaks, and why. `confidence` (0 to 1) and `scores` (of each candidate): None where nothing was estimated."""

    character: str
    reason: str
    confidence: float | None = None
    scores: dict[str, float] | None = None


def choose_speaker(
    player: Player, router: Router | None, room: Room, asked: Asked, current: str | None = None, seed: int | None = None
) -> Choice:
    """Who has the next line in the room; then counts as there. `current`: who answered last, if the messages do not
    tell. Equal seeds draw equal lots in a scene.
    """
    if room.kind == "one":
        choice = Choice(room.characters[0], "asked for")
    elif room.kind == "auto" and router:
        others = [c for c in room.characters if c != asked.asker] or room.characters  # nobody answers itself
        choice = by_router(router, asked.chat.turns, asked.last_of(others) or current, others)
    else:
        lots = secrets.randbits(31) if seed is None else seed
        choice = by_director(player, asked.chat.turns, room.characters, lots)
    asked.chat.join(choice.character)
    return choice


def by_router(router: Router, turns: Sequence[Turn], current: str | None, candidates: Sequence[str]) -> Choice:
    """Who of `candidates` answers the last line; `current` answered last."""
    last = next((turn for turn in reversed(turns) if turn.is_line), None)
    route = router.route(last.text if last else "", current, candidates)
    return Choice(route.character, route.reason, route.confidence, route.scores)


def by_director(player: Player, turns: Sequence[Turn], characters: Sequence[str], seed: int) -> Choice:
    """Who of `characters` (two or more) has the next turn of a scene: who was mentioned, else by lot."""
    stage = Stage(player, ScenePlan(participants=list(characters), seed=seed))
    stage.turns = list(turns)
    chosen = choose(stage)
    assert chosen is not None  # the natural director always names one of two
    return Choice(chosen.speaker, chosen.why)
