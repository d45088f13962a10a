"""The stages of a training: what all characters share is learnt first, then, over it and frozen, their voices.

    stage = adapter_stage(weights, passes, update, options)
    stage = voice_stage(model, ["wukong", "bajie"], number=1, options, seed, on, plan, processes, report)
    rate = stage.set_rates(step, options)           # then passes
    norm = stage.reduce(step, options.clip)
    stage.update.step()

The loop is the same for both. A stage has learners: one in the first, and the voices of a group in the others, each
with its own rate, its own clip and its own optimizer state, so that voices learn side by side what each would alone.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from mrp.config import Run, TrainOptions
from mrp.models.load import Hardware
from mrp.models.loss import make_batch, token_losses
from mrp.models.voices import VoiceBank, new_voices, save_voices
from mrp.report import SILENT, Reporter
from mrp.train.checkpoint import State, put
from mrp.train.contrast import contrast
from mrp.train.fast_voices import fast_voice_passes
from mrp.train.passes import Losses, Passes, Rows, compute_blocks_again, make_optimizer
from mrp.train.processes import Processes
from mrp.train.sharding import DdpUpdate, Update
from mrp.train.steps import ADAPTER, Plan, Step, learning_rate

VOICE_SCALE = 16  # alpha of a voice


@dataclass
class Stage:
    """Who learns now, and how."""

    number: int  # 0: the adapter
    learners: dict[str, dict[str, torch.nn.Parameter]]
    peak: float  # learning rate
    passes: Passes
    update: Update  # a group for each learner, in order
    rows_at_once: int
    bank: VoiceBank | None = None
    processes: Processes = field(default_factory=Processes)

    @property
    def weights(self) -> dict[str, torch.nn.Parameter]:
        return {name: weight for own in self.learners.values() for name, weight in own.items()}

    @property
    def speaking(self) -> Callable[[Sequence[str | None]], AbstractContextManager[None]] | None:
        """How rows get their voices while they are measured; None without any."""
        return self.bank.speaking if self.bank else None

    def learning(self, step: Step) -> list[torch.nn.Parameter]:
        """The weights that learn in a step: a voice that has no more rows in an epoch waits."""
        return [weight for who in self.learners if who in step.places for weight in self.learners[who].values()]

    def set_rates(self, step: Step, options: TrainOptions) -> float:
        """Give each learner the rate of its own place in its own steps; returns the highest."""
        rates = {who: learning_rate(*place, self.peak, options) for who, place in step.places.items()}
        for who, group in zip(self.learners, self.update.param_groups, strict=True):
            group["lr"] = rates.get(who, 0.0)
        return max(rates.values())

    def reduce(self, step: Step, limit: float) -> float:
        """Sum the gradients over all processes, and clip each learner's by its own norm; returns the norm of all."""
        if self.bank is None:
            return self.update.reduce(limit)
        for who in self.learners.keys() - step.places.keys():  # AdamW passes over those that wait
            for weight in self.learners[who].values():
                weight.grad = None
        self.processes.sum_gradients(self.learning(step))
        norms = [
            torch.nn.utils.clip_grad_norm_(list(weights.values()), limit)
            for who, weights in self.learners.items()
            if who in step.places
        ]
        return math.hypot(*torch.stack(norms).tolist())  # read all at once: a GPU is waited for

    def close(self) -> None:
        """Take the voices off the model."""
        if self.bank:
            self.bank.remove()


def adapter_stage(
    weights: dict[str, torch.nn.Parameter], passes: Passes, update: Update, options: TrainOptions
) -> Stage:
    """The adapter, or with full fine-tuning all weights."""
    return Stage(0, {ADAPTER: weights}, options.learning_rate, passes, update, options.micro_batch)


def voice_stage(
    model: Any,
    ids: Sequence[str],
    number: int,
    options: TrainOptions,
    seed: int,
    on: Hardware,
    plan: Plan,
    processes: Processes,
    report: Reporter = SILENT,
) -> Stage:
    """The voices of `ids`, over the frozen `model`. Each process makes the same update: voices are small."""
    bank = new_voices(model, ids, options.voice_rank, VOICE_SCALE, seed, options.dropout)
    learners: dict[str, dict[str, torch.nn.Parameter]] = {who: {} for who in ids}
    for name, weight in bank.parameters().items():
        learners[name.partition("/")[0]][name] = weight
    groups = [{"params": list(own.values())} for own in learners.values()]
    update = DdpUpdate(bank.parameters(), processes, lambda _: make_optimizer(groups, options))
    fast, why = fast_voice_passes(model, bank, options, on, plan, processes.world, report, options.voice_contrast)
    passes = fast or VoicePasses(model, bank, on, why, options)
    at_once = min(len(ids), options.voice_rows)
    return Stage(number, learners, options.voice_learning_rate, passes, update, at_once, bank, processes)


