"""A scene as a client sees and sends it, and the stage (`mrp/play/scene.py`) that it stands for.

    state = SceneState(characters=["wukong", "bajie"], turns=[SceneTurn(speaker="tang", event="enters")])
    stage = stage_of(player, state)              # presence, lore and memory as in `mrp scene`

Each turn is an event of the stage, and a stage fed with the turns is the one that they came from: so nothing else need
be kept. The server keeps scenes for a while (`Scenes`), within limits; a client may keep its own state and send it.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field

from mrp.cast import Cast
from mrp.errors import nearest
from mrp.play.reply import NOT_TEXT, Player
from mrp.play.scene import Stage
from mrp.play.scene_plan import ScenePlan, Strategy
from mrp.play.spoken import names_of_all_but, spoken
from mrp.serve.errors import ApiError
from mrp.serve.schemas import Strict

MAX_SCENES = 128
MAX_TURNS = 5000
MAX_CHARACTERS = 500_000  # of all lines of a scene
KEPT_S = 3600.0  # after the last use
ROW_KEYS = {"says": "speaker", "enters": "enter", "leaves": "leave", "is silent": "silent", "remembers": "memory"}


class SceneTurn(Strict):
    """Something that happened: a line, a turn without one, a coming or going, or what somebody now remembers of what no
    longer fits into its context."""

    speaker: str = Field(min_length=1, max_length=64)
    text: str = Field("", max_length=100_000)
    event: Literal["says", "enters", "leaves", "is silent", "remembers"] = "says"
    lore: dict[str, str] | None = Field(None, max_length=1000, description="Which lore the speaker was told, and why")
    dropped: int | None = Field(None, ge=0, description="Of what is remembered: how many old messages it stands for")

    def row(self) -> dict[str, Any]:
        """The event of a stage that it is."""
        row: dict[str, Any] = {ROW_KEYS[self.event]: self.speaker}
        if self.event == "says":
            row["text"] = self.text
        if self.event == "remembers":
            row |= {"summary": self.text, "dropped": self.dropped or 0}
        if self.event in ("says", "is silent") and self.lore is not None:
            row["lore"] = self.lore
        return row

    @classmethod
    def of(cls, row: dict[str, Any]) -> SceneTurn:
        """The turn of a stage's event."""
        event = next(event for event, key in ROW_KEYS.items() if key in row)
        text = row.get("text") or row.get("summary") or ""
        speaker = row[ROW_KEYS[event]]
        return cls(speaker=speaker, text=text, event=event, lore=row.get("lore"), dropped=row.get("dropped"))  # type: ignore[arg-type]


class SceneState(Strict):
    """A scene: who is there when it begins, how it is led, and what happened since."""

    characters: list[str] = Field(min_length=1, max_length=100, description="Ids or names of characters there at first")
    persons: list[str] = Field([], max_length=100, description="Names of others there at first")
    scenario: str = Field("", max_length=100_000, description="The setting; the cast's where it is empty")
    director: Strategy = Field("natural", description="Who speaks next; with `manual`, each step names the character")
    talkativeness: dict[str, float] = Field({}, max_length=100, description="For `natural`: 0 to 1; 0.5 if not given")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Equal seeds give equal scenes")
    memory: int = Field(128, ge=0, le=4096, description="Tokens of each one's summary of what no longer fits; 0: none")
    lore: int = Field(256, ge=0, le=4096, description="Tokens of lore in a prompt; 0: none")
    turns: list[SceneTurn] = Field([], max_length=MAX_TURNS)


def checked(state: SceneState, player: Player) -> SceneState:
    """`state` with ids for names of the cast, and clean lines; `ApiError` naming what is wrong in it."""
    cast = player.cast
    if cast is None:
        raise ApiError(404, "this model has no cast: nobody to play a scene", code="no_cast")
    characters = [character_id(cast, name, f"characters.{k}") for k, name in enumerate(state.characters)]
    talk = {character_id(cast, name, f"talkativeness.{name}"): value for name, value in state.talkativeness.items()}
    if wrong := next((name for name, value in talk.items() if not 0 <= value <= 100), None):
        raise ApiError(400, f"the talkativeness of {wrong!r} should be from 0 to 100", f"talkativeness.{wrong}")
    fixed = state.model_copy(
        update={
            "characters": list(dict.fromkeys(characters)),
            "persons": list(dict.fromkeys(speaker_id(cast, n, f"persons.{k}") for k, n in enumerate(state.persons))),
            "scenario": NOT_TEXT.sub("", state.scenario).strip(),
            "talkativeness": talk,
            "turns": [],
        }
    )
    check_room(state)
    stage = stage_of(player, fixed, fixed.turns)
    for k, turn in enumerate(state.turns):
        happen(stage, turn, f"turns.{k}")
    return fixed


