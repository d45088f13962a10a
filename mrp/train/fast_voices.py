"""Voices through the fast kernels: the rows of a group of characters as one captured pass (`mrp.train.fast`).

    passes, why = fast_voice_passes(model, bank, options, on, plan, world, report)      # None, and why not
    losses = passes.learn(rows, step, seed)

As `mrp.train.stages.VoicePasses` computes them, with one shape: each voice of the group has a row of its own in every
pass, empty while that voice waits for the others.
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
from mrp.train.passes import Losses, Rows, packed_rows, too_little_memory
from mrp.train.steps import Plan, Step

if TYPE_CHECKING:
    from mrp.train.fast.engine import Engine


class FastVoicePasses:
    """Through `mrp.train.fast`."""

    name, why = "fast", ""

    def __init__(self, model: Any, bank: VoiceBank, options: TrainOptions, plan: Plan, world: int) -> None:
        from mrp.train.fast.engine import Engine
        from mrp.train.fast.rows import shape_of
        from mrp.train.fast.voices import voice_joints

        self.slots = bank.ids
        passes: list[Rows] = []
        for step in plan.steps:
            if step.places.keys() <= set(self.slots):
                passes += [rows for rank in range(world) if (rows := step.rows[rank::world])]
        for items in (plan.dev, plan.held_out):
            for who in self.slots:  # measured row by row
                own = [item for item in items if item.sample.character == who]
                passes += [[[own[i] for i in row]] for row in packed_rows(own, options)]
        sizes = [[[(len(s.input_ids), s.labelled) for s in row] for row in self._placed(rows)] for rows in passes]
        joint = voice_joints(model, bank)
        shape = shape_of(sizes, len(self.slots))
        self.engine = Engine(model, shape, checkpointing=options.checkpointing, joint=joint)
        self.measured = MeasuringVoices(self.engine, bank)
        self.engine.prepare()

    def begin_step(self) -> None:
        self.engine.begin_step()

    def learn(self, rows: Rows, step: Step, seed: int) -> Losses:
        """A row is the whole of its voice's step, so a token counts by how many its row has."""
        from mrp.train.fast.rows import flatten

        del step
        batch = make_batch(self._placed(rows))
        counts = torch.bincount(batch.row, minlength=len(self.slots))
        losses = self.engine.learn(flatten(batch, self.engine.shape, 1 / counts[batch.row].double(), seed))
        return Losses(losses[: len(batch.target)], batch.sample)

    def _placed(self, rows: Rows) -> list[list[Any]]:
        """What is rendered of each voice's row, in the order of the voices; none for those that wait."""
        places = [self.slots.index(row[0].sample.character) for row in rows]
        assert places == sorted(places), "rows come in the order of the voices, as their losses go back"
        found: list[list[Any]] = [[] for _ in self.slots]
        for place, row in zip(places, rows, strict=True):
            found[place] = [item.rendered for item in row]
        return found


class MeasuringVoices:
    """The engine where a model is asked for the losses of a row that one character speaks; dropout is off."""

    def __init__(self, engine: Engine, bank: VoiceBank) -> None:
        self.engine, self.bank, self.training = engine, bank, False

    def eval(self) -> MeasuringVoices:
        return self

    def train(self, mode: bool = True) -> MeasuringVoices:
        del mode
        return self

    def token_losses(self, batch: Batch) -> torch.Tensor:
        """(N,) of a batch of one row, whose speaker `VoiceBank.speaking` says."""
        (who,) = self.bank.rows
        assert who is not None and len(batch.input_ids) == 1
        place, many = self.bank.ids.index(who), len(self.bank.ids)
        on_host = batch.to("cpu")
        ids = torch.zeros(many, on_host.input_ids.shape[1], dtype=torch.long)
        positions = torch.arange(ids.shape[1]).repeat(many, 1)  # rows of voices that are silent hold one document
        ids[place], positions[place] = on_host.input_ids[0], on_host.position_ids[0]
        row = torch.full_like(on_host.row, place)
        return self.engine.token_losses(dataclasses.replace(on_host, input_ids=ids, position_ids=positions, row=row))


def fast_voice_passes(
    model: Any,
    bank: VoiceBank,
    options: TrainOptions,
    on: Hardware,
    plan: Plan,
    world: int,
    report: Reporter,
) -> tuple[FastVoicePasses | None, str]:
    """Fast passes where model and machine can take them, else None and why not; `InputError` if memory runs out."""
    from mrp.train.fast.fit import why_not

    reason = "the run asks for them" if options.kernels == "plain" else why_not(model, options, on.device)
    if not reason and on.weights != torch.bfloat16:
        reason = f"the base is in {on.weights}, not in bf16"
    if not reason and any(item.twin for step in plan.steps if step.stage for item in step.items):
        reason = "the fast kernels have no room for twins of voices"
    if reason:
        return None, reason
    try:
        return FastVoicePasses(model, bank, options, plan, world), ""
    except torch.OutOfMemoryError as error:
        raise too_little_memory(options) from error
    except RuntimeError as error:  # a kernel that does not build here, a capture that is refused
        reason = f"they failed here: {str(error).splitlines()[0]}"
        for parameter in bank.parameters().values():
            parameter.grad = None
        report.warn(f"voices: plain kernels, since {reason}")
        return None, reason
