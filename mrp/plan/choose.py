"""Options that fit a GPU: what is given up, in the order that costs least, until the prediction is below the budget.

    chosen = choose_training(shape, options, budget=8 * 2**30)
    chosen.changes          # {"train.checkpointing": "true", "train.optimizer": "adamw-8bit", ...}

Speeds are ratios measured on an H100 (docs/benchmarks.md), of the fast path without checkpointing; a smaller GPU's are
not known. What was not measured is None.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mrp.config import TrainOptions
from mrp.errors import InputError
from mrp.plan.passes import RowShape
from mrp.plan.shapes import ModelShape
from mrp.plan.training import Prediction, predict_training

MIB = 2**20
SPARE = 0.02  # of a budget is left alone, since predictions were up to 2.4 % too low (with offload at 16384: 3.7 %)
SHORTEST = 128
LENGTHS = (16384, 12288, 8192, 6144, 4096, 3072, 2048, 1536, 1024, 768, 512, 384, 256, SHORTEST)
CHECKPOINTED = 0.78  # of the speed without: 0.79 (1.8B), 0.78 (7B)
# 7B, with 8-bit AdamW and a 16-bit adapter: from 4096 tokens on, and at 2048; against rows of 2048 without saving
OFFLOADED = {True: 0.75, False: 0.70}

GIVEN_UP = {
    "micro_batch": "rows go one by one (the step stays as large)",
    "voice_rows": "voices learn one after the other (what they learn is the same)",
    "checkpointing": "blocks are computed twice: about a fifth slower",
    "optimizer": "AdamW's running means in 8 bit",
    "offload": "what goes into each block waits in host memory, the MLP goes in tiles: 0.9 of the speed at 2048 tokens",
    "adapter_bits": "the adapter without fp32 masters: held-out loss 0.009 nats higher where it was measured",
    "bits": "the base in 4 bit: held-out loss 0.07 nats higher for a base of 135M; less for larger ones, they say",
    "max_tokens": "shorter rows: replies longer than a row are left out",
}


@dataclass(frozen=True)
class Chosen:
    """Options, what they take, and how they differ from those asked for."""

    options: TrainOptions
    prediction: Prediction
    changes: dict[str, str]  # "train.bits" -> "4"
    rank: tuple[int, int]  # how far down the order of giving up: smaller budgets never have a smaller one

    @property
    def given_up(self) -> list[str]:
        names = [key.partition(".")[2] for key in self.changes]
        return [GIVEN_UP[name] for name in GIVEN_UP if name in names]

    @property
    def speed(self) -> float | None:
        """Of the fast path with nothing saved; None where it was not measured."""
        return speed_of(self.options, self.prediction.kernels)


def speed_of(options: TrainOptions, kernels: str) -> float | None:
    """Speed against the fast path without checkpointing, where it was measured: QLoRA, one row a pass."""
    small = options.optimizer == "adamw-8bit"
    if kernels != "fast" or options.bits != 4 or options.micro_batch != 1 or options.max_tokens < 2048:
        return None
    if options.offload:
        return OFFLOADED[options.max_tokens >= 4096] if small and options.adapter_bits == 16 else None
    if small:
        return None
    return CHECKPOINTED if options.checkpointing else 1.0


def usable(budget: int) -> int:
    """Bytes of a GPU that a plan may fill."""
    return int(budget * (1 - SPARE))


def choose_training(shape: ModelShape, options: TrainOptions, budget: int) -> Chosen:
    """The first plan down the order of giving up that fits `budget` bytes; `InputError` if none does."""
    least: Chosen | None = None
    for rank, tried in ladder(options):
        prediction = predict_training(shape, tried, RowShape.typical(tried))
        chosen = Chosen(tried, prediction, _changes(options, tried), rank)
        if prediction.in_all <= usable(budget):
            return chosen
        if least is None or prediction.in_all < least.prediction.in_all:
            least = chosen
    assert least is not None
    raise _too_small(shape, least, budget)


def ladder(options: TrainOptions) -> Iterator[tuple[tuple[int, int], TrainOptions]]:
    """The options as they are, then with more and more given up; a 16-bit base in 4 bit only when all else is."""
    bases = [options.bits]
    if options.bits == 16 and options.method == "lora":
        bases.append(4)
    for quality, bits in enumerate(bases):
        tried = options.model_copy(update={"bits": bits})
        step = 0
        yield (quality, step), tried
        for update in _savings(options):
            step += 1
            if any(getattr(tried, key) != value for key, value in update.items()):
                tried = tried.model_copy(update=update)
                yield (quality, step), tried
        if bits != bases[-1]:
            continue  # 4 bit costs less than short rows
        for length in (n for n in LENGTHS if n < options.max_tokens):
            step += 1
            yield (quality, step), tried.model_copy(update={"max_tokens": length})


def _savings(options: TrainOptions) -> list[dict[str, object]]:
    """What is given up one after another, the cheapest first."""
    rows: dict[str, object] = {"micro_batch": 1, "accumulation": options.accumulation * options.micro_batch}
    found: list[dict[str, object]] = [rows, {"voice_rows": 1}] if options.voices else [rows]
    found += [{"checkpointing": True}, {"optimizer": "adamw-8bit"}]
    if options.method == "lora":
        if options.kernels != "plain" and not options.voices:
            found.append({"offload": True})
        found.append({"adapter_bits": 16})
    return found


def _changes(asked: TrainOptions, tried: TrainOptions) -> dict[str, str]:
    before, after = asked.model_dump(), tried.model_dump()
    return {f"train.{k}": str(after[k]).lower() for k in after if after[k] != before[k]}


def _need(shape: ModelShape, options: TrainOptions) -> int:
    """MiB of a GPU that these options need."""
    found = predict_training(shape, options, RowShape.typical(options))
    return round(found.in_all / (1 - SPARE) / MIB) + 1


def _too_small(shape: ModelShape, least: Chosen, budget: int) -> InputError:
    need = _need(shape, least.options)
    what = f"{shape.name} cannot be trained in {budget / MIB:,.0f} MiB: the least is {need:,} MiB"
    largest = sorted(least.prediction.parts.items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {size / MIB:,.0f}" for name, size in largest)
    options = least.options
    lower = options.model_copy(update={"rank": 8})
    advice = ["take a smaller base"]
    if options.method == "full":
        advice.insert(0, "set train.method: lora")
    elif options.rank > 8:
        advice.insert(0, f"set train.rank: 8 (then {_need(shape, lower):,.0f} MiB)")
    for key, off in (("contrast", 0.0), ("voices", False)):
        without = options.model_copy(update={key: off})
        offloads = options.method == "lora" and options.kernels != "plain" and not without.voices
        without = without.model_copy(update={"offload": offloads})
        if getattr(options, key) and _need(shape, without) < need:
            advice.insert(0, f"set train.{key}: {str(off).lower()} (then {_need(shape, without):,.0f} MiB)")
    where = f"--gpu-memory; with all that can be given up (MiB: {parts})"
    return InputError(what, where, ", or ".join(advice))
