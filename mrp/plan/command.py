"""`mrp plan`: what a run will take on a GPU, and options that fit one.

    plan_command("internlm2-chat-7b-qlora", "train", "8GiB", {}, report)

Also what `mrp train` says before it starts, and what `run.json` says beside what was measured.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrp.config import Run, RunConfig, TrainOptions, load_run
from mrp.errors import InputError, MrpError, nearest
from mrp.plan.chat import choose_chat, predict_chat
from mrp.plan.choose import Chosen, choose_training, usable
from mrp.plan.passes import WIDTH, RowShape
from mrp.plan.shapes import ModelShape, shape_of_base
from mrp.plan.training import MIB, Prediction, predict_training
from mrp.presets import HOME, describe_presets
from mrp.report import Reporter
from mrp.yamlfile import check_value, key_lines, parse_yaml, read_yaml

UNITS = {"mib": 2**20, "gib": 2**30, "mb": 10**6, "gb": 10**9}


def memory_bytes(text: str) -> int:
    """ "8GiB", "7600 MiB" or "8 GB" as bytes; `InputError` for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*", text)
    unit = UNITS.get(found[2].lower()) if found else None
    if not found or not unit or not float(found[1]):
        raise InputError(f"not an amount of memory: {text!r}", "--gpu-memory", "write it as 8GiB, or 7600MiB")
    return int(float(found[1]) * unit)


def plan_command(
    target: str, purpose: str, gpu_memory: str | None, flags: dict[str, str], report: Reporter, chats: int = 1
) -> Any:
    """Print memory by parts, and with a budget a plan that fits it; returns the same as JSON."""
    if purpose not in ("train", "chat"):
        raise InputError(f"nothing is planned for {purpose!r}", "--for", "train or chat")
    budget = memory_bytes(gpu_memory) if gpu_memory else None
    config, near = config_of(target, flags)
    shape = shape_of_base(config.base, near)
    if purpose == "chat":
        return _plan_chat(shape, config.chat.context_tokens, chats, budget, report)
    return _plan_training(shape, config.train, budget, report)


def config_of(target: str, flags: dict[str, str]) -> tuple[RunConfig, Path]:
    """The options of a run file, a run folder or a preset, and the folder from which its base is looked up."""
    path = Path(target)
    if path.exists():
        run = load_run(path, flags)
        return run.config, run.path.parent
    presets = describe_presets()
    if target not in presets:
        fix = f"name a run file, a run folder or a preset ({nearest(target, presets)})"
        raise InputError(f"neither a run nor a preset: {target}", str(path), fix)
    source = HOME / f"{target}.yaml"
    value = read_yaml(source)
    known = RunConfig().model_dump()
    for key, text in flags.items():
        section, _, name = key.rpartition(".")
        names = known.get(section, {}) if section else known
        if name not in names:
            raise InputError(f"unknown option {key!r}", f"--set {key}", "see docs/options.md, or the run file")
        (value.setdefault(section, {}) if section else value)[name] = parse_yaml(text, f"--set {key}")
    return check_value(value, RunConfig, source, key_lines(source), flags), Path()


def _plan_training(shape: ModelShape, options: TrainOptions, budget: int | None, report: Reporter) -> Any:
    asked = predict_training(shape, options, RowShape.typical(options))
    chosen = Chosen(options, asked, {}, (0, 0)) if budget is None else choose_training(shape, options, budget)
    found, options = chosen.prediction, chosen.options
    rows = f"{options.micro_batch} x {options.max_tokens} tokens"
    report.line(f"training {shape.name} ({rows}, rank {options.rank}, {found.kernels} kernels), MiB on the GPU:")
    _print_parts(found.parts, found.in_all, report)
    if budget is not None:
        _print_chosen(shape, chosen, asked, budget, report)
    speed = "not known" if chosen.speed is None else f"{chosen.speed:.2f} of training with nothing saved"
    report.line(f"speed: {speed} (ratios measured on an H100)")
    return {
        "model": shape.name,
        "for": "train",
        "kernels": found.kernels,
        "parts_mib": _mib(found.parts),
        "allocated_mib": round(found.allocated / MIB),
        "in_all_mib": round(found.in_all / MIB),
        "asked_mib": round(asked.in_all / MIB),
        "budget_mib": budget and round(budget / MIB),
        "set": chosen.changes,
        "given_up": chosen.given_up,
        "speed": chosen.speed,
    }


def _print_chosen(shape: ModelShape, chosen: Chosen, asked: Prediction, budget: int, report: Reporter) -> None:
    if not chosen.changes:
        report.line(f"fits {budget / MIB:,.0f} MiB as it is{_faster_too(shape, chosen, budget)}")
        return
    report.line(f"as asked: {asked.in_all / MIB:,.0f} MiB, too much for {budget / MIB:,.0f}; so:")
    for text in chosen.given_up:
        report.line(f"  {text}")
    report.result(" ".join(f"--set {key}={value}" for key, value in chosen.changes.items()))


