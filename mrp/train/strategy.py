"""Which strategy several processes follow: as asked, or chosen, with the reason; and what it cannot go with.

name, why = choose_strategy("auto", options, 2, hardware(), base_folder)        # ("ddp", "gradients of a LoRA ...")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mrp.config import TrainOptions
from mrp.errors import InputError, MrpError, raise_all
from mrp.models.load import Hardware
from mrp.train.launch import check_strategy
from mrp.train.passes import make_optimizer
from mrp.train.processes import Processes
from mrp.train.sharded_model import ShardedUpdate
from mrp.train.sharding import DdpUpdate, Update, Weights, ZeroUpdate

SHARDS_MODEL = ("zero3", "fsdp2")
SHARE_FOR_BASE = 0.8  # of a GPU's memory, beyond which a base leaves too little room for training


def choose_strategy(asked: str, options: TrainOptions, world: int, on: Hardware, base: Path) -> tuple[str, str]:
    """The strategy and why it is that one; `InputError` for an unknown one, or for what cannot go with it."""
    check_strategy(asked)
    if world == 1:
        return "single", "one process has nobody to share with"
    if asked == "auto":
        name, why = _chosen(options, on, base)
    else:
        name, why = asked, "asked for"
    if name in SHARDS_MODEL:
        _check_sharding(name, options)
    return name, why


def _chosen(options: TrainOptions, on: Hardware, base: Path) -> tuple[str, str]:
    if options.method == "full":
        if on.device == "cuda":
            return "fsdp2", "full fine-tuning needs 16 bytes for each weight: they are shared out"
        return "zero1", "full fine-tuning on CPUs: the optimizer's state is shared out"
    if on.device == "cuda" and options.bits == 16:
        size = sum(f.stat().st_size for f in base.glob("*.safetensors"))
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        if size > SHARE_FOR_BASE * total:
            return "fsdp2", f"the base ({size / 2**30:.0f} GiB) does not fit one GPU ({total / 2**30:.0f} GiB)"
    return "ddp", "the gradients of a LoRA are small, so one sum of them is cheapest"


def _check_sharding(name: str, options: TrainOptions) -> None:
    faults: list[MrpError] = []
    instead = "or take --strategy ddp, zero1 or zero2"
    if options.bits == 4:
        faults.append(InputError(f"{name} cannot share out 4-bit weights", "train.bits", f"train.bits: 16, {instead}"))
    if options.optimizer == "adamw-8bit":
        what, fix = f"{name} cannot cut the blocks of 8-bit AdamW", f"train.optimizer: adamw, {instead}"
        faults.append(InputError(what, "train.optimizer", fix))
    if options.offload or options.kernels == "fast":
        where = "train.offload" if options.offload else "train.kernels"
        what = f"the fast kernels want weights whole, and {name} cuts them"
        faults.append(InputError(what, where, f"train.kernels: auto and train.offload: false, {instead}"))
    if options.voices or options.contrast:
        where = "train.voices" if options.voices else "train.contrast"
        what = f"voices and contrast want the base whole, and {name} cuts it"
        faults.append(InputError(what, where, f"train.voices: false and train.contrast: 0, {instead}"))
    raise_all(f"{name} does not go with this run", faults)


def make_update(
    strategy: str, model: Any, weights: Weights, processes: Processes, options: TrainOptions, on: Hardware
) -> Update:
    """The update of a strategy; for fsdp2 and zero3 `model` is sharded already."""

    def make(own: Any) -> torch.optim.Optimizer:
        return make_optimizer(own, options)

    if strategy in SHARDS_MODEL:
        return ShardedUpdate(model, weights, make, on)
    if strategy in ("zero1", "zero2"):
        return ZeroUpdate(weights, processes, make, frees_gradients=strategy == "zero2")
    return DdpUpdate(weights, processes, make)
