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


def save_model(model: Any, base: Path, run: Run) -> None:
    """Write the tuned model, whole or not at all, with the base's tokenizer; an earlier adapter goes.

    Raises `SetupError` if the disk is full.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    kept = config.dtype or torch.float32
    size = sum(p.numel() for p in model.parameters()) * torch.empty(0, dtype=kept).element_size()
    need_space(run.folder, size, "the tuned model")
    weights = {name: value.to(kept) for name, value in model.state_dict().items()}
    with replacing_folder(run.merged) as part, disk_errors():
        model.config.dtype = kept
        model.save_pretrained(str(part), state_dict=weights, safe_serialization=True, max_shard_size="1000GB")
        load_tokenizer(base).save_pretrained(str(part))
    shutil.rmtree(run.adapter, ignore_errors=True)  # else it would be taken for what was trained last