def _faster_too(shape: ModelShape, chosen: Chosen, budget: int) -> str:
    """That blocks need not be computed twice, where there is room."""
    options = chosen.options.model_copy(update={"checkpointing": False, "offload": False})
    need = predict_training(shape, options, RowShape.typical(options)).in_all
    if not chosen.options.checkpointing or need > usable(budget):
        return ""
    off = " and train.offload=false" if chosen.options.offload else ""
    return f", and faster with train.checkpointing=false{off}: {need / MIB:,.0f} MiB"


def _plan_chat(shape: ModelShape, context_tokens: int, chats: int, budget: int | None, report: Reporter) -> Any:
    tried = [predict_chat(shape, bits, context_tokens, chats) for bits in (16, 8, 4)]
    found = tried[0] if budget is None else choose_chat(shape, context_tokens, budget, chats)
    what = f"{found.bits} bit, {found.context_tokens} tokens" + (f", {found.chats} chats" if chats > 1 else "")
    report.line(f"chat with {shape.name} (merged, {what}), MiB on the GPU:")
    _print_parts(found.parts, found.in_all, report)
    others = ", ".join(f"{each.bits} bit {each.in_all / MIB:,.0f}" for each in tried)
    report.line(f"with {context_tokens} tokens of context{f' and {chats} chats' if chats > 1 else ''}: {others}")
    if found.chats != chats:
        report.warn(f"of {chats} chats {found.chats} stay in memory, even in 4 bit; the others wait, or are read again")
    if found.context_tokens != context_tokens:
        report.warn(f"{context_tokens} tokens of context do not fit, even in 4 bit")
        report.result(f"--set chat.context_tokens={found.context_tokens}")
    return {
        "model": shape.name,
        "for": "chat",
        "bits": found.bits,
        "context_tokens": found.context_tokens,
        "chats": found.chats,
        "parts_mib": _mib(found.parts),
        "in_all_mib": round(found.in_all / MIB),
        "by_bits_mib": {str(each.bits): round(each.in_all / MIB) for each in tried},
        "budget_mib": budget and round(budget / MIB),
    }


def _print_parts(parts: dict[str, int], in_all: int, report: Reporter) -> None:
    for name, size in parts.items():
        report.line(f"  {name:36} {size / MIB:9,.0f}")
    report.line(f"  {'in all':36} {in_all / MIB:9,.0f}")


def _mib(parts: dict[str, int]) -> dict[str, float]:
    return {name: round(size / MIB, 1) for name, size in parts.items()}


# -- beside a training -----------------------------------------------------------------------------------------------


def fit_warning(run: Run, total: int) -> str:
    """What to say before a training that a GPU of `total` bytes will not hold; "" if it will, or nobody knows."""
    options = run.config.train
    try:
        shape = shape_of_base(run.config.base, run.path.parent)
    except MrpError:
        return ""  # a model that the planner does not know, or none at all, which the training tells
    need = predict_training(shape, options, RowShape.typical(options)).in_all
    if need <= total:
        return ""
    try:
        changes = choose_training(shape, options, total).changes
        fix = " ".join(f"--set {key}={value}" for key, value in changes.items())
    except InputError as error:
        fix = error.fix
    amounts = f"{need / MIB:,.0f} MiB on a GPU of {total / MIB:,.0f}"
    return f"this training is expected to take {amounts}, so memory may run out; what would help: {fix}"


def warn_if_too_large(run: Run, report: Reporter) -> None:
    """Warn before a training starts that this machine's GPU will hardly hold it; nothing where there is none."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return  # several processes choose their GPUs first
    try:
        import torch
    except ImportError:
        return  # the training itself says what is missing
    from mrp.models.load import hardware

    hardware()  # tells CUDA's allocator how to work, before CUDA starts
    if torch.cuda.is_available() and (text := fit_warning(run, torch.cuda.get_device_properties(0).total_memory)):
        report.warn(text)


def predicted_memory(run: Run, rows: Sequence[Sequence[tuple[int, int]]], kernels: str) -> dict[str, int]:
    """For the record, beside what was measured: MiB that the plan expected of rows of (tokens, labelled) samples, rows
    of twins among them."""
    options = run.config.train
    try:
        shape = shape_of_base(run.config.base, run.path.parent)
    except MrpError:
        return {}
    width = max(sum(tokens for tokens, _ in row) for row in rows)
    together = options.micro_batch * (2 if options.contrast else 1)
    shaped = RowShape(
        together * (width + -width % WIDTH),
        together * (max(map(len, rows)) + 1),
        together * max(sum(labelled for _, labelled in row) for row in rows),
    )
    found = predict_training(shape, options, shaped, kernels)
    sizes = {"allocated": found.allocated, "reserved": found.reserved, "in_all": found.in_all}
    return {name: round(size / MIB) for name, size in sizes.items()}
