"""`/v1/responses`, for text: OpenAI's newer endpoint over the same plans and replies as `completions.py`.

{"model": "wukong", "input": "Who are you?", "instructions": "At the inn."}
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, model_validator

from mrp.serve.answer import Events, EventStream, begun, while_there
from mrp.serve.completions import Plan, plan
from mrp.serve.errors import as_api_error
from mrp.serve.schemas import (
    MAX_MESSAGES,
    MESSAGE_REFUSED,
    NO_TOOLS,
    SERVICE_ONLY,
    TEXT_ONLY,
    ChatMessage,
    ChatRequest,
    Refusals,
    Said,
    Strict,
    TextPart,
    without_refused,
)
from mrp.serve.service import Service, user_hash

NO_STATE = "this server keeps no responses; send the whole conversation as `input`"
REFUSED: Refusals = {
    **SERVICE_ONLY,
    "stream_options": (({"include_obfuscation": False},), "this server adds nothing to a stream"),
    "context_management": ((), "old messages are dropped whole where the context is full"),
    "background_options": ((), NO_STATE),
    "access_programs": ((), NO_TOOLS),
    "image": ((), TEXT_ONLY),
    "tools": ((), NO_TOOLS),
    "tool_choice": (("none", "auto"), NO_TOOLS),
    "parallel_tool_calls": ((True, False), NO_TOOLS),
    "max_tool_calls": ((), NO_TOOLS),
    "text": (({"format": {"type": "text"}},), "replies are free text, no grammar constrains them"),
    "reasoning": ((), "characters answer without a reasoning phase"),
    "include": ((), TEXT_ONLY),
    "previous_response_id": ((), NO_STATE),
    "conversation": ((), NO_STATE),
    "store": ((False,), NO_STATE),
    "background": ((False,), NO_STATE),
    "metadata": ((), NO_STATE),
    "prompt": ((), NO_STATE),
    "truncation": (("auto", "disabled"), "old messages are dropped whole where the context is full"),
    "service_tier": (("auto", "default"), "there is one tier"),
    "top_logprobs": ((0,), "use /v1/chat/completions for log-probabilities"),
}


class InputMessage(Strict):
    """A message of the conversation; what an earlier response gave out is taken as it came."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kept = {k: v for k, v in value.items() if k not in ("id", "status", "phase")}  # of its own earlier answers
        if isinstance(kept.get("content"), list):
            kept["content"] = [_bare_part(part) for part in kept["content"]]
        return without_refused(kept, MESSAGE_REFUSED, cls.model_fields, "a message")


def _bare_part(part: Any) -> Any:
    """A part of an earlier answer, without what says nothing."""
    if not isinstance(part, dict):
        return part
    return {k: v for k, v in part.items() if k not in ("annotations", "logprobs") or v not in ([], None)}


class ResponsesRequest(Strict):
    """A request for a reply. Fields of OpenAI's that are not listed here are refused by name."""

    model: str = Field(min_length=1, max_length=1000)
    input: str | list[InputMessage] = Field(min_length=1, max_length=MAX_MESSAGES * 1000)
    instructions: str | None = Field(None, description="The scenario, as a system message is")
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stream: bool | None = None
    user: str | None = Field(None, max_length=1000)

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, value: Any) -> Any:
        return without_refused(value, REFUSED, cls.model_fields, "a request")

    def as_chat(self) -> ChatRequest:
        """The same question at the other endpoint."""
        said = [ChatMessage(role="user", content=self.input)] if isinstance(self.input, str) else []
        if not isinstance(self.input, str):
            said = [ChatMessage(role=m.role, content=m.content) for m in self.input]
        if self.instructions:
            said = [ChatMessage(role="system", content=self.instructions), *said]
        return ChatRequest(
            model=self.model,
            messages=said,
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_output_tokens,
        )


class OutputText(BaseModel):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class OutputMessage(BaseModel):
    type: Literal["message"] = "message"
    id: str
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class InputDetails(BaseModel):
    cached_tokens: int = 0


class OutputDetails(BaseModel):
    reasoning_tokens: int = 0


class ResponsesUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseObject(BaseModel):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: dict[str, Any] | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool = False
    previous_response_id: str | None = None
    store: bool = False
    temperature: float | None
    tool_choice: Literal["none"] = "none"
    tools: list[Any] = []
    top_p: float | None
    usage: ResponsesUsage | None
    mrp: Said


