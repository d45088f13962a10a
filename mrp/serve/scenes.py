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

from mrp.serve.answer import EventStream, begun, while_there
from mrp.serve.completions import said_by
from mrp.serve.scene_state import Scene, Scenes, SceneState, SceneTurn, check_room, checked, happen, stage_of
from mrp.serve.scene_turn import NextTurn, StepRequest
from mrp.serve.schemas import Said, Strict, Usage
from mrp.serve.service import Service


class SceneAnswer(SceneState):
    id: str
    present: list[str] = Field(description="Who is there now")


class SpeakerRequest(Strict):
    speaker: str = Field(min_length=1, max_length=64)


class LineRequest(SpeakerRequest):
    text: str = Field(min_length=1, max_length=100_000)


class StatelessStep(StepRequest):
    scene: SceneState


class StepAnswer(BaseModel):
    """A turn: a line, or silence. `events` is all that happened in it, to be added to the `turns` of a scene that you
    keep: before the turn there may be what the speaker now remembers of what no longer fits."""

    turn: SceneTurn
    events: list[SceneTurn]
    finish_reason: Literal["stop", "length"]
    usage: Usage
    mrp: Said


def router(service: Service, refusals: dict[int | str, dict[str, Any]]) -> APIRouter:
    """The endpoints."""
    refusals = {**refusals, 409: {**refusals[400], "description": "Somebody is speaking in this scene"}}
    routes = APIRouter(tags=["Scenes"], prefix="/v1/scenes", responses=refusals)
    scenes, player = Scenes(), service.player

    def shown(scene: Scene) -> SceneAnswer:
        present = stage_of(player, scene.state).present
        return SceneAnswer(id=scene.id, present=present, **dict(scene.state))

    streams: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
    stepped: dict[str, Any] = {
        "response_model": StepAnswer,
        "responses": {200: {"content": streams, "description": "The turn; with `stream`, its pieces first"}},
    }

    @routes.post("", status_code=201)
    async def create(body: SceneState) -> SceneAnswer:
        """Begin a scene, or go on with one that was kept elsewhere."""
        return shown(scenes.add(await asyncio.to_thread(checked, body, player)))

    @routes.post("/step", **stepped)
    async def step_stateless(body: StatelessStep, request: Request) -> Response:
        """The next turn of a scene whose state the client keeps; nothing is kept here."""
        return await _answer(service, Scene(await asyncio.to_thread(checked, body.scene, player)), body, request)

    @routes.get("/{scene_id}")
    async def get(scene_id: str) -> SceneAnswer:
        """A scene with all its turns."""
        return shown(scenes.find(scene_id))

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
            check_room(state, turn.text)
            happen(stage_of(player, state, state.turns), turn)
        return shown(scene)

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
        check_room(state, "")
        work = NextTurn(service, state, body)
        has_begun = False
        async with aclosing(service.run(work, notes)) as pieces:
            async for _, piece in pieces:
                if not has_begun:
                    has_begun = True
                    yield {"type": "turn.begin", "mrp": said_by(service, work.choice, work.lines).model_dump()}
                if piece is not None:
                    yield {"type": "turn.delta", "text": piece.text}
        finish_reason = work.lines.lines[0].finish_reason
        notes["finish"] = [finish_reason]
        state.turns.extend(work.events)
        events = [event.model_dump() for event in work.events]
        usage = Usage.of(work.prompt_tokens, work.reply_tokens).model_dump()
        whole = {"turn": events[-1], "events": events, "finish_reason": finish_reason, "usage": usage}
        yield {"type": "turn.end", **whole, "mrp": said_by(service, work.choice, work.lines).model_dump()}
