"""The engine: token ids in, a stream of tokens out; and how likely given continuations are.

    engine = TransformersEngine(model, on)
    for token in engine.stream(Request(ids, Sampling(temperature=0.7), stop_ids, voice="wukong")): ...
    engine.score(ids, [[40, 41], [42]])          # log-probabilities, of each token of each continuation

Several threads may stream at once. `TransformersEngine` is in embedded.py. Text comes from `TextStream`, which holds
back bytes that are not a whole character yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mrp.data.view import Message

if TYPE_CHECKING:
    from mrp.config import ChatOptions


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 is greedy; equal seeds give equal replies.

    The penalties are OpenAI's: subtracted from a token's logit, `presence_penalty` once it is in the reply,
    `frequency_penalty` for each time that it is. `top_logprobs`: how many likeliest tokens come with each token (None:
    no log-probabilities are computed at all).
    """

    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 128
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int | None = None

    @classmethod
    def of(cls, options: ChatOptions, seed: int | None = None) -> Sampling:
        return cls(options.temperature, options.top_p, options.max_new_tokens, seed)


@dataclass(frozen=True)
class Request:
    """One reply asked of an engine."""

    ids: Sequence[int]  # the prompt, as the renderer made it
    sampling: Sampling = Sampling()
    stop_ids: Iterable[int] = ()
    voice: str | None = None  # the character whose voice speaks; None, or one that the engine lacks: no voice
    messages: Sequence[Message] | None = None  # the same prompt, for a server that takes no ids


class Token(NamedTuple):
    """What an engine gives out: a token, or (from a server) a piece of text."""

    id: int | None
    text: str | None = None  # None: to be decoded from the ids
    logprob: float | None = None  # of the model itself, before temperature, where it was asked for
    top: tuple[tuple[int | str, float], ...] = ()  # the likeliest tokens with their log-probabilities


class Engine(Protocol):
    """What plays: few methods, so that another engine can take its place."""

    def stream(self, request: Request) -> Iterator[Token]:
        """The tokens after the prompt, until a stop id (not given out) or `max_new_tokens`. Closing it cancels."""
        ...

    def score(
        self, ids: Sequence[int], continuations: Sequence[Sequence[int]], voice: str | None = None
    ) -> list[list[float]]:
        """The log-probability (nats) of each token of each continuation of the prompt `ids`, in one batch.

        Raises `InputError` if the engine cannot tell.
        """
        ...

    def close(self) -> None:
        """Free what it holds; streams that still run end."""
        ...


class TextStream:
    """Token ids to text, piece by piece: a piece is given out when it ends with a whole character."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.given = ""

    def add(self, token: Token) -> str:
        """The text that `token` adds ("" while a character is not complete)."""
        if token.id is None or token.text is not None:
            return token.text or ""
        self.ids.append(token.id)
        text = self._text()
        if text.endswith("\ufffd"):
            return ""
        return self._give(text)

    def end(self) -> str:
        """What was held back."""
        return self._give(self._text())

    def _text(self) -> str:
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _give(self, text: str) -> str:
        new, self.given = text[len(self.given) :], text
        return new
