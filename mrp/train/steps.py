"""What is trained in which step: known before training starts, from the samples, their order and their lengths.

So the number of labelled tokens of each step is known too (the loss divides by it, whatever the micro-batches and
processes), and a resumed run knows where it was.

    plan = plan_training(load_run(Path("mrp.yaml")), template)
    plan.steps[0].sample_ids
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mrp.cast import PLAIN, Cast
from mrp.config import Run, TrainOptions
from mrp.data.manifest import HELD_OUT, MANIFEST, TRAIN
from mrp.data.pack import pack
from mrp.data.samples import Sample, in_order, read_samples
from mrp.data.split import held_out_scenes
from mrp.errors import InputError
from mrp.files import read_json
from mrp.render import ChatTemplate, Rendered, render_sample
from mrp.train.voice_steps import plan_voices

ADAPTER = "adapter"  # who learns in the first stage: what all characters share


@dataclass(frozen=True)
class Twin:
    """The same piece under another character's identity (`mrp.train.contrast`)."""

    identity: str
    rendered: Rendered


@dataclass(frozen=True)
class Item:
    """A rendered piece of a sample, ready to train."""

    sample: Sample
    rendered: Rendered
    twin: Twin | None = None

    @property
    def tokens(self) -> int:
        return len(self.rendered.input_ids) + (len(self.twin.rendered.input_ids) if self.twin else 0)

    @property
    def length(self) -> int:
        """Tokens that it takes of a row; a twin lies at the same place of a row beside."""
        twin = len(self.twin.rendered.input_ids) if self.twin else 0
        return max(len(self.rendered.input_ids), twin)


@dataclass(frozen=True)
class Step:
    """One optimizer step: packed rows in order."""

    epoch: int  # from 0, counted on through all stages
    rows: tuple[tuple[Item, ...], ...]
    ends_epoch: bool
    stage: int = 0  # 0: the adapter (or all weights), then the groups of voices
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # who learns: its own step (from 0) of how many

    @property
    def items(self) -> list[Item]:
        return [item for row in self.rows for item in row]

    @property
    def labelled(self) -> int:
        return sum(item.rendered.labelled for item in self.items)

    @property
    def tokens(self) -> int:
        """With those of twins."""
        return sum(item.tokens for item in self.items)

    @property
    def replies(self) -> int:
        """Replies that have a twin."""
        return sum(item.rendered.replies for item in self.items if item.twin)

    @property
    def sample_ids(self) -> list[str]:
        return [item.sample.id for item in self.items]


@dataclass(frozen=True)
class Plan:
    """All that a training goes through, in order."""

    steps: list[Step]
    samples: list[Sample]  # trained, in the order of epoch 0
    dev_samples: list[Sample]  # kept aside to choose the best epoch
    dev: list[Item]
    held_out: list[Item]
    left_out: list[dict[str, object]]  # replies that are longer than a row: set, sample, source, how many replies
    pieces_cut: int  # trained pieces that begin in the middle of a sample longer than a row

    def measured_tokens(self, stages: Iterable[int]) -> int:
        """Tokens of measuring: the held-out items before training; both after each epoch, those of the voices' own
        characters after theirs. `stages`: of each measured epoch."""
        total = sum(len(item.rendered.input_ids) for item in self.held_out)
        for stage in stages:
            own = self.learners(stage)
            for item in (*self.dev, *self.held_out):
                if stage == 0 or item.sample.character in own:
                    total += len(item.rendered.input_ids)
        return total

    def learners(self, stage: int) -> list[str]:
        """Who learns in a stage: "adapter", or characters whose voices do."""
        return list(dict.fromkeys(who for step in self.steps if step.stage == stage for who in step.places))

    @property
    def epochs(self) -> int:
        """Of all stages."""
        return self.steps[-1].epoch + 1


def plan_training(run: Run, template: ChatTemplate, world: int = 1, packed: bool = True) -> Plan:
    """The plan of a run whose data is built, for `world` processes; `packed` False: each sample in a row of its own.

    Raises `InputError` for data that was built with other options or for another cast, for a sample without anything
    to learn, and if no sample fits in `train.max_tokens`.
    """
    options, seed = run.config.train, run.config.seed
    built = read_samples(run.data / TRAIN)
    held = read_samples(run.data / HELD_OUT) if (run.data / HELD_OUT).stat().st_size else []
    _check_data(run, [*built, *held])
    samples, dev_samples = _dev_slice(_in_order_asked(run, built), options.dev, seed)
    items: dict[str, dict[str, list[Item]]] = {}
    left_out: list[dict[str, object]] = []
    for name, part in (("train", samples), ("dev", dev_samples), ("held-out", held)):
        items[name], too_long = render_all(part, template, run.cast, options.max_tokens)
        left_out += [{"set": name} | entry for entry in too_long]
    steps = plan_steps(samples, items["train"], run, template, world, packed)
    if options.voices and (steps or not options.epochs):
        steps += plan_voices(samples, items["train"], run, template, packed)
    if not steps:
        fix = "raise train.max_tokens, or add dialogues"
        raise InputError("there is nothing to train: no sample fits", str(run.data / TRAIN), fix)
    cut = sum(item.rendered.dropped_turns > 0 for item in _flat(items["train"]))
    return Plan(steps, samples, dev_samples, _flat(items["dev"]), _flat(items["held-out"]), left_out, cut)


