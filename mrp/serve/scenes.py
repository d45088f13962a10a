"""`/v1/scenes`: create a scene, let it go on by a turn (streamed too), say a line, join, leave.

POST /v1/scenes                {"characters": ["wukong", "bajie"], "scenario": "At the inn."}
POST /v1/scenes/ID/step        {}                      the next turn, by whoever's it is
POST /v1/scenes/ID/lines       {"speaker": "Alice", "text": "Good evening."}
POST /v1/scenes/ID/join        {"speaker": "tang"}
POST /v1/scenes/step           {"scene": {...}}        the same for a state that the client keeps
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from mrp.dialogue import Turn
from mrp.play.engine import Sampling
from mrp.serve.answer import EventStream, begun, while_there
from mrp.serve.choose import Choice, next_in_scene
from mrp.serve.completions import said_by
from mrp.serve.errors import ApiError
from mrp.serve.scene_state import Scene, Scenes, SceneState, SceneTurn, add_turn, checked, heard_by, speaker_id
from mrp.serve.schemas import MAX_STOPS, Said, Strict, Usage
from mrp.serve.service import Lines, Service


class SceneAnswer(SceneState):
    id: str
    present: list[str] = Field(description="Who is there now")


class SpeakerRequest(Strict):
    speaker: str = Field(min_length=1, max_length=64)


class LineRequest(SpeakerRequest):
    text: str = Field(min_length=1, max_length=100_000)


class StepRequest(Strict):
    """`character`: who speaks; null is whoever's turn it is."""

    character: str | None = Field(None, min_length=1, max_length=64)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[str] = Field([], max_length=MAX_STOPS)
    stream: bool = False


class StatelessStep(StepRequest):
    scene: SceneState


class StepAnswer(BaseModel):
    """A turn. `turn` is null where the character said nothing."""

    turn: SceneTurn | None
    finish_reason: Literal["stop", "length"]
    usage: Usage
    mrp: Said


def router(service: Service, refusals: dict[int | str, dict[str, Any]]) -> APIRouter:
    """The endpoints."""
    refusals = {**refusals, 409: {**refusals[400], "description": "Somebody is speaking in this scene"}}
    routes = APIRouter(tags=["Scenes"], prefix="/v1/scenes", responses=refusals)
    scenes = Scenes()
    streams: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
    stepped: dict[str, Any] = {
        "response_model": StepAnswer,
        "responses": {200: {"content": streams, "description": "The turn; with `stream`, its pieces first"}},
    }

    @routes.post("", status_code=201)
    async def create(body: SceneState) -> SceneAnswer:
        """Begin a scene, or go on with one that was kept elsewhere."""
        return _shown(scenes.add(checked(body, service.player.cast)))

    @routes.post("/step", **stepped)
    async def step_stateless(body: StatelessStep, request: Request) -> Response:
        """The next turn of a scene whose state the client keeps; nothing is kept here."""
        return await _answer(service, Scene(checked(body.scene, service.player.cast)), body, request)

    @routes.get("/{scene_id}")
    async def get(scene_id: str) -> SceneAnswer:
        """A scene with all its turns."""
        return _shown(scenes.find(scene_id))

    @routes.delete("/{scene_id}", status_code=204)
    async def delete(scene_id: str) -> None:
        """Forget a scene."""
        scenes.remove(scene_id)

    @routes.post("/{scene_id}/step", **stepped)
    async def step(scene_id: str, body: StepRequest, request: Request) -> Response:
        """The next turn. A turn that breaks off, or whose client leaves, is not part of the scene."""
        return await _answer(service, scenes.find(scene_id), body, request)

    def change(scene_id: str, turn: SceneTurn) -> SceneAnswer:
        scene = scenes.find(scene_id)
        with scene.held() as state:
            assert service.player.cast is not None
            add_turn(state, turn, service.player.cast)
        return _shown(scene)

    @routes.post("/{scene_id}/lines")
    async def line(scene_id: str, body: LineRequest) -> SceneAnswer:
        """Say a line, as a person or for a character."""
        return change(scene_id, SceneTurn(speaker=body.speaker, text=body.text))

    @routes.post("/{scene_id}/join")
    async def join(scene_id: str, body: SpeakerRequest) -> SceneAnswer:
        """Somebody comes in, and hears what is said from now on."""
        return change(scene_id, SceneTurn(speaker=body.speaker, event="enters"))

    @routes.post("/{scene_id}/leave")
    async def leave(scene_id: str, body: SpeakerRequest) -> SceneAnswer:
        """Somebody goes, and hears no more."""
        return change(scene_id, SceneTurn(speaker=body.speaker, event="leaves"))

    return routes


def _shown(scene: Scene) -> SceneAnswer:
    return SceneAnswer(id=scene.id, present=scene.state.who_is_there(), **dict(scene.state))


async def _answer(service: Service, scene: Scene, body: StepRequest, request: Request) -> Response:
    events = _turn(service, scene, body, request.state.notes)
    if body.stream:
        return EventStream(await begun(request, events), service.options.write_s)

    async def last() -> dict[str, Any]:
        found: dict[str, Any] = {}
        async with aclosing(events):
            async for event in events:
                found = event
        return found

    whole = await while_there(request, last())
    return JSONResponse({key: value for key, value in whole.items() if key != "type"})


async def _turn(
    service: Service, scene: Scene, body: StepRequest, notes: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    """The events of a turn: `turn.begin` with who and why, `turn.delta` with text, `turn.end` with the whole."""
    with scene.held() as state:
        choice, lines = await asyncio.to_thread(_plan, service, state, body)
        said = said_by(service, choice, lines).model_dump()
        has_begun = False
        async with aclosing(service.run(lines, notes)) as pieces:
            async for _, piece in pieces:
                if not has_begun:
                    has_begun = True
                    yield {"type": "turn.begin", "mrp": said}
                if piece is not None:
                    yield {"type": "turn.delta", "text": piece.text}
        (line,) = lines.lines
        notes["finish"] = [line.finish_reason]
        turn = None
        if line.text.strip() and service.player.cast:
            turn = add_turn(state, SceneTurn(speaker=choice.character, text=line.text), service.player.cast)
        usage = Usage.of(lines.prompt_tokens, lines.reply_tokens)
        whole = {"turn": turn and turn.model_dump(), "finish_reason": line.finish_reason, "usage": usage.model_dump()}
        yield {"type": "turn.end", **whole, "mrp": said}


def _plan(service: Service, state: SceneState, body: StepRequest) -> tuple[Choice, Lines]:
    player = service.player
    assert player.cast is not None
    there = [name for name in state.who_is_there() if player.cast.get(name)]
    if body.character is not None:
        choice = Choice(speaker_id(player.cast, body.character, "character"), "asked for")
        if choice.character not in there:
            raise ApiError(400, f"{choice.character!r} is no character in this scene now", "character")
    elif there:
        turns = [Turn(t.speaker, t.text, t.event != "says") for t in state.turns]
        choice = next_in_scene(player, turns, there)
    else:
        raise ApiError(400, "no character is left in this scene; let one join", code="scene_empty")
    options = player.options
    sampling = Sampling(
        temperature=options.temperature if body.temperature is None else body.temperature,
        top_p=options.top_p if body.top_p is None else body.top_p,
        max_new_tokens=body.max_tokens or options.max_new_tokens,
        seed=body.seed,
    )
    chat = heard_by(player, state, choice.character)
    return choice, service.lines(chat, choice.character, state.scenario, sampling, body.stop)
