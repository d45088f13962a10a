"""Full fine-tuning: all weights of the base are trained, and the tuned model takes the merged one's place.

    model = unfreeze(load_model(...))           # weights in fp32
    save_model(model, base_folder, run)         # <run folder>/merged, in the base's own number format

There is nothing to merge afterwards; `mrp run` and `mrp merge` only add the cast.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from mrp.config import Run
from mrp.files import need_space, replacing_folder
from mrp.models.load import load_tokenizer
from mrp.train.checkpoint import disk_errors

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def unfreeze(model: Any) -> Any:
    """`model` with gradients on all of its weights."""
    return model.requires_grad_(True)


def save_model(model: Any, base: Path, run: Run, weights: dict[str, torch.Tensor]) -> None:
    """Write the tuned model, whole or not at all, with the base's tokenizer; an earlier adapter goes.

    `weights` are the values of its parameters, since those in `model` may be sharded. Raises `SetupError` if
    the disk is full.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    kept = config.dtype or torch.float32
    size = sum(value.numel() for value in weights.values()) * torch.empty(0, dtype=kept).element_size()
    need_space(run.folder, size, "the tuned model")
    names = {id(p): name for name, p in model.named_parameters()}  # a tied matrix has one value under two names
    whole = {name: weights[names[id(p)]].to(kept) for name, p in model.named_parameters(remove_duplicate=False)} | {
        name: value.to(kept) for name, value in _kept_buffers(model).items()
    }
    with replacing_folder(run.merged) as part, disk_errors():
        model.config.dtype = kept
        model.save_pretrained(str(part), state_dict=whole, safe_serialization=True, max_shard_size="1000GB")
        load_tokenizer(base).save_pretrained(str(part))
    shutil.rmtree(run.adapter, ignore_errors=True)  # else it would be taken for what was trained last


def _kept_buffers(model: Any) -> dict[str, torch.Tensor]:
    """Buffers that are a part of the model's files."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in model.state_dict().items() if name not in parameters}