def _flat(items: dict[str, list[Item]]) -> list[Item]:
    return [item for pieces in items.values() for item in pieces]


def _check_data(run: Run, samples: Iterable[Sample]) -> None:
    """`InputError` if the data was built with other options, or has samples of somebody who is not in the cast."""
    fix = f"mrp data build {run.path}"
    manifest = read_json(run.data / MANIFEST)
    built = manifest["options"] | {"seed": manifest["seed"]}
    asked = run.config.data.model_dump(exclude={"order", "replay", "mix_files"}) | {"seed": run.config.seed}
    changed = [f"{key} was {built[key]}, is {value}" for key, value in asked.items() if built.get(key, value) != value]
    if changed:
        raise InputError(f"the data was built with other options: {', '.join(changed)}", str(run.data / MANIFEST), fix)
    strangers = sorted({s.character for s in samples} - {c.id for c in run.cast} - {PLAIN})
    if strangers:
        raise InputError(f"the data has samples of {', '.join(strangers)}, not in the cast", str(run.data), fix)


def _in_order_asked(run: Run, samples: list[Sample]) -> list[Sample]:
    """The samples in the order of epoch 0: as the file has them, unless it was built in another order."""
    order = run.config.data.order
    if read_json(run.data / MANIFEST)["options"]["order"] == order:
        return samples
    return in_order(samples, run, 0)


def _dev_slice(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """The samples to train and those kept aside to choose the best epoch (whole scenes; not the held-out ones).

    General chat data is trained whole: the epoch is chosen by how well the characters are played.
    """
    speakers: dict[str, list[str]] = {}
    for sample in samples:
        if sample.character != PLAIN:
            speakers.setdefault(sample.scene, []).append(sample.character)
    chosen = held_out_scenes(speakers, share, seed, "dev")
    dev = {s.id: s for s in samples if s.scene in chosen}  # one that is seen again is measured once
    return [s for s in samples if s.scene not in chosen], list(dev.values())


def render_all(
    samples: Sequence[Sample], template: ChatTemplate, cast: Cast, max_tokens: int
) -> tuple[dict[str, list[Item]], list[dict[str, object]]]:
    """Every sample's pieces by id, and what had to be left out because it is longer than a row.

    Raises `InputError` for a sample in which nothing is marked to be learnt.
    """
    items: dict[str, list[Item]] = {}
    left_out: list[dict[str, object]] = []
    for sample in samples:
        pieces, too_long = render_sample(template, cast, sample, max_tokens)
        if not pieces and not too_long:  # own lines that follow one another are learnt together or not at all
            fix = 'mark a whole turn of the character with "loss": true, or delete the line'
            raise InputError(f"nothing to learn in sample {sample.id!r}: no turn has a loss", sample.source, fix)
        items[sample.id] = [Item(sample, piece) for piece in pieces]
        if too_long:
            left_out.append({"sample": sample.id, "source": sample.source, "replies": too_long})
    return items, left_out


def plan_steps(
    samples: Sequence[Sample],
    items: dict[str, list[Item]],
    run: Run,
    template: ChatTemplate,
    world: int,
    packed: bool = True,
) -> list[Step]:
    """All steps of the adapter (or of all weights). `samples` are in the order of epoch 0 (the order of the file)."""
    from mrp.train.contrast import Twins

    options = run.config.train
    twins = Twins(run, template) if options.contrast else None
    rows_a_step = options.micro_batch * options.accumulation * world
    found: list[tuple[int, tuple[tuple[Item, ...], ...], bool]] = []
    for epoch in range(options.epochs):
        ordered = samples if epoch == 0 else in_order(samples, run, epoch)
        flat = [i for s in ordered for i in (twins.beside(items[s.id], epoch) if twins else items[s.id])]
        numbers = pack([i.length for i in flat], options.max_tokens) if packed else [[n] for n in range(len(flat))]
        rows = [tuple(flat[i] for i in row) for row in numbers]
        for at in range(0, len(rows), rows_a_step):
            found.append((epoch, tuple(rows[at : at + rows_a_step]), at + rows_a_step >= len(rows)))
    return [Step(*step, 0, {ADAPTER: (number, len(found))}) for number, step in enumerate(found)]


def learning_rate(step: int, steps: int, peak: float, options: TrainOptions) -> float:
    """The rate of a step (from 0): linear warm-up over at least two steps, then cosine to zero after the last (or, by
    `train.decay`, as it is)."""
    warmup = min(max(2, round(options.warmup * steps)), max(steps - 1, 1))
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if options.decay == "none":
        return peak
    done = (step - warmup) / max(steps - warmup, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * done))