class _Making:
    """A response object in the making."""

    def __init__(self, body: ResponsesRequest, planned: Plan) -> None:
        self.planned, self.body = planned, body
        self.id, self.message_id = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"
        self.created = int(time.time())

    @property
    def text(self) -> str:
        return self.planned.prefix + self.planned.lines.lines[0].text

    def message(self, status: str) -> OutputMessage:
        content = [OutputText(text=self.text)] if status != "in_progress" else []
        return OutputMessage(id=self.message_id, status=status, content=content)  # type: ignore[arg-type]

    def response(self, status: str, error: dict[str, Any] | None = None) -> ResponseObject:
        lines = self.planned.lines
        over = status in ("completed", "incomplete")
        sampling = lines.sampling
        usage = ResponsesUsage(
            input_tokens=lines.prompt_tokens,
            output_tokens=lines.reply_tokens,
            total_tokens=lines.prompt_tokens + lines.reply_tokens,
        )
        return ResponseObject(
            id=self.id,
            created_at=self.created,
            status=status,  # type: ignore[arg-type]
            error=error,
            incomplete_details=IncompleteDetails() if status == "incomplete" else None,
            instructions=self.body.instructions,
            max_output_tokens=sampling.max_new_tokens,
            model=self.body.model,
            output=[self.message(status)] if over else [],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            usage=usage if over else None,
            mrp=self.planned.said,
        )

    @property
    def end(self) -> str:
        return "completed" if self.planned.lines.lines[0].finish_reason == "stop" else "incomplete"


async def answer(service: Service, request: Request, body: ResponsesRequest) -> Response:
    notes: dict[str, Any] = request.state.notes
    if body.user:
        notes["user"] = user_hash(body.user)
    planned = await asyncio.to_thread(plan, service, body.as_chat())
    making = _Making(body, planned)
    if body.stream:
        events = await begun(request, _events(service, making, notes))
        return EventStream(events, service.options.write_s)
    await while_there(request, _to_the_end(service, planned, notes))
    return JSONResponse(making.response(making.end).model_dump())


async def _to_the_end(service: Service, planned: Plan, notes: dict[str, Any]) -> None:
    async with aclosing(service.run(planned.lines, notes)) as pieces:
        async for _ in pieces:
            pass


async def _events(service: Service, making: _Making, notes: dict[str, Any]) -> Events:
    """The events of a stream, numbered. Nothing is said before the first piece came: until then it can be refused."""
    number = -1
    place = {"item_id": making.message_id, "output_index": 0, "content_index": 0}

    def event(kind: str, **more: Any) -> dict[str, Any]:
        nonlocal number
        number += 1
        return {"type": kind, "sequence_number": number, **more}

    def opening() -> list[dict[str, Any]]:
        begun_one = making.response("in_progress").model_dump()
        part = OutputText(text="").model_dump()
        events = [
            event("response.created", response=begun_one),
            event("response.in_progress", response=begun_one),
            event("response.output_item.added", output_index=0, item=making.message("in_progress").model_dump()),
            event("response.content_part.added", **place, part=part),
        ]
        if making.planned.prefix:
            events.append(event("response.output_text.delta", **place, delta=making.planned.prefix, logprobs=[]))
        return events

    async with aclosing(service.run(making.planned.lines, notes)) as pieces:
        try:
            async for _, piece in pieces:
                if number < 0:
                    for one in opening():
                        yield one
                if piece is not None:
                    yield event("response.output_text.delta", **place, delta=piece.text, logprobs=[])
        except Exception as error:
            if number < 0:
                raise
            told = as_api_error(error)
            failure = {"code": "server_error", "message": told.message}
            yield event("response.failed", response=making.response("failed", failure).model_dump())
            return
    message = making.message(making.end).model_dump()
    yield event("response.output_text.done", **place, text=making.text, logprobs=[])
    yield event("response.content_part.done", **place, part=message["content"][0])
    yield event("response.output_item.done", output_index=0, item=message)
    yield event(f"response.{making.end}", response=making.response(making.end).model_dump())


def router(service: Service, refusals: dict[int | str, dict[str, Any]]) -> APIRouter:
    """The endpoint."""
    routes = APIRouter(tags=["OpenAI"])
    streams: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
    answers: dict[int | str, dict[str, Any]] = {
        200: {"content": streams, "description": "The response; with `stream`, the events of its making"}
    }

    @routes.post("/v1/responses", response_model=ResponseObject, responses={**refusals, **answers})
    async def create_response(body: ResponsesRequest, request: Request) -> Response:
        """The next line of a character, in the form of OpenAI's Responses API."""
        return await answer(service, request, body)

    return routes
