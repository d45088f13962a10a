"""What a scene is to be: who plays, in which setting, what is fixed, who decides who speaks, when it ends.

    plan = load_script(Path("inn.yaml"), cast)

The same form is a script that a person writes (YAML, every fault with file:line) and the head of a scene's file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

import pydantic
from pydantic import Field

from mrp.cast import Cast
from mrp.errors import InputError, MrpError, nearest, raise_all
from mrp.yamlfile import StrictModel, check_value, key_lines, place_of, read_yaml

Strategy = Literal["natural", "round-robin", "model", "manual"]
ACTIONS = ("speaker", "enter", "leave", "next", "free")
FORMS = "{speaker: NAME, text: LINE}, {enter: NAME}, {leave: NAME}, {next: NAME} or {free: NUMBER}"


class Step(StrictModel):
    """One step of a script."""

    speaker: str | None = None
    """Says `text`, word for word."""
    text: str = ""
    enter: str | None = None
    """Comes in."""
    leave: str | None = None
    """Goes; hears nothing more until it enters again."""
    next: str | None = None
    """Speaks next, in its own words."""
    free: int | None = Field(None, ge=1, le=1000)
    """So many lines by whoever the director names."""

    @pydantic.model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if sum(getattr(self, name) is not None for name in ACTIONS) != 1:
            raise ValueError(f"a step is one thing|write one of: {FORMS}")
        if (self.speaker is not None) != bool(self.text.strip()):
            raise ValueError("a fixed line has `speaker` and `text`|add what is missing")
        return self

    @property
    def name(self) -> str | None:
        return self.speaker or self.enter or self.leave or self.next


class ScenePlan(StrictModel):
    """A scene's script, or the head of its file."""

    participants: list[str] = Field(min_length=1)
    """Who is there at the start: characters of the cast; others need `persons` or fixed lines."""
    persons: list[str] = []
    """Played by somebody at the terminal."""
    scenario: str = ""
    """The setting; the cast's where it is empty."""
    director: Strategy = "natural"
    """Who speaks next: natural, round-robin, model or manual."""
    seed: int = 0
    turns: int | None = Field(None, ge=1)
    """Lines, fixed ones included; without it, a script ends with its last step, a scene without steps after 20."""
    each: int | None = Field(None, ge=1)
    """Lines of each speaker."""
    tokens: int | None = Field(None, ge=1)
    """Tokens of all replies together."""
    until: str = ""
    """The scene ends after a line with these words in it."""
    talkativeness: dict[str, float] = {}
    """How readily each speaks, for the natural director: 0 to 1 and more; the cast's where nothing is said."""
    memory: int = Field(128, ge=0)
    """Tokens of the summary of what no longer fits; 0: none is made."""
    lore: int = Field(256, ge=0)
    """Tokens of lore in a prompt; 0: none."""
    steps: list[Step] = []
    """What happens, in order."""

    def flat_steps(self) -> list[Step]:
        """The steps with each `free: N` as N steps of one line."""
        return [s for step in self.steps for s in ([Step(free=1)] * step.free if step.free else [step])]

    @property
    def line_limit(self) -> int | None:
        return self.turns if self.turns or self.steps else 20


def load_script(path: Path, cast: Cast) -> ScenePlan:
    """The plan in a script; raises `InputError` or `ManyFaults` with all faults, each with file:line."""
    lines = key_lines(path)
    plan = check_value(read_yaml(path), ScenePlan, path, lines)
    return settled(plan, cast, lambda *at: place_of(path, lines, at))


def settled(plan: ScenePlan, cast: Cast, place: Callable[..., str]) -> ScenePlan:
    """The plan with ids for names, and found to be playable; raises all faults at their `place(*key)`."""
    faults: list[MrpError] = []

    def who(name: str) -> str:
        found = cast.get(name)
        return found.id if found else name.strip()

    known = [n for c in cast for n in c.names] + plan.persons
    persons = [who(name) for name in plan.persons]
    strangers = {who(s.speaker) for s in plan.steps if s.speaker is not None}

    def checked(name: str, *at: str | int, speaks_freely: bool = False) -> str:
        person = who(name)
        if not person or not person.isprintable():
            faults.append(InputError(f"{name!r} is no name", place(*at), "write a name on one line"))
        elif person not in persons and cast.get(person) is None and (speaks_freely or person not in strangers):
            what = f"no character {name!r} in the cast, and nobody plays it"
            faults.append(InputError(what, place(*at), nearest(name, known)))
        return person

    present: list[str] = []
    for k, name in enumerate(plan.participants):
        person = checked(name, "participants", k)
        if person in present:
            faults.append(InputError(f"{name!r} is there twice", place("participants", k), "name everybody once"))
        present.append(person)
    start = list(dict.fromkeys(present))
    talk = {checked(name, "talkativeness", name): value for name, value in plan.talkativeness.items()}
    for name, value in plan.talkativeness.items():
        if not 0 <= value <= 100:
            where = place("talkativeness", name)
            faults.append(InputError(f"{value} is no talkativeness", where, "0 (never) to 1 and more"))
    steps: list[Step] = []
    for k, step in enumerate(plan.steps):
        if step.free or step.name is None:
            steps.append(step)
            continue
        key = next(a for a in ACTIONS if getattr(step, a) is not None)
        person = checked(step.name, "steps", k, key, speaks_freely=key == "next")
        if wrong := _absence(key, person, present):
            faults.append(InputError(f"{step.name!r} {wrong[0]}", place("steps", k, key), wrong[1]))
        if key == "enter" and person not in present:
            present.append(person)
        elif key == "leave" and person in present:
            present.remove(person)
        steps.append(step.model_copy(update={key: person}))
    raise_all("the scene cannot be played as it is written", faults)
    return plan.model_copy(update={"participants": start, "persons": persons, "talkativeness": talk, "steps": steps})


def _absence(key: str, person: str, present: Sequence[str]) -> tuple[str, str] | None:
    """What is wrong with this step of somebody who is, or is not, there; and what helps."""
    if key == "enter":
        return ("is there already", "take the step out") if person in present else None
    return None if person in present else ("is not there", "add {enter: NAME} before, or name it in participants")
