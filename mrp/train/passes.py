"""How rows become losses and gradients: the part of a training step that differs between plain and fast.

    passes = choose_passes(model, weights, options, on, plan, rank, world)
    passes.begin_step()
    found = passes.learn(rows, step, seed)      # gradients of sum(losses) / step.labelled are added to the weights'
    passes.name, passes.why                         # ("plain", "there is no CUDA GPU")

The loop is one; it knows these few methods. Plain passes go through transformers, PEFT and autograd, on any machine
and any model; fast ones (`mrp.train.fast`) on CUDA where everything fits.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from mrp.config import TrainOptions
from mrp.data.pack import pack
from mrp.errors import InputError, MrpError, need_extra, raise_all
from mrp.models.load import Hardware
from mrp.models.loss import make_batch, token_losses
from mrp.render import Rendered
from mrp.report import Reporter
from mrp.train.contrast import contrast, reply_numbers
from mrp.train.steps import Item, Plan, Step

if TYPE_CHECKING:
    from mrp.train.fast.rows import FlatShape

Rows = Sequence[Sequence[Item]]


@dataclass(frozen=True)
class Losses:
    """N labelled tokens of a pass."""

    values: torch.Tensor  # (N,) in nats, where they were computed
    item: torch.Tensor  # (N,) on the CPU: the number of each one's item in the pass
    contrast: torch.Tensor | None = None  # (R,) in nats: the second loss, of each reply that has a twin


class Passes(Protocol):
    """What the loop asks of a way to learn."""

    name: str
    why: str
    measured: Any  # the model as `character_losses` takes it

    def begin_step(self) -> None: ...

    def learn(self, rows: Rows, step: Step, seed: int) -> Losses: ...


class PlainPasses:
    """Through transformers, PEFT and autograd."""

    name = "plain"

    def __init__(
        self, model: Any, weights: dict[str, torch.nn.Parameter], on: Hardware, why: str, options: TrainOptions
    ) -> None:
        self.measured, self.weights, self.on, self.why = model, weights, on, why
        self.contrast = options.contrast
        if options.checkpointing:
            compute_blocks_again(model)

    def begin_step(self) -> None:
        for parameter in self.weights.values():
            parameter.grad = None

    def learn(self, rows: Rows, step: Step, seed: int) -> Losses:
        del seed  # dropout draws from torch's generator, which the loop sets
        batch = make_batch(with_twins(rows))
        with self.on.autocast_context():
            losses = token_losses(self.measured, batch.to(self.on.device))
        items = [item for row in rows for item in row]
        own = sum(item.rendered.labelled for item in items)
        loss, term = losses[:own].sum() / step.labelled, None
        if any(item.twin for item in items):
            term = contrast(losses[:own], items, losses[own:])
            loss = loss + self.contrast * term.sum() / step.replies
            term = term.detach()
        loss.backward()
        return Losses(losses[:own].detach(), batch.sample[:own], term)


def with_twins(rows: Rows) -> list[list[Rendered]]:
    """The rows, then those of the twins; a row of which no sample has a twin has none."""
    twins = [[item.twin.rendered for item in row if item.twin] for row in rows]
    return [[item.rendered for item in row] for row in rows] + [row for row in twins if row]


def compute_blocks_again(model: Any) -> None:
    """Keep only what goes into each block of `model`; `InputError` if it cannot."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    try:
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        what = f"{type(inner).__name__} cannot compute its blocks again"
        raise InputError(what, "train.checkpointing", "set train.checkpointing: false") from error


class FastPasses:
    """Through `mrp.train.fast`."""

    name, why = "fast", ""

    def __init__(self, model: Any, options: TrainOptions, plan: Plan, world: int) -> None:
        from mrp.train.fast.engine import Engine, Measuring

        _place_embedding(model, options.offload)
        self.contrast = options.contrast
        shape = _shape(plan, options, world)
        self.engine = Engine(model, shape, checkpointing=options.checkpointing, offload=options.offload)
        self.measured = Measuring(self.engine)
        self.engine.prepare()

    def begin_step(self) -> None:
        self.engine.begin_step()

    def learn(self, rows: Rows, step: Step, seed: int) -> Losses:
        from mrp.train.fast.rows import Twins, flatten

        batch, shape = make_batch(with_twins(rows)), self.engine.shape
        items = [item for row in rows for item in row]
        own = sum(item.rendered.labelled for item in items)
        replies = sum(item.rendered.replies for item in items if item.twin)
        twins = Twins(own, reply_numbers(items), self.contrast / step.replies) if replies else None
        losses = self.engine.learn(flatten(batch, shape, 1 / step.labelled, seed, twins))
        terms = losses[shape.labelled : shape.labelled + replies] if replies else None
        return Losses(losses[:own], batch.sample[:own], terms)


def _place_embedding(model: Any, on_host: bool) -> None:
    """Put the embedding into host memory, unless it is the head's matrix too."""
    inner = model.get_base_model()
    table, head = inner.get_input_embeddings().weight, inner.get_output_embeddings().weight
    if on_host and table.data_ptr() != head.data_ptr():
        table.data = table.data.cpu()


def _shape(plan: Plan, options: TrainOptions, world: int) -> FlatShape:
    """The one shape of all that will ever be passed: training passes with their twins, and the rows of measuring."""
    from mrp.train.fast.rows import shape_of

    learnt = [with_twins(rows) for rows in _micro_batches(plan, options, world)]
    measured = [
        [[items[i].rendered for i in row]] for items in (plan.dev, plan.held_out) for row in packed_rows(items, options)
    ]
    sizes = [[[(len(s.input_ids), s.labelled) for s in row] for row in rows] for rows in [*learnt, *measured]]
    twins = [
        sum(item.rendered.replies for row in rows for item in row if item.twin)
        for rows in _micro_batches(plan, options, world)
    ]
    sides = 2 if any(twins) else 1
    return dataclasses.replace(shape_of(sizes, options.micro_batch * sides), replies=max(twins))


