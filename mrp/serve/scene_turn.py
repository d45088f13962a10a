"""The next turn of a scene as work for a thread: who speaks, the prompt, and the line.

    turn = NextTurn(service, state, StepRequest())
    for _, piece in turn: ...
    turn.choice, turn.events

All of it has one place in the engine: the director and the memory of a long scene may ask the model, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pydantic import Field

from mrp.errors import InputError
from mrp.play.director import choose
from mrp.play.engine import Sampling
from mrp.play.scene import Stage
from mrp.serve.choose import Choice
from mrp.serve.errors import ApiError
from mrp.serve.generate import Cancellable, Line, Piece
from mrp.serve.scene_state import SceneState, SceneTurn, character_id, stage_of
from mrp.serve.schemas import MAX_STOPS, Strict
from mrp.serve.service import Lines, Service


class StepRequest(Strict):
    """`character`: who speaks; null is whoever the director names."""

    character: str | None = Field(None, min_length=1, max_length=64)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Of this turn; else the scene's tells it")
    stop: list[str] = Field([], max_length=MAX_STOPS)
    stream: bool = False


class NextTurn:
    """`choice` and `lines` are there with the first piece; `events`, all that happened, when the line is whole."""

    choice: Choice
    lines: Lines

    def __init__(self, service: Service, state: SceneState, body: StepRequest) -> None:
        self.body, self.state, self.service = body, state, service
        self.events: list[SceneTurn] = []
        self._engine = Cancellable(service.player.engine)
        options = service.player.options
        asked = {"temperature": body.temperature, "top_p": body.top_p, "max_new_tokens": body.max_tokens}
        options = options.model_copy(update={key: value for key, value in asked.items() if value is not None})
        self._player = replace(service.player, engine=self._engine, options=options)

    @property
    def character(self) -> str:
        return self.choice.character if hasattr(self, "choice") else ""

    @property
    def prompt_tokens(self) -> int:
        return self.lines.prompt_tokens if hasattr(self, "lines") else 0

    @property
    def reply_tokens(self) -> int:
        return self.lines.reply_tokens if hasattr(self, "lines") else 0

    def cancel(self) -> None:
        self._engine.cancel()

    def __iter__(self) -> Iterator[tuple[int, Piece | None]]:
        self.service.check_length(self._player.options.max_new_tokens)
        stage = stage_of(self._player, self.state, self.events, self.body.seed)
        self.choice = self._choose(stage)
        character = self.choice.character
        try:
            prompt = stage.asked(character)
        except InputError as error:
            raise ApiError(400, f"{error.what}; {error.fix}", "scene", "context_length_exceeded") from None
        sampling = self._sampling(stage)
        line = Line(self._player, character, prompt, sampling, stage.names_of_others(character), self.body.stop)
        self.lines = Lines([line], character, prompt, sampling, stage.recall.used)
        yield from self.lines
        stage.replied(character, prompt.ids, line.text.strip(), line.tokens, line.guarded)

    def _choose(self, stage: Stage) -> Choice:
        there = [name for name in stage.present if stage.cast.get(name)]
        if self.body.character is not None:
            character = character_id(stage.cast, self.body.character, "character")
            if character not in there:
                raise ApiError(400, f"{character!r} is not in this scene now; let it enter first", "character")
            return Choice(character, "asked for")
        if not there:
            raise ApiError(400, "no character is left in this scene; let one join", code="scene_empty")
        chosen = choose(stage)
        if chosen is None:
            raise ApiError(400, "nobody directs this scene (manual): name who speaks", "character")
        return Choice(chosen.speaker, chosen.why)

    def _sampling(self, stage: Stage) -> Sampling:
        """Its seed: this turn's own, else the scene's with the place of the turn, else none."""
        if self.body.seed is not None:
            return replace(stage.sampling(), seed=self.body.seed)
        return stage.sampling() if self.state.seed is not None else replace(stage.sampling(), seed=None)
