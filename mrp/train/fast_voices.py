"""Voices through the fast kernels: the rows of a group of characters as one captured pass (`mrp.train.fast`).

    passes, why = fast_voice_passes(model, bank, options, on, plan, world, report)      # None, and why not
    losses = passes.learn(rows, step, seed)

As `mrp.train.stages.VoicePasses` computes them, with one shape: a pass in which some voices wait for the others has
empty rows.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from mrp.config import TrainOptions
from mrp.models.load import Hardware
from mrp.models.loss import Batch, make_batch
from mrp.models.voices import VoiceBank
from mrp.report import Reporter
from mrp.train.contrast import reply_numbers
from mrp.train.passes import Losses, Rows, packed_rows, too_little_memory, with_twins
from mrp.train.steps import Plan, Step

if TYPE_CHECKING:
    from mrp.train.fast.engine import Engine
    from mrp.train.fast.rows import FlatShape
    from mrp.train.fast.voices import Speakers


class FastVoicePasses:
    """Through `mrp.train.fast`; `contrast` is the weight of the second loss of rows that have twins."""

    name, why = "fast", ""

    def __init__(
        self, model: Any, bank: VoiceBank, options: TrainOptions, plan: Plan, world: int, contrast: float = 0.0
    ) -> None:
        from mrp.train.fast.engine import Engine
        from mrp.train.fast.voices import Speakers, voice_joints

        self.ids, self.contrast = bank.ids, contrast
        shape = self._shape(options, plan, world)
        head = model.get_output_embeddings().weight
        self.speakers = Speakers(len(self.ids), shape.rows, head.device, head.dtype)
        joint = voice_joints(model, bank, self.speakers)
        self.engine = Engine(model, shape, checkpointing=options.checkpointing, joint=joint)
        self.measured = MeasuringVoices(self.engine, bank, self.speakers)
        self.engine.prepare()

    def begin_step(self) -> None:
        self.engine.begin_step()

    def learn(self, rows: Rows, step: Step, seed: int) -> Losses:
        """A row is the whole of its voice's step, so a token counts by how many its row has, a twin's reply likewise.

        A row of twins is spoken by the voice of the one under whose identity it is, which learns too.
        """
        from mrp.train.fast.rows import Twins, flatten

        del step
        batch, shape = make_batch(with_twins(rows)), self.engine.shape
        self.speakers.choose([self.ids.index(who) for who in _speakers(rows)])
        own = sum(item.rendered.labelled for row in rows for item in row)
        counts = torch.bincount(batch.row[:own])
        shares = [1 / count for row in rows for count in [_replies([row])] for _ in range(count)]
        items = [item for row in rows for item in row]
        pull = self.contrast * torch.tensor(shares, dtype=torch.float64)
        twins = Twins(own, reply_numbers(items), pull) if shares else None
        losses = self.engine.learn(flatten(batch, shape, 1 / counts[batch.row[:own]].double(), seed, twins))
        terms = losses[shape.labelled : shape.labelled + len(shares)] if shares else None
        return Losses(losses[:own], batch.sample[:own], terms)

    def _shape(self, options: TrainOptions, plan: Plan, world: int) -> FlatShape:
        """The one shape of all that is learnt and measured in this stage."""
        from mrp.train.fast.rows import shape_of

        at_once = min(len(self.ids), options.voice_rows)
        learnt: list[Rows] = []
        for step in plan.steps:
            for rank in range(world if step.stage and step.places.keys() <= set(self.ids) else 0):
                mine = step.rows[rank::world]
                learnt += [mine[at : at + at_once] for at in range(0, len(mine), at_once)]
        measured: list[Rows] = []
        for items in (plan.dev, plan.held_out):
            for who in self.ids:
                own = [item for item in items if item.sample.character == who]
                measured += [[[own[i] for i in row]] for row in packed_rows(own, options)]
        rows = [*map(with_twins, learnt), *([[item.rendered for item in row] for row in each] for each in measured)]
        sizes = [[[(len(s.input_ids), s.labelled) for s in row] for row in each] for each in rows]
        return dataclasses.replace(shape_of(sizes, max(map(len, sizes))), replies=max(map(_replies, learnt)))


def _speakers(rows: Rows) -> list[str]:
    """Who speaks each row of `with_twins(rows)`."""
    others = [next((item.twin.identity for item in row if item.twin), None) for row in rows]
    return [row[0].sample.character for row in rows] + [who for who in others if who is not None]


def _replies(rows: Rows) -> int:
    """Replies that have a twin."""
    return sum(item.rendered.replies for row in rows for item in row if item.twin)


class MeasuringVoices:
    """The engine where a model is asked for the losses of a row that one character speaks; dropout is off."""

    def __init__(self, engine: Engine, bank: VoiceBank, speakers: Speakers) -> None:
        self.engine, self.bank, self.speakers, self.training = engine, bank, speakers, False

    def eval(self) -> MeasuringVoices:
        return self

    def train(self, mode: bool = True) -> MeasuringVoices:
        del mode
        return self

    def token_losses(self, batch: Batch) -> torch.Tensor:
        """(N,) of a batch of one row, whose speaker `VoiceBank.speaking` says."""
        (who,) = self.bank.rows
        assert who is not None and len(batch.input_ids) == 1
        self.speakers.choose([self.bank.ids.index(who)])
        return self.engine.token_losses(batch)


def fast_voice_passes(
    model: Any,
    bank: VoiceBank,
    options: TrainOptions,
    on: Hardware,
    plan: Plan,
    world: int,
    report: Reporter,
    contrast: float = 0.0,
) -> tuple[FastVoicePasses | None, str]:
    """Fast passes where model and machine can take them, else None and why not; `InputError` if memory runs out."""
    from mrp.train.fast.fit import why_not

    reason = "the run asks for them" if options.kernels == "plain" else why_not(model, options, on.device)
    if not reason and on.weights != torch.bfloat16:
        reason = f"the base is in {on.weights}, not in bf16"
    if reason:
        return None, reason
    try:
        return FastVoicePasses(model, bank, options, plan, world, contrast), ""
    except torch.OutOfMemoryError as error:
        raise too_little_memory(options) from error
    except RuntimeError as error:  # a kernel that does not build here, a capture that is refused
        reason = f"they failed here: {str(error).splitlines()[0]}"
        for parameter in bank.parameters().values():
            parameter.grad = None
        report.warn(f"voices: plain kernels, since {reason}")
        return None, reason
