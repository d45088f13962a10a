"""The LoRA weights of an XTuner checkpoint, whatever form it has.

    found = read_checkpoint(Path("work_dirs/xiyou/iter_500.pth"))
    found.tensors["llm.base_model.model.model.layers.0.attention.wo.lora_A.default.weight"]

Three forms: a `.pth` file (`state_dict` holds the trained weights), a DeepSpeed ZeRO-1 or ZeRO-2 folder (`zero.py`),
and an adapter folder that XTuner or PEFT wrote. All are read by the restricted reader of `pickled.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mrp.errors import InputError
from mrp.files import read_json
from mrp.xtuner.pickled import open_pickled, tensors_in
from mrp.xtuner.zero import is_zero_folder, read_zero

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
LORA = "lora_"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds of an adapter."""

    kind: str  # "pth", "zero", "adapter"
    tensors: dict[str, torch.Tensor]  # by the names that the checkpoint uses
    others: list[str] = field(default_factory=list)  # trained weights that are no LoRA
    config_text: str = ""  # the config of the training, where the checkpoint keeps it
    adapter_config: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)  # for the record: step, ranks


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's LoRA weights as stored (of ZeRO: the float32 masters).

    Raises `InputError` for files that are missing, cut off, malicious or not of one run, and for a checkpoint without
    LoRA weights.
    """
    if not path.exists():
        raise InputError(f"no such checkpoint: {path.name}", str(path), "name the iter_N.pth that XTuner wrote")
    if path.is_file():
        return _read_pth(path)
    if (path / ADAPTER_CONFIG).is_file():
        return _read_adapter(path)
    if not is_zero_folder(path):
        below = [p for p in sorted(path.glob("*.pth")) if p.is_file() or is_zero_folder(p)]
        fix = "name the iter_N.pth (a file, or a folder if DeepSpeed was used)"
        if below:
            fix = f"name one of its checkpoints, such as {below[-1]}"
        raise InputError("the folder holds no checkpoint", str(path), fix)
    joined = read_zero(path, lambda names: check_lora(names, path))
    lora, others = _sorted_out(joined.tensors)
    tensors = {name: joined.tensors[name] for name in lora}
    return Checkpoint(
        "zero", tensors, others, config_text(joined.model_state), facts=joined.facts | progress(joined.model_state)
    )


def _read_pth(path: Path) -> Checkpoint:
    with open_pickled(path) as file:
        state = file.value.get("state_dict") if isinstance(file.value, dict) else None
        if not isinstance(state, dict):
            fix = "name the iter_N.pth that XTuner wrote"
            if isinstance(file.value, dict) and ("param_shapes" in file.value or "ds_config" in file.value):
                fix = f"it is one file of a DeepSpeed checkpoint: name the folder, {path.parent}"
            raise InputError("the file is no checkpoint of XTuner: it has no state_dict", str(path), fix)
        parts = tensors_in(state)
        check_lora(parts, path)
        lora, others = _sorted_out(parts)
        tensors = {name: file.tensor(parts[name], name) for name in lora}
        return Checkpoint("pth", tensors, others, config_text(file.value), facts=progress(file.value))


def _read_adapter(folder: Path) -> Checkpoint:
    config = read_json(folder / ADAPTER_CONFIG)
    present = [name for name in ADAPTER_FILES if (folder / name).is_file()]
    if not present or not isinstance(config, dict):
        what = f"the adapter folder lacks its weights ({' or '.join(ADAPTER_FILES)})"
        raise InputError(what, str(folder), "copy the adapter anew")
    path = folder / present[0]
    if present[0].endswith(".bin"):
        with open_pickled(path) as file:
            parts = tensors_in(file.value)
            check_lora(parts, path)
            tensors = {name: file.tensor(part, name) for name, part in parts.items()}
    else:
        tensors = _read_safetensors(path)
        check_lora(tensors, path)
    lora, others = _sorted_out(tensors)
    return Checkpoint("adapter", {name: tensors[name] for name in lora}, others, adapter_config=config)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"the file cannot be read: {error}", str(path), "copy the adapter anew") from None


# -- parts of a checkpoint's value -------------------------------------------------------------------------------------


def check_lora(names: Iterable[str], path: Path) -> None:
    """`InputError` unless some of the names are LoRA weights."""
    names = list(names)
    if any(LORA in name for name in names):
        return
    what = "the checkpoint holds no LoRA weights"
    if names:
        what += f": {len(names)} whole weights, such as {names[0]}, were trained (a full fine-tune)"
    fix = "this command makes adapters; the weights of a full fine-tune are a model by themselves"
    raise InputError(what, str(path), fix)


def _sorted_out(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """LoRA weights, and other trained weights."""
    names = list(names)
    return [name for name in names if LORA in name], [name for name in names if LORA not in name]


def config_text(value: dict[str, Any]) -> str:
    """The config that mmengine keeps in a checkpoint's `meta`; "" where it has none."""
    meta = value.get("meta")
    text = meta.get("cfg") if isinstance(meta, dict) else None
    return text if isinstance(text, str) else ""


def progress(value: dict[str, Any]) -> dict[str, Any]:
    """How far the training was, from a checkpoint's `meta`."""
    meta = value.get("meta")
    known = meta if isinstance(meta, dict) else {}
    return {key: known[key] for key in ("iter", "epoch", "seed") if type(known.get(key)) is int}
