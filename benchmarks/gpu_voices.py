"""The contrast, and the second stage of a training (voices), on one GPU: fast kernels beside plain passes.

    python benchmarks/gpu_voices.py                         # every case in a process of its own
    python benchmarks/gpu_voices.py --only voices+135M      # cases whose names hold these words
    python benchmarks/plan_error.py --voices                # the same beside what `mrp plan` predicts

Random weights in the true shapes of SmolLM2-135M (16 bit) and InternLM2-chat-1.8B (NF4), LoRA r=64, dropout 0.1, rows
of 2048 tokens packed from documents of 60-300 tokens with labels on the second half of each. Contrast: micro-batch
1 x 8, each row beside that of its twins, whose first halves are others. Voices: four of rank 8 over the frozen adapter,
a step is a row of each. Through the classes that `mrp train` uses. Tokens/s of the median step, twins' tokens, clipping
and AdamW included; the loss and the contrast's mean term are those of the first step, to be compared between kernels
(their dropout differs).
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from gpu_train import COMMON, MIB, SHAPES, Configuration, build, rows
from torch.nn.utils import clip_grad_norm_

from mrp.config import TrainOptions
from mrp.data.samples import Sample
from mrp.models.load import Hardware
from mrp.render import Rendered
from mrp.train.lora import adapter_parameters, add_adapter
from mrp.train.passes import FastPasses, Losses, PlainPasses, make_optimizer
from mrp.train.processes import Processes
from mrp.train.stages import voice_stage
from mrp.train.steps import Item, Plan, Step, Twin

KNOWN = {"1.8B": "internlm2-chat-1_8b", "135M": "smollm2-135m-instruct"}
ON = Hardware("cuda", torch.bfloat16, torch.bfloat16)
PASSES, WARM, STEPS = 8, 2, 4  # of the contrast's steps; steps that are not timed, and that are


@dataclass(frozen=True)
class Case:
    """What one row of the table measures."""

    stage: str  # "contrast" or "voices"
    shape: str
    kernels: str
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> TrainOptions:
        given: dict[str, Any] = {"bits": 4 if self.shape == "1.8B" else 16, "rank": 64, "dropout": 0.1}
        given |= {"max_tokens": 2048, "checkpointing": self.shape == "1.8B", "kernels": self.kernels}
        given |= {"contrast": 0.5} if self.stage == "contrast" else {"voices": True}
        return TrainOptions(**given | self.more)

    @property
    def known_shape(self) -> str:
        return KNOWN[self.shape]

    @property
    def name(self) -> str:
        words = [f"{key} {value}" for key, value in self.more.items()]
        return ", ".join([self.stage, self.shape, self.kernels, *words])


CASES = [
    *(Case(stage, shape, how) for stage in ("contrast", "voices") for shape in KNOWN for how in ("fast", "plain")),
    Case("contrast", "1.8B", "fast", {"checkpointing": False}),
    Case("voices", "1.8B", "fast", {"checkpointing": False}),
    Case("voices", "1.8B", "fast", {"optimizer": "adamw-8bit"}),
    Case("voices", "1.8B", "fast", {"voice_rows": 1}),
    Case("voices", "1.8B", "plain", {"voice_rows": 1}),
]


def items_of(who: str, packed: list[Rendered], with_twins: bool) -> tuple[Item, ...]:
    found = []
    for number, each in enumerate(packed):
        told = Sample(f"{who}{number}", who, who, (), (), (), "")
        head = each.loss.index(True)
        other = Rendered([*reversed(each.input_ids[:head]), *each.input_ids[head:]], each.loss)
        found.append(Item(told, each, Twin("other", other) if with_twins else None))
    return tuple(found)


def measure_case(case: Case) -> dict[str, Any]:
    """Speed and memory of one case, in this process."""
    options = case.options
    vocabulary = (COMMON | SHAPES[case.shape])["vocab_size"]
    model = add_adapter(build(Configuration("ours", case.shape, options.checkpointing, bits=options.bits)), options, 0)
    model.train()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    prepare = contrast_steps if case.stage == "contrast" else voice_steps
    steps, run = prepare(model, options, vocabulary)
    times, first = [], (0.0, 0.0)
    for number, step in enumerate(steps):
        torch.cuda.synchronize()
        began = time.perf_counter()
        told = run(step, number)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
        first = told if number == 0 else first
    return found(case, steps[0].tokens / statistics.median(times[WARM:]), first)


def contrast_steps(
    model: Any, options: TrainOptions, vocabulary: int
) -> tuple[list[Step], Callable[[Step, int], tuple[float, float]]]:
    packed = rows(options.max_tokens, PASSES, vocabulary)
    step = Step(0, tuple(items_of("one", row, True) for row in packed), True)
    steps, weights = [step] * (WARM + STEPS), adapter_parameters(model)
    plan = Plan([step], [], [], [], [], [], 0)
    passes: Any
    if options.kernels == "fast":
        passes = FastPasses(model, options, plan, 1)
    else:
        passes = PlainPasses(model, weights, ON, "", options)
    optimizer = make_optimizer(weights.values(), options)

    def run(step: Step, number: int) -> tuple[float, float]:
        passes.begin_step()
        learnt: list[Losses] = [passes.learn([row], step, 100 * number + k) for k, row in enumerate(step.rows)]
        float(clip_grad_norm_(list(weights.values()), options.clip))
        optimizer.step()
        terms = [losses.contrast for losses in learnt if losses.contrast is not None]
        return mean([losses.values for losses in learnt]), mean(terms)

    return steps, run


def voice_steps(
    model: Any, options: TrainOptions, vocabulary: int
) -> tuple[list[Step], Callable[[Step, int], tuple[float, float]]]:
    model.requires_grad_(False)
    ids = [f"v{number}" for number in range(options.voice_rows)]
    packed = rows(options.max_tokens, len(ids), vocabulary)
    own = tuple(items_of(who, row, False) for who, row in zip(ids, packed, strict=True))
    count = WARM + STEPS
    steps = [Step(1, own, False, 1, dict.fromkeys(ids, (number, count))) for number in range(count)]
    plan = Plan(steps, [], [], [], [], [], 0)
    stage = voice_stage(model, ids, 1, options, 0, ON, plan, Processes())
    if stage.passes.name != options.kernels:
        raise RuntimeError(f"{options.kernels} kernels were asked for: {stage.passes.why}")

    def run(step: Step, number: int) -> tuple[float, float]:
        stage.set_rates(step, options)
        stage.passes.begin_step()
        losses = stage.passes.learn(step.rows, step, number)
        stage.reduce(step, options.clip)
        stage.update.step()
        return mean([losses.values]), 0.0

    return steps, run


def mean(values: list[torch.Tensor]) -> float:
    return float(torch.cat(values).double().mean())


def found(case: Case, speed: float, first: tuple[float, float]) -> dict[str, Any]:
    free, total = torch.cuda.mem_get_info()
    now, most = torch.cuda.memory_reserved(), torch.cuda.max_memory_reserved()
    return {
        "name": case.name,
        "options": dataclasses.asdict(case)["more"],
        "tokens_per_second": speed,
        "loss": first[0],
        "contrast": first[1],
        "allocated_mib": torch.cuda.max_memory_allocated() / MIB,
        "reserved_mib": most / MIB,
        "in_all_mib": (total - free - now + most) / MIB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="words that a case must hold, with + between them")
    parser.add_argument("--one", help="this case, in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_case(next(case for case in CASES if case.name == options.one))))
        return
    results = []
    print(f"{'case':44} {'tok/s':>8} {'alloc':>8} {'in all':>8}  loss, contrast", flush=True)
    for case in CASES:
        if not all(word in case.name for word in options.only.split("+")):
            continue
        command = [sys.executable, __file__, "--one", case.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{case.name:44} {(done.stderr.strip().splitlines() or ['?'])[-1][:200]}", flush=True)
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        results.append(row)
        memory = f"{row['allocated_mib']:8,.0f} {row['in_all_mib']:8,.0f}"
        told = f"{row['loss']:.4f} {row['contrast']:.4f}"
        print(f"{case.name:44} {row['tokens_per_second']:8,.0f} {memory}  {told}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