class VoicePasses:
    """Rows of several characters in one pass, each with its voice and its own mean; through autograd."""

    name = "plain"

    def __init__(self, model: Any, bank: VoiceBank, on: Hardware, why: str, options: TrainOptions) -> None:
        self.measured, self.bank, self.on, self.why = model, bank, on, why
        self.contrast = options.voice_contrast
        if options.checkpointing:
            compute_blocks_again(model)

    def begin_step(self) -> None:
        for parameter in self.bank.parameters().values():
            parameter.grad = None

    def learn(self, rows: Rows, step: Step, seed: int) -> Losses:
        """A row is the whole of its voice's step, so a token counts by how many its row has, a twin's reply likewise.

        A twin row is spoken by the other's voice, which learns too: that these lines are not its own.
        """
        del step, seed
        twins = [[item.twin for item in row if item.twin] for row in rows]
        speakers = [row[0].sample.character for row in rows] + [row[0].identity for row in twins if row]
        rendered = [[item.rendered for item in row] for row in rows] + [
            [t.rendered for t in row] for row in twins if row
        ]
        batch = make_batch(rendered)
        items = [item for row in rows for item in row]
        own, term = sum(item.rendered.labelled for item in items), None
        counts = torch.bincount(batch.row, minlength=len(rendered))[batch.row[:own]]
        self.bank.is_training = True
        try:
            with self.bank.speaking(speakers):
                with self.on.autocast_context():
                    losses = token_losses(self.measured, batch.to(self.on.device))
                loss = (losses[:own] / counts.to(losses.device)).sum()
                if any(twins):
                    term = contrast(losses[:own], items, losses[own:])
                    replies = [sum(twin.rendered.replies for twin in row) for row in twins]
                    shares = [1 / count for count in replies for _ in range(count)]
                    loss = loss + self.contrast * (term * term.new_tensor(shares)).sum()
                    term = term.detach()
                loss.backward()
        finally:
            self.bank.is_training = False
        return Losses(losses[:own].detach(), batch.sample[:own], term)


# -- which epoch's weights are kept ----------------------------------------------------------------------------------


def keep_adapter(state: State, epoch: int, dev_loss: float | None) -> list[str]:
    """[ADAPTER] if the dev loss after `epoch` (from 1) is the best so far, or nobody knows; noted in `state`."""
    if dev_loss is not None and state.best_dev_loss is not None and dev_loss >= state.best_dev_loss:
        return []
    state.best_epoch, state.best_dev_loss = epoch, dev_loss
    return [ADAPTER]


def keep_voices(
    state: State, ids: Sequence[str], epoch: int, dev: dict[str, float], held: dict[str, float], tolerance: float = 0.0
) -> list[str]:
    """Those whose dev loss after `epoch` (from 1) of the voices is the best so far, having none included.

    With a `tolerance` (nats a token) also those that are less than that above the best: what a voice adds in identity
    may cost a little loss. A character without dev samples keeps its latest: nothing speaks against it. Noted in
    `state`.
    """
    better = []
    for who in ids:
        kept = state.voices[who]
        best = kept.get("best_dev_loss", kept["dev_loss"])
        if who in dev and best is not None:
            if dev[who] >= best + tolerance:
                continue
            kept["best_dev_loss"] = min(best, dev[who])
        kept |= {"epoch": epoch, "dev_loss": dev.get(who), "held_out_loss": held.get(who)}
        better.append(who)
    return better


def write_voices(
    run: Run, model: Any, voices: dict[str, dict[str, Any]], best: dict[str, torch.Tensor], report: Reporter
) -> None:
    """Write the voices that are kept (`State.voices`) into the run folder; those of an earlier training go."""
    kept = [who for who, voice in voices.items() if voice["epoch"] is not None]
    for who in sorted(voices.keys() - set(kept)):
        report.line(f"{who} gets no voice: on the dev slice it was no better with one")
    if not kept:
        shutil.rmtree(run.voices, ignore_errors=True)
        return
    bank = new_voices(model, kept, run.config.train.voice_rank, VOICE_SCALE, run.config.seed)
    put(bank.parameters(), best)
    save_voices(bank, run.voices, run.config.base)
    bank.remove()
