"""How likely continuations are after a prompt that was read: rows that share what they keep.

    score_after(reader, kept, last, [[5, 6], [7]], speaking)      # [[-1.2, -0.3], [-4.0]]; `last` ends the prompt

As many continuations go through the model at once as keep its logits small; a long one goes through in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from mrp.plan.chat import PIECE
from mrp.play.kv import KeysValues, Row, RowsReader

MOST_LOGITS = 2**22  # numbers in the logits of one pass: less memory than reading a piece of a prompt takes

Speaking = Callable[[], AbstractContextManager[None]]  # the voice of all rows, for the length of a pass


def score_after(
    reader: RowsReader, kept: KeysValues, last: int, continuations: Sequence[Sequence[int]], speaking: Speaking
) -> list[list[float]]:
    """The log-probability of each token of each continuation after what `kept` holds and `last`. `kept` holds the
    same afterwards."""
    vocabulary = reader.model.get_input_embeddings().num_embeddings
    longest = max(map(len, continuations), default=0)
    at_once = max(1, MOST_LOGITS // (vocabulary * max(longest, 1)))
    found: list[list[float]] = []
    for first in range(0, len(continuations), at_once):
        tails = [list(tail) for tail in continuations[first : first + at_once]]
        if vocabulary * longest > MOST_LOGITS:
            found.append(_score_long(reader, kept, last, tails[0], speaking, min(PIECE, MOST_LOGITS // vocabulary)))
        else:
            found += _score_rows(reader, kept, last, tails, speaking)
    return found


def logprobs(logits: torch.Tensor, tokens: Sequence[int]) -> list[float]:
    """Of each token, from the (T, V) logits before it."""
    wanted = torch.tensor(list(tokens), device=logits.device)
    return [float(value) for value in torch.log_softmax(logits.float(), -1).gather(1, wanted[:, None])[:, 0]]


def _score_rows(
    reader: RowsReader, kept: KeysValues, last: int, tails: list[list[int]], speaking: Speaking
) -> list[list[float]]:
    count = max(map(len, tails))
    if not count:
        return [[] for _ in tails]
    rows = [Row(kept, ([last, *tail] + [last] * count)[:count]) for tail in tails]  # filled up behind the end
    with speaking():
        logits = reader.read(rows, count)
    return [logprobs(logits[number, : len(tail)], tail) for number, tail in enumerate(tails)]


def _score_long(
    reader: RowsReader, kept: KeysValues, last: int, tail: list[int], speaking: Speaking, piece: int
) -> list[float]:
    """One continuation, a piece at a time; `kept` holds the prompt alone again afterwards."""
    given, prompt = [last, *tail[:-1]], len(kept.ids)
    found: list[float] = []
    try:
        for at in range(0, len(tail), max(piece, 1)):
            row = Row(kept, given[at : at + max(piece, 1)])
            with speaking():
                logits = reader.read([row], len(row.ids))
            found += logprobs(logits[0], tail[at : at + len(row.ids)])
            kept.ids += row.ids
    finally:
        del kept.ids[prompt:]
    return found
