"""The engine: token ids in, a stream of token ids out.

    engine = TransformersEngine(model, on)
    for token in engine.stream(ids, Sampling(temperature=0.7), stop_ids): ...

Text comes from `TextStream`, which holds back bytes that are not a whole character yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from mrp.config import ChatOptions
    from mrp.models.load import Hardware


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 is greedy; equal seeds give equal replies."""

    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 128
    seed: int | None = None

    @classmethod
    def of(cls, options: ChatOptions, seed: int | None = None) -> Sampling:
        return cls(options.temperature, options.top_p, options.max_new_tokens, seed)


class Engine(Protocol):
    """What plays: one method, so that another engine can take its place."""

    def stream(self, ids: Sequence[int], sampling: Sampling, stop_ids: Iterable[int]) -> Iterator[int]:
        """New token ids after `ids`, until a stop id (not given out) or `max_new_tokens`. Closing it cancels."""
        ...


class TransformersEngine:
    """A model of transformers in this process (with its adapter, if it has one)."""

    def __init__(self, model: Any, on: Hardware) -> None:
        self.model, self.on = model.eval(), on

    def stream(self, ids: Sequence[int], sampling: Sampling, stop_ids: Iterable[int]) -> Iterator[int]:
        import torch
        from transformers import DynamicCache

        stops = set(stop_ids)
        generator = torch.Generator()
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed)
        cache = DynamicCache(config=self.model.config)
        new = torch.tensor([list(ids)], device=self.on.device)
        for _ in range(sampling.max_new_tokens):
            with torch.no_grad(), self.on.autocast_context():
                logits = self.model(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            token = choose(logits[0, -1].float().cpu(), sampling, generator)
            if token in stops:
                return
            yield token
            new = torch.tensor([[token]], device=self.on.device)


def choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token from (V,) logits: greedy, or nucleus sampling (Holtzman et al. 2019, arXiv 1904.09751)."""
    import torch

    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax((logits - logits.max()) / sampling.temperature, -1)  # no overflow near 0
    if sampling.top_p < 1:
        ordered, index = probabilities.sort(descending=True)
        before = ordered.cumsum(0) - ordered  # what the likelier ones sum up to: 0 for the first, so one is always left
        ordered[before >= sampling.top_p] = 0
        return int(index[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))


class TextStream:
    """Token ids to text, piece by piece: a piece is given out when it ends with a whole character."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.given = ""

    def add(self, token: int) -> str:
        """The text that `token` adds ("" while a character is not complete)."""
        self.ids.append(token)
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
