"""What models said in the places of held-out lines (or of a benchmark), kept with all that a judge must know of them.

    said = read_said(run.folder / "eval" / "said.json")
    said.places[0].said["tuned"]              # and ["base"]; said.places[0].real is the real line

Written by `mrp eval` and `mrp benchmark`, read by `mrp judge`: no model is loaded to judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mrp.errors import InputError
from mrp.files import read_json, write_json

FILE = "said.json"
VERSION = 1
KEPT_TURNS = 12  # of the scene before a reply, the last ones
EXAMPLES = 4  # of a character's training lines, so that a judge knows how it speaks


@dataclass(frozen=True)
class Person:
    """A character as a judge gets to know it. `lines`: some that it really said, none of them held out."""

    name: str
    persona: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a character had to speak. `unit`: the scene that it belongs to; `before`: (name, text) of the last turns.

    `said`: the reply of each side; `sounds`: the probability that the classifier of voices gives to the character.
    """

    id: str
    unit: str
    character: str
    scenario: str
    before: tuple[tuple[str, str], ...]
    real: str
    said: dict[str, str]
    sounds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Said:
    """All places of one evaluation, and who is in them. `models`: the identity of each side's model."""

    language: Literal["en", "zh"]
    people: dict[str, Person]
    places: tuple[Place, ...]
    models: dict[str, str]
    title: str = ""
    gaps: dict[str, float] = field(default_factory=dict)  # own-identity gap of the tuned model, by character


def write_said(path: Path, said: Said) -> None:
    """Write it whole or not at all."""
    write_json(path, {"version": VERSION} | asdict(said))


def read_said(path: Path, fix: str) -> Said:
    """Raises `InputError` (with `fix`) where the file is missing, broken or of another version."""
    if not path.is_file():
        raise InputError("no replies are kept here, so there is nothing to judge", str(path), fix)
    value = read_json(path)
    try:
        if value["version"] != VERSION:
            raise ValueError(f"version {value['version']!r}")
        people = {who: Person(p["name"], p["persona"], tuple(p["lines"])) for who, p in value["people"].items()}
        places = tuple(_place(row) for row in value["places"])
        if unknown := {p.character for p in places} - set(people):
            raise ValueError(f"unknown characters {sorted(unknown)}")
        found = Said(value["language"], people, places, value["models"], value["title"], value["gaps"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"these are no kept replies: {error!r}", str(path), fix) from None
    if not found.places:
        raise InputError("no reply is kept here, so there is nothing to judge", str(path), fix)
    return found


def _place(row: dict[str, Any]) -> Place:
    before = tuple((who, text) for who, text in row["before"])
    return Place(**{**row, "before": before})


def against(one: Said, other: Said, where: str) -> tuple[Said, int]:
    """The tuned sides of two evaluations in the same places, as sides "tuned" and "other"; and how many places only
    one of them has. Raises `InputError` where they share none."""
    theirs = {place.id: place for place in other.places}
    places = []
    for place in one.places:
        match = theirs.get(place.id)
        if match and (match.character, match.before, match.scenario) == (place.character, place.before, place.scenario):
            said = {"tuned": place.said["tuned"], "other": match.said["tuned"]}
            sounds = {"tuned": place.sounds.get("tuned"), "other": match.sounds.get("tuned")}
            known = {side: value for side, value in sounds.items() if value is not None}
            places.append(Place(**{**asdict(place), "before": place.before, "said": said, "sounds": known}))
    if not places:
        what = "the two evaluations share no place in which both models spoke"
        fix = "evaluate both on the same held-out lines, with the same --seed and --replies"
        raise InputError(what, where, fix)
    models = {"tuned": one.models["tuned"], "other": other.models["tuned"]}
    alone = len(one.places) + len(other.places) - 2 * len(places)
    return Said(one.language, one.people, tuple(places), models, one.title, one.gaps), alone


def some_places(places: Sequence[Place], count: int) -> list[Place]:
    """The first `count` places of each character (0: all), in their order: they were spread over scenes when made."""
    taken: dict[str, int] = {}
    chosen = []
    for place in places:
        taken[place.character] = taken.get(place.character, 0) + 1
        if not count or taken[place.character] <= count:
            chosen.append(place)
    return chosen
