"""Packed rows as tensors whose shapes never change, so that one captured CUDA graph takes them all.

    shape = shape_of(micro_batches, rows=1)         # each: rows of (length, labelled tokens) of their samples
    flat = flatten(make_batch(rows), shape, weight=1 / labelled, seed=7)

All tokens lie in one line, row after row, each row filled up to the width. What is filled up belongs to documents of
its own, no longer than the longest real one; unused document slots are empty ones at the end. The largest numbers of
documents and of labelled tokens are known before training starts, since the plan is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from mrp.models.loss import IGNORED, Batch

WIDTH, LABELLED = 64, 128  # widths and counts are rounded up to these, for the matrix products' sake


@dataclass(frozen=True)
class FlatShape:
    """The one shape of all passes: T = rows * width tokens, `documents` slots, `labelled` slots."""

    rows: int
    width: int
    documents: int
    longest: int
    labelled: int

    @property
    def tokens(self) -> int:
        return self.rows * self.width

    @property
    def numbers(self) -> int:
        """How many int64 hold all of a pass."""
        return 2 * self.tokens + 3 * self.labelled + (self.documents + 1) + 2


@dataclass(frozen=True)
class Fields:
    """A pass, as views of its numbers: (T,), (T,), three of (labelled,), (documents + 1,), (1,), (1,)."""

    ids: torch.Tensor
    positions: torch.Tensor
    source: torch.Tensor  # the token before each labelled one; unused slots: 0
    back: torch.Tensor  # where its gradient goes; unused slots: T, a row behind the last
    target: torch.Tensor  # unused slots: -100
    ends: torch.Tensor
    seed: torch.Tensor
    weight: torch.Tensor  # fp64: of each labelled token's loss in what is differentiated


def fields_of(numbers: torch.Tensor, shape: FlatShape) -> Fields:
    """Views of (shape.numbers,) int64."""
    sizes = [shape.tokens] * 2 + [shape.labelled] * 3 + [shape.documents + 1, 1, 1]
    ids, positions, source, back, target, ends, seed, weight = numbers.split(sizes)
    return Fields(ids, positions, source, back, target, ends, seed, weight.view(torch.float64))


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


def flatten(batch: Batch, shape: FlatShape, weight: float, seed: int) -> torch.Tensor:
    """(shape.numbers,) int64 on the host."""
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
    into.seed[0], into.weight[0] = seed, weight
    return numbers


def _cut(starts: list[int], tokens: int, longest: int) -> list[int]:
    """Where documents start when none may be longer than `longest` (only what fills rows up ever is)."""
    found: list[int] = []
    for start, end in zip(starts, [*starts[1:], tokens], strict=True):
        found += range(start, end, longest)
    return found