def check_room(state: SceneState, *more: str) -> None:
    """`ApiError` where a line of the texts `more` would make the scene too long."""
    characters = sum(len(t.text) for t in state.turns) + sum(map(len, more))
    if len(state.turns) + len(more) > MAX_TURNS or characters > MAX_CHARACTERS:
        raise ApiError(400, f"the scene is full: {MAX_TURNS} turns or {MAX_CHARACTERS} characters", code="scene_full")


def stage_of(player: Player, state: SceneState, turns: list[SceneTurn] | None = None, seed: int | None = None) -> Stage:
    """The stage at the point that a checked `state` has reached; what happens then is added to `turns`."""
    first = [*state.characters, *(p for p in state.persons if p not in state.characters)]
    if seed is None:
        seed = secrets.randbits(31) if state.seed is None else state.seed
    given = state.model_dump(include={"scenario", "director", "talkativeness", "memory", "lore"})
    stage = Stage(player, ScenePlan(participants=first, seed=seed, **given))
    for turn in state.turns:
        stage.apply(turn.row())
    if turns is not None:
        stage.record = lambda row: turns.append(SceneTurn.of(row))
    return stage


def character_id(cast: Cast, name: str, where: str) -> str:
    found = cast.get(name)
    if found is None:
        hint = nearest(name, [c.id for c in cast])
        raise ApiError(400, f"no character {name!r} in the cast; {hint}", where, "unknown_character")
    return found.id


def speaker_id(cast: Cast, name: str, where: str) -> str:
    """The id of a character, or the name of somebody else, on one line."""
    found = cast.get(name)
    if found:
        return found.id
    if not name.strip() or not name.isprintable():
        raise ApiError(400, f"{name!r} is no name: write it on one line", where)
    return name.strip()


def happen(stage: Stage, turn: SceneTurn, where: str = "") -> None:
    """Let a client's turn happen; `ApiError` for an empty line, and for one who is not there, or is there already.

    A person who speaks without having come in does so first.
    """
    at = f"{where}." if where else ""
    speaker = speaker_id(stage.cast, turn.speaker, f"{at}speaker")
    is_character, is_there = stage.cast.get(speaker) is not None, speaker in stage.present
    name = repr(stage.cast.display_name(speaker))
    text = NOT_TEXT.sub("", turn.text).strip()
    if turn.event == "says" and not text:
        raise ApiError(400, "the line is empty", f"{at}text")
    if turn.event == "enters" and is_there:
        raise ApiError(400, f"{name} is there already", f"{at}speaker")
    if turn.event == "leaves" and not is_there:
        raise ApiError(400, f"{name} is not there and cannot leave", f"{at}speaker")
    if turn.event in ("is silent", "remembers") and not is_character:
        raise ApiError(400, f"{name} is no character of the cast", f"{at}speaker")
    if turn.event in ("says", "is silent") and not is_there:
        if is_character:
            raise ApiError(400, f"{name} is not there; let it enter first", f"{at}speaker")
        stage.enter(speaker)
    if turn.event == "says" and not is_character:
        text = spoken(text, names_of_all_but(stage.cast, stage.everybody(), speaker))
    stage.happen(turn.model_copy(update={"speaker": speaker, "text": text}).row())


class Scene:
    """A scene that the server keeps. `state` is checked."""

    def __init__(self, state: SceneState) -> None:
        self.id = f"scene-{uuid.uuid4().hex}"
        self.state = state
        self.used = time.monotonic()
        self._busy = False

    @contextmanager
    def held(self) -> Iterator[SceneState]:
        """Nobody else may change it meanwhile: `ApiError` 409."""
        if self._busy:
            raise ApiError(409, "somebody is speaking in this scene; wait for the end of the turn", code="scene_busy")
        self._busy, self.used = True, time.monotonic()
        try:
            yield self.state
        finally:
            self._busy, self.used = False, time.monotonic()


class Scenes:
    """The scenes that the server keeps, in memory, found by an id that cannot be guessed."""

    def __init__(self) -> None:
        self._scenes: dict[str, Scene] = {}

    def add(self, state: SceneState) -> Scene:
        now = time.monotonic()
        self._scenes = {k: s for k, s in self._scenes.items() if now - s.used < KEPT_S}
        if len(self._scenes) >= MAX_SCENES:
            text = f"{MAX_SCENES} scenes are kept already; delete one, or keep the state yourself (/v1/scenes/step)"
            raise ApiError(429, text, code="too_many_scenes", retry_s=60)
        scene = Scene(state)
        self._scenes[scene.id] = scene
        return scene

    def find(self, scene_id: str) -> Scene:
        scene = self._scenes.get(scene_id)
        if scene is None:
            raise ApiError(404, f"no such scene (one that is not used for {KEPT_S / 60:.0f} minutes is dropped)")
        return scene

    def remove(self, scene_id: str) -> None:
        self.find(scene_id)
        del self._scenes[scene_id]
