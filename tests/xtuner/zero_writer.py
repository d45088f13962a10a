"""DeepSpeed checkpoints written from their published layout, without DeepSpeed: for tests of the reader.

write_zero(folder, [{"name": tensor}], ranks=3)      # groups of float32 weights -> model_states and a file a rank

The layout is that of DeepSpeed's ZeRO-1 and ZeRO-2 (deepspeed/runtime/zero/stage_1_and_2.py, engine.py): the weights
of a group in one row, padded with zeros to a multiple of 2 * ranks, cut into equal parts.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

MODEL_FILE = "mp_rank_00_model_states.pt"


def rank_file(rank: int, prefix: str = "bf16_") -> str:
    return f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


def write_zero(
    folder: Path,
    groups: list[dict[str, torch.Tensor]],
    ranks: int,
    *,
    stage: Any = 2,
    prefix: str = "bf16_",
    rounded: torch.dtype = torch.bfloat16,
    step: int = 7,
    meta: dict[str, Any] | None = None,
    keep_padding: bool = True,
) -> Path:
    """Write a whole checkpoint; `stage` None leaves the stage to the DeepSpeed config, as BF16_Optimizer does."""
    folder.mkdir(parents=True)
    config = {"zero_optimization": {"stage": stage or 1}}
    model_state = {
        "module": OrderedDict((name, w.to(rounded)) for group in groups for name, w in group.items()),
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [OrderedDict((name, w.shape) for name, w in group.items()) for group in groups],
        "shared_params": {},
        "ds_config": config,
        "ds_version": "0.16.9",
        "meta": {"iter": step, "epoch": 0} | (meta or {}),
    }
    torch.save(model_state, folder / MODEL_FILE)
    rows = [torch.cat([w.flatten().float() for w in group.values()]) for group in groups]
    wholes = [len(row) for row in rows]
    rows = [torch.nn.functional.pad(row, (0, -len(row) % (2 * ranks))) for row in rows]
    for rank in range(ranks):
        parts = [row.chunk(ranks)[rank].clone() for row in rows]
        if not keep_padding and rank == ranks - 1:
            lost = [len(row) - whole for row, whole in zip(rows, wholes, strict=True)]
            parts = [part[: len(part) - n] for part, n in zip(parts, lost, strict=True)]
        state = {
            "loss_scaler": None,
            "clip_grad": 1.0,
            "base_optimizer_state": {
                "state": {k: {"step": torch.tensor(float(step)), "exp_avg": part * 0} for k, part in enumerate(parts)},
                "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [k]} for k in range(len(parts))],
            },
            "single_partition_of_fp32_groups": parts,
            "partition_count": [ranks] * len(parts),
            "ds_version": "0.16.9",
        } | ({} if stage is None else {"zero_stage": stage})
        value = {"optimizer_state_dict": state, "ds_config": config, "ds_version": "0.16.9"}
        torch.save(value, folder / rank_file(rank, prefix))
    return folder
