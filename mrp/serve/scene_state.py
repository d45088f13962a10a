"""A scene as a client sees and sends it, and what of it a character has heard.

    state = SceneState(characters=["wukong", "bajie"], turns=[SceneTurn(speaker="tang", event="enters")])
    chat = heard_by(player, state, "tang")       # what was said before is not in it

The server keeps scenes for a while (`Scenes`), within limits; a client may keep its own state and send it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from pydantic import Field

from mrp.cast import Cast
from mrp.dialogue import Turn
from mrp.errors import nearest
from mrp.play.conversation import Conversation
from mrp.play.reply import NOT_TEXT, Player
from mrp.serve.errors import ApiError
from mrp.serve.schemas import Strict

MAX_SCENES = 128
MAX_TURNS = 5000
MAX_CHARACTERS = 500_000  # of all lines of a scene
KEPT_S = 3600.0  # after the last use


class SceneTurn(Strict):
    """A line, or somebody's coming or going."""

    speaker: str = Field(min_length=1, max_length=64)
    text: str = Field("", max_length=100_000)
    event: Literal["says", "enters", "leaves"] = "says"


class SceneState(Strict):
    """A scene: who is there when it begins, and what happened since."""

    characters: list[str] = Field(min_length=1, max_length=100, description="Ids or names of characters there at first")
    persons: list[str] = Field([], max_length=100, description="Names of others there at first")
    scenario: str = Field("", max_length=100_000)
    turns: list[SceneTurn] = Field([], max_length=MAX_TURNS)

    def who_is_there(self) -> list[str]:
        """Who is there now, in order of coming."""
        there = dict.fromkeys([*self.characters, *self.persons])
        for turn in self.turns:
            if turn.event == "leaves":
                there.pop(turn.speaker, None)
            else:
                there.setdefault(turn.speaker)
        return list(there)


def checked(state: SceneState, cast: Cast | None) -> SceneState:
    """`state` with ids for names of the cast, and clean lines; `ApiError` naming what is wrong in it."""
    if cast is None:
        raise ApiError(404, "this model has no cast: nobody to play a scene", code="no_cast")
    characters = []
    for k, name in enumerate(state.characters):
        found = cast.get(name)
        if found is None:
            hint = nearest(name, [c.id for c in cast])
            raise ApiError(400, f"no character {name!r} in the cast; {hint}", f"characters.{k}", "unknown_character")
        characters.append(found.id)
    fixed = SceneState(
        characters=list(dict.fromkeys(characters)),
        persons=list(dict.fromkeys(speaker_id(cast, name, f"persons.{k}") for k, name in enumerate(state.persons))),
        scenario=NOT_TEXT.sub("", state.scenario).strip(),
    )
    for k, turn in enumerate(state.turns):
        add_turn(fixed, turn, cast, f"turns.{k}")
    return fixed


def speaker_id(cast: Cast, name: str, where: str) -> str:
    """The id of a character, or the name of somebody else, on one line."""
    found = cast.get(name)
    if found:
        return found.id
    if not name.strip() or not name.isprintable():
        raise ApiError(400, f"{name!r} is no name: write it on one line", where)
    return name.strip()


def add_turn(state: SceneState, turn: SceneTurn, cast: Cast, where: str = "") -> SceneTurn:
    """Add a turn; `ApiError` for an empty line, a scene that is full, or one who is not there."""
    speaker = speaker_id(cast, turn.speaker, f"{where}.speaker".strip("."))
    text = NOT_TEXT.sub("", turn.text).strip() if turn.event == "says" else ""
    if turn.event == "says" and not text:
        raise ApiError(400, "the line is empty", f"{where}.text".strip("."))
    there = state.who_is_there()
    if turn.event == "leaves" and speaker not in there:
        raise ApiError(400, f"{speaker!r} is not there and cannot leave", f"{where}.speaker".strip("."))
    if turn.event == "says" and cast.get(speaker) and speaker not in there:
        raise ApiError(400, f"{speaker!r} is not there; let it enter first", f"{where}.speaker".strip("."))
    if len(state.turns) >= MAX_TURNS or sum(len(t.text) for t in state.turns) + len(text) > MAX_CHARACTERS:
        raise ApiError(400, f"the scene is full: {MAX_TURNS} turns or {MAX_CHARACTERS} characters", code="scene_full")
    added = SceneTurn(speaker=speaker, text=text, event=turn.event)
    state.turns.append(added)
    return added


def heard_by(player: Player, state: SceneState, character: str) -> Conversation:
    """The scene as `character` knows it: only what was said while it was there."""
    chat = Conversation(player, [character])
    there = set(state.characters) | set(state.persons)
    is_there = character in there
    known = set(there) if is_there else set()
    chat.participants = sorted(known) if is_there else []

    def learn_of(names: set[str]) -> None:
        for name in sorted(names - known):
            chat.turns.append(Turn(name, enters=True))
        known.update(names)

    for turn in state.turns:
        if turn.event == "leaves":
            there.discard(turn.speaker)
            is_there = is_there and turn.speaker != character
            continue
        there.add(turn.speaker)
        if turn.speaker == character and not is_there:
            is_there = True
            if not chat.participants:
                chat.participants = sorted(there)
                known.update(there)
        if is_there:
            learn_of(there)
            if turn.event == "says":
                chat.say(turn.text, turn.speaker)
    return chat


class Scene:
    """A scene that the server keeps."""

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
