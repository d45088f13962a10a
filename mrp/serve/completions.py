"""`/v1/chat/completions`: a client's request becomes replies, whole or as a stream of chunks.

{"model": "wukong", "messages": [{"role": "user", "content": "Who are you?"}], "stream": true}
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from mrp.play.engine import Sampling, Token
from mrp.serve.answer import Events, EventStream, begun, while_there
from mrp.serve.choose import Choice as Chosen
from mrp.serve.choose import choose_speaker
from mrp.serve.errors import ApiError
from mrp.serve.schemas import (
    ChatCompletion,
    ChatRequest,
    Choice,
    Logprobs,
    ReplyMessage,
    Said,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from mrp.serve.service import Lines, Service, user_hash
from mrp.serve.turns import find_room, read_request, shown


@dataclass(frozen=True)
class Plan:
    """A request understood: who answers, and the replies, not begun yet."""

    lines: Lines
    said: Said
    prefix: str  # what stands before each reply, where a client sees several characters
    wants_logprobs: bool


def plan(service: Service, body: ChatRequest) -> Plan:
    """Understand a request. Renders the prompt: for a thread."""
    player = service.player
    room = find_room(player.cast, body.model)
    asked = read_request(player, room, body.messages)
    choice = choose_speaker(player, service.router, room, asked, seed=body.seed)
    character = choice.character
    lines = service.lines(asked.chat, character, asked.scenario, sampling_of(service, body), body.stops, body.n or 1)
    prefix = shown(player.cast, character) if room.shows_names and player.cast else ""
    return Plan(lines, said_by(service, choice, lines), prefix, bool(body.logprobs))


def said_by(service: Service, choice: Chosen, lines: Lines) -> Said:
    cast = service.player.cast
    return Said(
        character=choice.character,
        name=cast.display_name(choice.character) if cast else choice.character,
        reason=choice.reason,
        confidence=choice.confidence,
        dropped_messages=lines.prompt.dropped,
        lore=lines.lore,
    )


def sampling_of(service: Service, body: ChatRequest) -> Sampling:
    options = service.player.options
    return Sampling(
        temperature=options.temperature if body.temperature is None else body.temperature,
        top_p=options.top_p if body.top_p is None else body.top_p,
        max_new_tokens=body.max_completion_tokens or body.max_tokens or options.max_new_tokens,
        seed=body.seed,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


async def answer(service: Service, request: Request, body: ChatRequest) -> Response:
    """Answer a request for replies."""
    notes: dict[str, Any] = request.state.notes
    if body.user:
        notes["user"] = user_hash(body.user)
    planned = await asyncio.to_thread(plan, service, body)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
    headers = {"x-mrp-character": planned.said.character}
    if body.stream:
        wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        events = await begun(request, _chunks(service, planned, head, wants_usage, notes))
        stream = EventStream(events, service.options.write_s)
        stream.headers.update(headers)
        return stream
    whole = await while_there(request, _whole(service, planned, head, notes))
    return JSONResponse(whole.model_dump(), headers=headers)


async def _whole(service: Service, planned: Plan, head: dict[str, Any], notes: dict[str, Any]) -> ChatCompletion:
    lines = planned.lines
    async with aclosing(service.run(lines, notes)) as pieces:
        async for _, piece in pieces:
            if piece is not None and planned.wants_logprobs:
                check_logprobs(piece.tokens)
    notes["finish"] = [line.finish_reason for line in lines.lines]
    choices = [
        Choice(
            index=k,
            message=ReplyMessage(content=planned.prefix + line.text, name=planned.said.name),
            finish_reason=line.finish_reason,
            logprobs=Logprobs(content=logged(service, line.tokens)) if planned.wants_logprobs else None,
        )
        for k, line in enumerate(lines.lines)
    ]
    usage = Usage.of(lines.prompt_tokens, lines.reply_tokens)
    return ChatCompletion(**head, choices=choices, usage=usage, mrp=planned.said)


async def _chunks(
    service: Service, planned: Plan, head: dict[str, Any], wants_usage: bool, notes: dict[str, Any]
) -> Events:
    head = {**head, "object": "chat.completion.chunk", "system_fingerprint": None}
    lines, opened = planned.lines, set()

    def chunk(number: int, delta: dict[str, Any], finish: str | None = None, tokens: list[Token] | None = None) -> Any:
        log = None
        if tokens and planned.wants_logprobs:
            check_logprobs(tokens)
            log = Logprobs(content=logged(service, tokens)).model_dump()
        choice = {"index": number, "delta": delta, "logprobs": log, "finish_reason": finish}
        more = {"usage": None} if wants_usage else {}
        return {**head, "choices": [choice], **more, "mrp": planned.said.model_dump()}

    async with aclosing(service.run(lines, notes)) as pieces:
        async for number, piece in pieces:
            if number not in opened:
                opened.add(number)
                if piece is not None and planned.wants_logprobs:
                    check_logprobs(piece.tokens)  # before anything is sent
                yield chunk(number, {"role": "assistant", "name": planned.said.name, "content": planned.prefix})
            if piece is not None:
                yield chunk(number, {"content": piece.text}, tokens=piece.tokens)
            else:
                yield chunk(number, {}, lines.lines[number].finish_reason)
    notes["finish"] = [line.finish_reason for line in lines.lines]
    if wants_usage:
        usage = Usage.of(lines.prompt_tokens, lines.reply_tokens)
        yield {**head, "choices": [], "usage": usage.model_dump()}
    yield "[DONE]"


def check_logprobs(tokens: list[Token]) -> None:
    if any(token.logprob is None for token in tokens):
        raise ApiError(400, "this engine gives no log-probabilities", "logprobs", "unsupported_parameter")


def logged(service: Service, tokens: list[Token]) -> list[TokenLogprob]:
    """Tokens with their log-probabilities, in OpenAI's form."""

    def text(token: int | str) -> str:
        return token if isinstance(token, str) else str(service.player.tokenizer.decode([token]))

    def data(token: str) -> list[int] | None:
        return None if "\ufffd" in token else list(token.encode())  # part of a character: its bytes are not known

    rows = []
    for token in tokens:
        own = token.text if token.text is not None or token.id is None else text(token.id)
        tops = [TopLogprob(token=text(t), logprob=p, bytes=data(text(t))) for t, p in token.top]
        row = TokenLogprob(token=own or "", logprob=token.logprob or 0.0, bytes=data(own or ""), top_logprobs=tops)
        rows.append(row)
    return rows


def router(service: Service, refusals: dict[int | str, dict[str, Any]]) -> APIRouter:
    """The endpoint."""
    routes = APIRouter(tags=["OpenAI"])
    streams: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
    answers: dict[int | str, dict[str, Any]] = {
        200: {"content": streams, "description": "The replies; with `stream`, chunks of them and then `[DONE]`"}
    }

    @routes.post("/v1/chat/completions", response_model=ChatCompletion, responses={**refusals, **answers})
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """The next line of a character, of whoever should answer (`auto`), or of a scene (`scene:a,b`)."""
        return await answer(service, request, body)

    return routes
