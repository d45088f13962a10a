"""An engine that says what the test gave it, and a cast to say it.

player = scripted(CAST, "Ha!", "Who calls Old Monkey?")
player.engine.prompts            # the ids of each prompt it was asked with
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shapes import SHAPES

from mrp.cast import Cast, Character
from mrp.config import ChatOptions
from mrp.play.engine import Request, Sampling, Token
from mrp.play.reply import Player
from mrp.render import ChatTemplate

CAST = Cast(
    characters=[
        Character(
            id="wukong",
            name="Sun Wukong",
            aliases=["Monkey King"],
            persona="You are Sun Wukong, proud and quick.",
            greeting="Ha! Who calls Old Monkey?",
        ),
        Character(id="bajie", name="Zhu Bajie", aliases=["Pigsy"], persona="You are Zhu Bajie, always hungry."),
        Character(id="tang", name="Tang Sanzang", persona="You are the monk Tang Sanzang."),
    ]
)
TEMPLATE = ChatTemplate(SHAPES["chatml"].tokenizer())
END = TEMPLATE.end_of_turn_id


class ScriptedEngine:
    """Says the next of `replies` at each call, token by token; records what it was asked."""

    def __init__(self, template: ChatTemplate, replies: Sequence[str | list[int]]) -> None:
        self.replies = [r if isinstance(r, list) else template.plain.ids(r, "") for r in replies]
        self.prompts: list[list[int]] = []
        self.samplings: list[Sampling] = []
        self.voices: list[str | None] = []
        self.asked: list[list[list[int]]] = []  # the continuations of each call of `score`
        self.scores: list[list[list[float]]] = []  # what `score` answers, call by call
        self.given = 0  # tokens, over all calls
        self.interrupt_at: int | None = None  # after so many tokens of a reply, somebody presses Ctrl-C
        self.closed = 0

    def stream(self, request: Request) -> Iterator[Token]:
        sampling = request.sampling
        self.prompts.append(list(request.ids))
        self.samplings.append(sampling)
        self.voices.append(request.voice)
        reply = self.replies[len(self.prompts) - 1]
        stops = set(request.stop_ids)
        try:
            for count, token in enumerate(reply[: sampling.max_new_tokens]):
                if count == self.interrupt_at:
                    self.interrupt_at = None
                    raise KeyboardInterrupt
                if token in stops:
                    return
                self.given += 1
                yield Token(token)
        finally:
            self.closed += 1

    def score(
        self, ids: Sequence[int], continuations: Sequence[Sequence[int]], voice: str | None = None
    ) -> list[list[float]]:
        self.prompts.append(list(ids))
        self.asked.append([list(tail) for tail in continuations])
        self.voices.append(voice)
        return self.scores.pop(0)

    def close(self) -> None:
        pass


class ScriptedPlayer(Player):
    engine: ScriptedEngine


def scripted(
    cast: Cast | None, *replies: str | list[int], template: ChatTemplate = TEMPLATE, **options: float
) -> ScriptedPlayer:
    """A player whose engine says `replies`; `options` are chat options."""
    engine = ScriptedEngine(template, replies)
    return ScriptedPlayer(engine, template, cast, template.stop_ids(), ChatOptions(**options))  # type: ignore[arg-type]


def prompt_text(player: ScriptedPlayer, number: int = -1) -> str:
    """A prompt that the engine was asked with, as text."""
    return str(player.tokenizer.decode(player.engine.prompts[number]))
