"""The server: every character is a model of an OpenAI-compatible API.

app = build_app(player, ServeOptions(), Keys({}))
uvicorn.run(app)                                    # `mrp serve RUN` does this
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from mrp import __version__
from mrp.cast import PLAIN, Cast
from mrp.errors import MrpError
from mrp.play.reply import Player
from mrp.play.route import Router
from mrp.serve import completions, native, responses, scenes
from mrp.serve.errors import ApiError, ErrorAnswer, answer_error
from mrp.serve.gate import OPEN, Gate
from mrp.serve.keys import Keys
from mrp.serve.page_files import OPEN as PAGE
from mrp.serve.page_files import add_page
from mrp.serve.schemas import Model, ModelList
from mrp.serve.service import ServeOptions, Service
from mrp.serve.turns import AUTO, find_room

LOG = logging.getLogger("mrp.serve")
SUMMARY_CHARACTERS = 200
RETRY = {"Retry-After": {"description": "Seconds until it is worth another try", "schema": {"type": "integer"}}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The request is wrong, or asks for what is not supported"},
    401: {"model": ErrorAnswer, "description": "No valid API key"},
    404: {"model": ErrorAnswer, "description": "No such model"},
    408: {"model": ErrorAnswer, "description": "The body did not come in time"},
    413: {"model": ErrorAnswer, "description": "The body is too long"},
    415: {"model": ErrorAnswer, "description": "The body is not JSON"},
    421: {"model": ErrorAnswer, "description": "The server is not known under this name"},
    422: {"model": ErrorAnswer, "description": "Never sent: a wrong request is a 400 here"},
    429: {"model": ErrorAnswer, "description": "Too many requests, or the queue is full", "headers": RETRY},
    500: {"model": ErrorAnswer, "description": "A fault of the server"},
    502: {"model": ErrorAnswer, "description": "The model behind failed"},
    503: {"model": ErrorAnswer, "description": "The model behind is busy", "headers": RETRY},
    504: {"model": ErrorAnswer, "description": "The reply took too long"},
}


def build_app(player: Player, options: ServeOptions, keys: Keys, router: Router | None = None) -> FastAPI:
    """The application. Closes the player's engine when it shuts down. Without a `router`, names alone route."""
    service = Service(player, options, router)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="mRP-LLM",
        version=__version__,
        description="One language model that plays a whole cast: each character is a model.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    for kind in (RequestValidationError, HTTPException, MrpError, Exception):
        app.add_exception_handler(kind, answer_error)
    for module in (completions, responses, native, scenes):
        app.include_router(module.router(service, REFUSALS))
    _add_models(app, service)
    _add_health(app, service)
    add_page(app)
    document = app.openapi()  # kept by FastAPI, which gives out this one
    if keys:
        _tell_of_keys(document)
    paths = {str(path) for path in document["paths"]} | {"/openapi.json", *PAGE}
    app.add_middleware(Gate, options=options.gate, keys=keys, metrics=service.metrics, paths=paths)
    return app


def _tell_of_keys(document: dict[str, Any]) -> None:
    """Which operations want a key, for the clients that read it from the document."""
    document.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}]
    for path in OPEN:
        for operation in document["paths"].get(path, {}).values():
            operation["security"] = []


def _add_models(app: FastAPI, service: Service) -> None:
    cast = service.player.cast

    @app.get("/v1/models", response_model=ModelList, responses=REFUSALS, tags=["OpenAI"])
    async def list_models() -> ModelList:
        """The characters, `auto`, and the scene of all of them."""
        return ModelList(data=models(cast, service.created))

    @app.get("/v1/models/{model}", response_model=Model, responses=REFUSALS, tags=["OpenAI"])
    async def retrieve_model(model: str) -> Model:
        """One model; `scene:a,b` of any characters too."""
        known = {m.id: m for m in models(cast, service.created)}
        room = find_room(cast, model)
        if model in known:
            return known[model]
        if room.kind == "one":
            return known[room.characters[0]]
        assert cast is not None
        return scene_model(cast, room.characters, service.created).model_copy(update={"id": model})

    @app.post("/v1/completions", responses={400: REFUSALS[400]}, status_code=400, tags=["OpenAI"])
    async def create_completion() -> Response:
        """Refused: a character answers within a conversation."""
        text = "/v1/completions is not supported: a character answers within a conversation; use /v1/chat/completions"
        raise ApiError(400, text, code="unsupported_endpoint")


def models(cast: Cast | None, created: int) -> list[Model]:
    """What clients can choose from."""
    if cast is None:
        return [Model(id=PLAIN, created=created, name="model", description="The model itself; no cast was given.")]
    rows = [
        Model(id=c.id, created=created, name=c.name, description=summary(cast.persona(c.id), SUMMARY_CHARACTERS))
        for c in cast
    ]
    rows.append(Model(id=AUTO, created=created, name="auto", description="Whoever should answer; the reply says who."))
    if len(rows) > 2:
        rows.append(scene_model(cast, [c.id for c in cast], created))
    return rows


def scene_model(cast: Cast, characters: Any, created: int) -> Model:
    names = ", ".join(cast[c].name for c in characters)
    model = f"scene:{','.join(characters)}"
    return Model(id=model, created=created, name=f"Scene: {names}", description="Each reply is the next turn.")


def summary(text: str, most: int) -> str:
    """The first `most` characters of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["Operation"], responses=REFUSALS)
    async def health() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/ready", tags=["Operation"], responses=REFUSALS)
    async def ready() -> Response:
        """A reply could be had now: the model behind answers, and the queue is not full."""
        check = getattr(service.player.engine, "check", None)
        try:
            if check:
                await asyncio.to_thread(check)
        except MrpError as error:
            raise ApiError(503, f"the model behind is away: {error.what}", code="not_ready", retry_s=5) from None
        if service.slots.waiting >= service.options.max_waiting:
            raise ApiError(503, "the queue is full", code="not_ready", retry_s=service.slots.retry_s())
        return JSONResponse({"status": "ready"})

    page: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", tags=["Operation"], response_class=Response, responses={**REFUSALS, **page})
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")