def _micro_batches(plan: Plan, options: TrainOptions, world: int) -> Iterable[Rows]:
    """Every process's passes in which the adapter learns."""
    for step in plan.steps:
        if step.stage:
            continue  # voices have passes of their own
        for rank in range(world):
            mine = step.rows[rank::world]
            for at in range(0, len(mine), options.micro_batch):
                yield mine[at : at + options.micro_batch]


def packed_rows(items: Sequence[Item], options: TrainOptions) -> list[list[int]]:
    """The numbers of `items` in each row while they are measured."""
    return pack([len(item.rendered.input_ids) for item in items], options.max_tokens)


def choose_passes(
    model: Any,
    weights: dict[str, torch.nn.Parameter],
    options: TrainOptions,
    on: Hardware,
    plan: Plan,
    world: int,
    report: Reporter,
) -> Passes:
    """Fast passes where model and machine can take them, else plain ones, which say why.

    Raises `InputError` if the run insists on fast ones (`kernels: fast`, `offload: true`) in vain, or if memory does
    not suffice for a pass.
    """
    from mrp.train.fast.fit import why_not

    needs_fast = options.kernels == "fast" or options.offload
    reason = "the run asks for them" if options.kernels == "plain" else why_not(model, options, on.device)
    if not reason and on.weights != torch.bfloat16:
        reason = f"the base is in {on.weights}, not in bf16"
    if not reason:
        try:
            return FastPasses(model, options, plan, world)
        except torch.OutOfMemoryError as error:
            raise too_little_memory(options) from error
        except RuntimeError as error:  # a kernel that does not build here, a capture that is refused
            reason = f"they failed here: {str(error).splitlines()[0]}"
            for parameter in weights.values():
                parameter.grad = None
    if needs_fast:
        where = "train.offload" if options.offload else "train.kernels"
        fix = "set train.kernels: auto and train.offload: false, or train elsewhere"
        raise InputError(f"the fast kernels cannot be used: {reason}", where, fix)
    if on.device == "cuda" and options.kernels == "auto":
        report.warn(f"training: plain kernels, since {reason}")
    return PlainPasses(model, weights, on, reason, options)


def check_machine(options: TrainOptions, on: Hardware) -> None:
    """`InputError` with every option that this machine cannot follow."""
    faults: list[MrpError] = []
    if on.device != "cuda":
        if options.bits == 4:
            fix = "set train.bits: 16 (a smaller base fits then), or train where a CUDA GPU is"
            faults.append(InputError("a base in 4 bit needs a CUDA GPU, and here is none", "train.bits", fix))
        if options.optimizer == "adamw-8bit":
            fix = "set train.optimizer: adamw, or train where a CUDA GPU is"
            faults.append(InputError("8-bit AdamW needs a CUDA GPU, and here is none", "train.optimizer", fix))
    elif options.bits == 4 and on.autocast is None:
        fix = "set train.bits: 16 with a smaller base, or take a GPU with bf16 (NVIDIA Ampere, 2020, or newer)"
        faults.append(InputError("4-bit training computes in bf16, which is not in use here", "train.bits", fix))
    if options.adapter_bits == 16 and options.method == "lora" and on.autocast is None:
        what = "an adapter in 16 bit is computed in bf16, which is not in use here"
        faults.append(InputError(what, "train.adapter_bits", "set train.adapter_bits: 32"))
    raise_all("this machine cannot do what the run asks for", faults)


def too_little_memory(options: TrainOptions) -> InputError:
    """What to say when the GPU's memory does not suffice, with the next thing to cut."""
    steps = (
        (options.bits == 16 and options.method == "lora", "train.bits: 4"),
        (not options.checkpointing, "train.checkpointing: true"),
        (
            not (options.offload or options.voices) and options.method == "lora",
            "train.offload: true (with train.checkpointing: true)",
        ),
        (options.micro_batch > 1, "train.micro_batch: 1 (and more train.accumulation)"),
        (options.voices and options.voice_rows > 1, "train.voice_rows: 1"),
        (options.optimizer == "adamw", "train.optimizer: adamw-8bit"),
        (options.adapter_bits == 32 and options.method == "lora", "train.adapter_bits: 16"),
    )
    advice = [text for helps, text in steps if helps] or ["a lower train.max_tokens or train.rank, or a smaller base"]
    total = torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else 0
    what = f"the GPU's memory ({total:.0f} GiB) does not suffice for a pass of {options.max_tokens} tokens"
    return InputError(what, "train", f"set {', or '.join(advice)}")


def pass_seed(seed: int, step: int, rank: int, row: int) -> int:
    """32 bits for the dropout of a pass: by what it is, never by what ran before."""
    text = f"{seed} {step} {rank} {row}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")


def make_optimizer(parameters: Iterable[Any], options: TrainOptions) -> torch.optim.Optimizer:
    """AdamW over the trained weights, or over groups of them as torch takes them.

    `SetupError` if its 8-bit form is asked for and bitsandbytes is missing.
    """
    chosen = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    if options.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **chosen)
    try:
        import bitsandbytes  # type: ignore[import-not-found, import-untyped]
    except ImportError as error:
        raise need_extra("gpu", "bitsandbytes") from error
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters, **chosen)
    return optimizer
