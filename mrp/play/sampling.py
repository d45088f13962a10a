"""How the next tokens are chosen, for all rows of a batch at once, each by its own options and its own generator.

    tokens = choose_tokens(logits, [Drawing(Sampling(seed=1)), Drawing(Sampling(temperature=0))])

A row draws one number from its own generator and takes the token at that place of its nucleus, so what it says does
not depend on who else is in the batch.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch

from mrp.play.engine import Sampling, Token

LIKELIEST = 256  # a nucleus seldom holds more: only then is the whole vocabulary sorted


def _generator(sampling: Sampling) -> torch.Generator:
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator


@dataclass
class Drawing:
    """The state of one row's sampling: its options, its generator, and how often it said each token."""

    sampling: Sampling
    generator: torch.Generator = field(default_factory=torch.Generator)
    said: Counter[int] = field(default_factory=Counter)

    @classmethod
    def begin(cls, sampling: Sampling) -> Drawing:
        return cls(sampling, _generator(sampling))


def choose_tokens(logits: torch.Tensor, rows: list[Drawing]) -> list[Token]:
    """The next token of each row of (R, V) logits."""
    plain = all(row.sampling.temperature == 0 and not _is_penalised(row) for row in rows)
    if plain and all(row.sampling.top_logprobs is None for row in rows):
        return [_said(row, Token(token)) for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True)]
    logits = logits.float()
    chosen = _chosen(_penalised(logits, rows), rows)
    return [_said(row, _with_logprobs(logits[k], chosen[k], row.sampling)) for k, row in enumerate(rows)]


def choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token from (V,) logits: greedy, or nucleus sampling (Holtzman et al. 2019, arXiv 1904.09751)."""
    return _chosen(logits[None].float(), [Drawing(sampling, generator)])[0]


def _said(row: Drawing, token: Token) -> Token:
    assert token.id is not None
    row.said[token.id] += 1
    return token


def _is_penalised(row: Drawing) -> bool:
    return bool(row.said) and (row.sampling.presence_penalty != 0 or row.sampling.frequency_penalty != 0)


def _penalised(logits: torch.Tensor, rows: list[Drawing]) -> torch.Tensor:
    """OpenAI's presence and frequency penalties, subtracted from what each row has said already."""
    if not any(_is_penalised(row) for row in rows):
        return logits
    logits = logits.clone()
    for k, row in enumerate(rows):
        if _is_penalised(row):
            ids = torch.tensor(list(row.said), device=logits.device)
            counts = torch.tensor(list(row.said.values()), dtype=logits.dtype, device=logits.device)
            logits[k, ids] -= row.sampling.presence_penalty + row.sampling.frequency_penalty * counts
    return logits


def _chosen(logits: torch.Tensor, rows: list[Drawing]) -> list[int]:
    likeliest = logits.argmax(-1).tolist()
    drawing = [k for k, row in enumerate(rows) if row.sampling.temperature > 0]
    if not drawing:
        return list(likeliest)
    own = logits[drawing]
    heat = torch.tensor([rows[k].sampling.temperature for k in drawing], dtype=torch.float64)[:, None].to(own.device)
    heated = ((own - own.amax(-1, keepdim=True)).double() / heat).float()  # no overflow near 0
    probabilities = torch.softmax(heated, -1)
    found = probabilities.topk(min(LIKELIEST, probabilities.shape[1]))
    ordered, index = found.values.cpu(), found.indices.cpu()  # a GPU hands over the likeliest, not the vocabulary
    for at, k in enumerate(drawing):
        draw = float(torch.rand((), generator=rows[k].generator, dtype=torch.float64))
        likeliest[k] = _drawn(probabilities[at], ordered[at], index[at], rows[k].sampling.top_p, draw)
    return list(likeliest)


def _drawn(probabilities: torch.Tensor, ordered: torch.Tensor, index: torch.Tensor, top_p: float, draw: float) -> int:
    """The token at the place `draw` (0 to 1) of the nucleus of (V,) probabilities, the likeliest of which are known."""
    if top_p >= 1:
        return _place(probabilities.cpu(), draw)
    if float(ordered.sum()) < top_p and len(ordered) < len(probabilities):
        ordered, index = probabilities.cpu().sort(descending=True)
    before = ordered.cumsum(0) - ordered  # what the likelier ones sum up to: 0 for the first, so one is always left
    nucleus = ordered[before < top_p] if top_p > 0 else ordered[:1]
    return int(index[_place(nucleus, draw)])


def _place(shares: torch.Tensor, draw: float) -> int:
    sums = shares.double().cumsum(0)
    place = int(torch.searchsorted(sums, draw * sums[-1], right=True))
    return min(place, int(shares.nonzero()[-1]))


def _with_logprobs(logits: torch.Tensor, token: int, sampling: Sampling) -> Token:
    if sampling.top_logprobs is None:
        return Token(token)
    logprobs = torch.log_softmax(logits, -1)
    values, ids = logprobs.topk(min(sampling.top_logprobs, len(logprobs)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Token(token, None, float(logprobs[token]), top)
