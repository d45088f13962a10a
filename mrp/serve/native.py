"""What OpenAI's API has no place for: the cast (`/v1/cast`), and who would answer (`/v1/route`)."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from mrp.cast import Cast
from mrp.serve.choose import choose_speaker
from mrp.serve.errors import ApiError
from mrp.serve.schemas import MAX_MESSAGES, ChatMessage, Strict
from mrp.serve.service import Service
from mrp.serve.turns import AUTO, Room, find_room, read_request


class Lore(BaseModel):
    keys: list[str]
    text: str
    constant: bool


class CastMember(BaseModel):
    id: str
    name: str
    aliases: list[str]
    persona: str
    greeting: str
    alternate_greetings: list[str]
    scenario: str
    lore: list[Lore]


class CastAnswer(BaseModel):
    """The characters, with what they are and know."""

    language: str
    scenario: str
    characters: list[CastMember]


class RouteRequest(Strict):
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    current: str | None = Field(None, description="Who answered last, where the messages do not tell")
    candidates: list[str] | None = Field(None, min_length=1, max_length=1000, description="None: the whole cast")


class RouteAnswer(BaseModel):
    character: str
    name: str
    reason: str
    confidence: float | None
    scores: dict[str, float] = Field(description="The share of each candidate; they sum to 1")


def router(service: Service, refusals: dict[int | str, dict[str, Any]]) -> APIRouter:
    """The endpoints."""
    routes = APIRouter(tags=["mRP"], responses=refusals)

    @routes.get("/v1/cast")
    async def cast() -> CastAnswer:
        """The cast: personas, greetings and lore. Of a model without a cast it is empty."""
        return cast_answer(service.player.cast)

    @routes.post("/v1/route")
    async def route(body: RouteRequest) -> RouteAnswer:
        """Who would answer the last message, and why. Nothing is generated."""
        return await asyncio.to_thread(_route, service, body)

    return routes


def cast_answer(cast: Cast | None) -> CastAnswer:
    if cast is None:
        return CastAnswer(language="en", scenario="", characters=[])
    members = [
        CastMember(
            persona=cast.persona(c.id),
            lore=[Lore(keys=entry.keys, text=entry.text, constant=entry.constant) for entry in c.lore],
            **c.model_dump(include={"id", "name", "aliases", "greeting", "alternate_greetings", "scenario"}),
        )
        for c in cast
    ]
    return CastAnswer(language=cast.language, scenario=cast.scenario, characters=members)


def _route(service: Service, body: RouteRequest) -> RouteAnswer:
    cast = service.player.cast
    if cast is None:
        raise ApiError(404, "this model has no cast: nobody to choose from", code="no_cast")
    room = find_room(cast, AUTO)
    if body.candidates:
        room = Room(tuple(dict.fromkeys(find_room(cast, name).characters[0] for name in body.candidates)), "auto")
    current = find_room(cast, body.current).characters[0] if body.current else None
    asked = read_request(service.player, room, body.messages)
    choice = choose_speaker(service.player, service.router, room, asked, current)
    return RouteAnswer(
        character=choice.character,
        name=cast.display_name(choice.character),
        reason=choice.reason,
        confidence=choice.confidence,
        scores=choice.scores or {},
    )
