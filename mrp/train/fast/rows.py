"""Packed rows as tensors whose shapes never change, so that one captured CUDA graph takes them all.

    shape = shape_of(micro_batches, rows=1)         # each: rows of (length, labelled tokens) of their samples
    flat = flatten(make_batch(rows), shape, weight=1 / labelled, seed=7)

All tokens lie in one line, row after row, each row filled up to the width. What is filled up belongs to documents of
its own, no longer than the longest real one; unused document slots are empty ones at the end. The largest numbers of
documents, of labelled tokens and of replies that have a twin are known before training starts, since the plan is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from mrp.models.loss import IGNORED, Batch

WIDTH, LABELLED = 64, 128  # widths and counts are rounded up to these, for the matrix products' sake


@dataclass(frozen=True)
class FlatShape:
    """The one shape of all passes: T = rows * width tokens, `documents` slots, `labelled` slots, and with the second
    loss `replies` slots for replies that have a twin."""

    rows: int
    width: int
    documents: int
    longest: int
    labelled: int
    replies: int = 0

    @property
    def tokens(self) -> int:
        return self.rows * self.width

    @property
    def numbers(self) -> int:
        """How many int64 hold all of a pass."""
        return 2 * self.tokens + 5 * self.labelled + (self.documents + 1) + 1 + self.replies


@dataclass(frozen=True)
class Fields:
    """A pass, as views of its numbers: (T,), (T,), five of (labelled,), (documents + 1,), (1,), (replies,)."""

    ids: torch.Tensor
    positions: torch.Tensor
    source: torch.Tensor  # the token before each labelled one; unused slots: 0
    back: torch.Tensor  # where its gradient goes; unused slots: T, a row behind the last
    target: torch.Tensor  # unused slots: -100
    weight: torch.Tensor  # fp64: of each labelled token's loss in what is differentiated
    part: torch.Tensor  # of a reply that has a twin: its number, in the twin that + replies + 1; else `replies`
    ends: torch.Tensor
    seed: torch.Tensor
    pull: torch.Tensor  # fp64: weight of each reply's second loss


def fields_of(numbers: torch.Tensor, shape: FlatShape) -> Fields:
    """Views of (shape.numbers,) int64."""
    sizes = [shape.tokens] * 2 + [shape.labelled] * 5 + [shape.documents + 1, 1, shape.replies]
    ids, positions, source, back, target, weight, part, ends, seed, pull = numbers.split(sizes)
    weight, pull = weight.view(torch.float64), pull.view(torch.float64)
    return Fields(ids, positions, source, back, target, weight, part, ends, seed, pull)


Row = Sequence[tuple[int, int]]  # (length, labelled tokens) of each sample in a packed row


def shape_of(micro_batches: Iterable[Sequence[Row]], rows: int) -> FlatShape:
    """The smallest shape that holds every micro-batch, of at most `rows` rows."""
    kept = [list(batch) for batch in micro_batches]
    every = [row for batch in kept for row in batch]
    width = max(sum(length for length, _ in row) for row in every)
    width += -width % WIDTH
    longest = max(length for row in every for length, _ in row)
    filling = -(-width // longest)  # documents of an empty row
    documents = 0
    for batch in kept:
        # one more, since a batch of short rows is filled up to its own width first
        fill = [1 - (sum(length for length, _ in row) - width) // longest for row in batch]
        documents = max(documents, sum(map(len, batch)) + sum(fill) + (rows - len(batch)) * filling)
    labelled = max(sum(count for row in batch for _, count in row) for batch in kept)
    return FlatShape(rows, width, documents, longest, max(labelled + -labelled % LABELLED, LABELLED))


@dataclass(frozen=True)
class Twins:
    """What a pass knows of twins. The batch holds N own labelled tokens, then those of the twins."""

    own: int  # N
    reply: torch.Tensor  # (N,) of each own token the number of its reply, from 0; without a twin: -1
    pull: float | torch.Tensor  # weight of a reply's second loss (one for all, or of each)


def flatten(
    batch: Batch, shape: FlatShape, weight: float | torch.Tensor, seed: int, twins: Twins | None = None
) -> torch.Tensor:
    """(shape.numbers,) int64 on the host. `weight`: of each labelled token's loss (one for all, or (N,) of each own).

    The twins' own losses weigh nothing: they count in the second loss alone.
    """
    numbers = torch.zeros(shape.numbers, dtype=torch.long)
    into = fields_of(numbers, shape)
    rows, width = batch.input_ids.shape
    width = min(width, shape.width)
    tokens = shape.tokens
    ids, positions = into.ids.view(shape.rows, -1), into.positions.view(shape.rows, -1)
    ids[:rows, :width] = batch.input_ids[:, :width]
    positions[:rows, :width] = batch.position_ids[:, :width]
    starts = torch.zeros(shape.rows, shape.width, dtype=torch.bool)
    starts[:rows, :width] = batch.position_ids[:, :width] == 0
    starts[:rows, width:][:, :1] = True
    starts[:, 0] = True
    into.ends[:] = tokens
    found = _cut(starts.flatten().nonzero().flatten().tolist(), tokens, shape.longest)
    assert len(found) <= shape.documents, f"{len(found)} documents in a pass made for {shape.documents}"
    into.ends[: len(found)] = torch.tensor(found)
    count = len(batch.target)
    assert count <= shape.labelled, f"{count} labelled tokens in a pass made for {shape.labelled}"
    at = batch.row * shape.width + batch.columns[batch.column]
    into.source[:count], into.back[:], into.back[:count] = at, tokens, at
    into.target[:], into.target[:count] = IGNORED, batch.target
    own = count if twins is None else twins.own
    into.weight[:own], into.seed[0] = weight, seed
    into.part[:] = shape.replies
    if twins is not None:
        paired = twins.reply[twins.reply >= 0]
        assert len(paired) == count - own, f"{len(paired)} tokens of replies for {count - own} of their twins"
        count_replies = int(paired.max()) + 1 if len(paired) else 0
        assert count_replies <= shape.replies, f"{count_replies} replies in a pass made for {shape.replies}"
        into.part[:own] = torch.where(twins.reply >= 0, twins.reply, shape.replies)
        into.part[own:count] = paired + shape.replies + 1
        into.pull[:count_replies] = twins.pull
    return numbers


def _cut(starts: list[int], tokens: int, longest: int) -> list[int]:
    """Where documents start when none may be longer than `longest` (only what fills rows up ever is)."""
    found: list[int] = []
    for start, end in zip(starts, [*starts[1:], tokens], strict=True):
        found += range(start, end, longest)
    return found
