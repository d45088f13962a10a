"""The roles of a benchmark as a cast, so that they are played as every character is: same view, same renderer.

    players = cast_of(benchmark, run.cast, where)
    ask_item(player_of(player, players), players, item, seed)

A role that the run's own cast has (by name or alias) is played with the run's identity text and voice, since that is
what was trained; all others get the benchmark's profile, and no voice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pydantic

from mrp.cast import Cast, Character
from mrp.data.view import opening_text, view_for_reply
from mrp.dialogue import Turn
from mrp.errors import InputError, raise_all
from mrp.evaluate.asking import Ask, seed_of
from mrp.evaluate.benchmark_files import Benchmark, Item
from mrp.play.reply import Player

PREFIX = "benchmark-"  # ids of roles that are not the run's own


@dataclass(frozen=True)
class Players:
    """The cast of a benchmark, its characters by the benchmark's own keys, and which of them the run trained."""

    cast: Cast
    ids: dict[str, str]
    names: dict[str, str]  # as the benchmark calls them
    own: tuple[str, ...]


def cast_of(benchmark: Benchmark, cast: Cast, where: str) -> Players:
    """Raises `InputError` for names that no character can have."""
    characters: dict[str, Character] = {}
    ids, own, faults = {}, [], []
    for number, (key, role) in enumerate(benchmark.people.items()):
        known = cast.get(role.name)
        try:
            made = known or Character(id=f"{PREFIX}{number}", name=role.name, persona=role.persona)
        except pydantic.ValidationError as error:
            what = f"{role.name!r} cannot be played: {error.errors()[0]['msg'].partition('|')[0]}"
            faults.append(InputError(what, where, "mend the name in the benchmark's files"))
            continue
        characters.setdefault(made.id, made)
        ids[key] = made.id
        if known:
            own.append(role.name)
    raise_all("the benchmark's roles", faults)
    names = {key: role.name for key, role in benchmark.people.items()}
    return Players(Cast(language=benchmark.language, characters=list(characters.values())), ids, names, tuple(own))


def player_of(player: Player, players: Players) -> Player:
    """The same engine and options, with the benchmark's cast."""
    return replace(player, cast=players.cast)


def ask_item(players: Players, item: Item, seed: int) -> Ask:
    """The place of an item, to be asked of a player."""
    return ask_role(players, item.person, item.turns, item.present, item.scenario, item.unit, seed_of(seed, item.id))


def ask_role(
    players: Players,
    person: str,
    turns: Sequence[Turn],
    present: Sequence[str],
    scenario: str,
    unit: str,
    seed: int,
) -> Ask:
    """The next reply of `person` after `turns`, whose speakers are names."""
    cast, who = players.cast, players.ids[person]
    own = {cast[who].name.casefold(), players.names[person].casefold()}  # the run may call it by another name

    def speaker(said: str) -> str:
        return who if said.casefold() in own else said

    told = [Turn(speaker(turn.speaker), turn.text) for turn in turns]
    there = list(dict.fromkeys([who, *(speaker(one) for one in present), *(turn.speaker for turn in told)]))
    messages = tuple(view_for_reply(told, there, who, cast, scenario))
    others = tuple(cast.display_name(one) for one in there if one != who)
    return Ask(who, messages, others, opening_text(cast, scenario, who), unit, seed)
