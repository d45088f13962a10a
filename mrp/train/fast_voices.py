"""Voices through the fast kernels: the rows of a group of characters as one captured pass (`mrp.train.fast`).

    passes, why = fast_voice_passes(model, bank, options, on, steps, world, report)     # None, and why not
    losses = passes.learn(rows, step, seed)

As `mrp.train.stages.VoicePasses` computes them, with one shape: each voice of the group has a row of its own in every
pass, empty while that voice waits for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mrp.config import TrainOptions
from mrp.models.load import Hardware
from mrp.models.loss import make_batch
from mrp.models.voices import VoiceBank
from mrp.report import Reporter
from mrp.train.passes import Losses, Rows, too_little_memory
from mrp.train.steps import Step


class FastVoicePasses:
    """Through `mrp.train.fast`. Measuring goes through transformers: rows are one character's there."""

    name, why = "fast", ""

    def __init__(self, model: Any, bank: VoiceBank, options: TrainOptions, steps: Sequence[Step], world: int) -> None:
        from mrp.train.fast.engine import Engine
        from mrp.train.fast.rows import shape_of
        from mrp.train.fast.voices import voice_joints

        self.measured, self.slots = model, bank.ids
        sizes = []
        for step in steps:
            for rank in range(world):
                if rows := step.rows[rank::world]:
                    placed = self._placed(rows)
                    sizes.append([[(len(s.input_ids), s.labelled) for s in row] for row in placed])
        shape = shape_of(sizes, len(self.slots))
        joint = voice_joints(model, bank)
        self.engine = Engine(model, shape, checkpointing=options.checkpointing, joint=joint)
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


def fast_voice_passes(
    model: Any,
    bank: VoiceBank,
    options: TrainOptions,
    on: Hardware,
    steps: Sequence[Step],
    world: int,
    report: Reporter,
) -> tuple[FastVoicePasses | None, str]:
    """Fast passes where model and machine can take them, else None and why not; `InputError` if memory runs out."""
    from mrp.train.fast.fit import why_not

    reason = "the run asks for them" if options.kernels == "plain" else why_not(model, options, on.device)
    if not reason and on.weights != torch.bfloat16:
        reason = f"the base is in {on.weights}, not in bf16"
    if reason:
        return None, reason
    try:
        return FastVoicePasses(model, bank, options, steps, world), ""
    except torch.OutOfMemoryError as error:
        raise too_little_memory(options) from error
    except RuntimeError as error:  # a kernel that does not build here, a capture that is refused
        reason = f"they failed here: {str(error).splitlines()[0]}"
        for parameter in bank.parameters().values():
            parameter.grad = None
        report.warn(f"voices: plain kernels, since {reason}")
        return None, reason
