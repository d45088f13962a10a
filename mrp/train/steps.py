"""What is trained in which step: known before training starts, from the samples, their order and their lengths.

So the number of labelled tokens of each step is known too (the loss divides by it, whatever the micro-batches and
processes), and a resumed run knows where it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mrp.cast import Cast
from mrp.config import TrainOptions
from mrp.data.pack import pack
from mrp.data.samples import Sample, in_order
from mrp.errors import InputError
from mrp.render import ChatTemplate, Rendered, render_sample


@dataclass(frozen=True)
class Item:
    """A rendered piece of a sample, ready to train."""

    sample: Sample
    rendered: Rendered


@dataclass(frozen=True)
class Step:
    """One optimizer step: packed rows in order."""

    epoch: int  # from 0
    rows: tuple[tuple[Item, ...], ...]
    ends_epoch: bool

    @property
    def labelled(self) -> int:
        return sum(item.rendered.labelled for row in self.rows for item in row)

    @property
    def tokens(self) -> int:
        return sum(len(item.rendered.input_ids) for row in self.rows for item in row)

    @property
    def sample_ids(self) -> list[str]:
        return [item.sample.id for row in self.rows for item in row]


def render_all(
    samples: Sequence[Sample], template: ChatTemplate, cast: Cast, max_tokens: int
) -> tuple[dict[str, list[Item]], list[dict[str, object]]]:
    """Every sample's pieces by id, and what had to be left out because it is longer than a row.

    Raises `InputError` for a sample in which nothing is marked to be learnt.
    """
    items: dict[str, list[Item]] = {}
    left_out: list[dict[str, object]] = []
    for sample in samples:
        if not any(sample.loss):
            fix = 'mark one of the character\'s turns with "loss": true, or delete the line'
            raise InputError(f"nothing to learn in sample {sample.id!r}: no turn has a loss", sample.source, fix)
        pieces, too_long = render_sample(template, cast, sample, max_tokens)
        items[sample.id] = [Item(sample, piece) for piece in pieces]
        if too_long:
            left_out.append({"sample": sample.id, "source": sample.source, "replies": too_long})
    return items, left_out


def plan_steps(
    samples: Sequence[Sample], items: dict[str, list[Item]], options: TrainOptions, order: str, seed: int, world: int
) -> list[Step]:
    """All steps of a training. `samples` are in the order of epoch 0 (the order of the file)."""
    rows_a_step = options.micro_batch * options.accumulation * world
    steps: list[Step] = []
    for epoch in range(options.epochs):
        ordered = samples if epoch == 0 else in_order(samples, order, seed, epoch)
        flat = [item for sample in ordered for item in items[sample.id]]
        rows = [
            tuple(flat[i] for i in row) for row in pack([len(x.rendered.input_ids) for x in flat], options.max_tokens)
        ]
        for at in range(0, len(rows), rows_a_step):
            steps.append(Step(epoch, tuple(rows[at : at + rows_a_step]), at + rows_a_step >= len(rows)))
    return steps


def learning_rate(step: int, steps: int, options: TrainOptions) -> float:
    """The rate of a step (from 0): linear warm-up over at least two steps, then cosine to zero after the last."""
    warmup = min(max(2, round(options.warmup * steps)), max(steps - 1, 1))
    if step < warmup:
        return options.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(steps - warmup, 1)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
