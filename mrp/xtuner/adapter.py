"""An XTuner checkpoint as a PEFT adapter, with the names of the base model that it will be used with.

    pth_to_hf(Path("xiyou.py"), Path("iter_500.pth"), Path("adapter"))

XTuner trains InternLM2 under that model's own names. Re-laid to Llama's, a LoRA on the fused `wqkv` becomes one on each
of q, k and v: `B @ A` has the rows of B and shares A, so the rows of B are split as those of the weight are, and A is
used three times. This is exact, as is every other renaming (`mrp/models/internlm2_layout.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mrp.errors import InputError, MrpError, nearest, raise_all
from mrp.files import read_json, replacing_folder, write_json
from mrp.models.internlm2_layout import FUSED, Heads, heads_of, llama_modules, split_rows
from mrp.report import SILENT, Reporter
from mrp.xtuner.checkpoint import Checkpoint, read_checkpoint
from mrp.xtuner.lora_config import LoraOptions, check_same_training, lora_options

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"(?:llm\.)?base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
LAYOUTS = ("llama", "internlm2")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
TRAIN_AGAIN = "train again, with a lower learning rate"
# The released models, by hidden size, for a base that is not here: 1.8B, 7B and 20B.
RELEASED = {2048: Heads(16, 8, 128), 4096: Heads(32, 8, 128), 6144: Heads(48, 8, 128)}


@dataclass(frozen=True)
class Pair:
    """A LoRA on one layer: `scale * b @ a` is added to its weight."""

    a: torch.Tensor  # (rank, in)
    b: torch.Tensor  # (out, rank)


def pth_to_hf(
    config: Path,
    checkpoint: Path,
    out: Path,
    *,
    layout: str = "llama",
    dtype: str | None = None,
    base: Path | None = None,
    report: Reporter = SILENT,
) -> dict[str, Any]:
    """Write the LoRA of a checkpoint as a PEFT adapter to the new folder `out`; returns what was done.

    `config` is the CONFIG.py of the training, or the adapter_config.json of an adapter. `layout` "internlm2" keeps
    XTuner's own names. Weights stay as stored (float32 in checkpoints), or become "fp32" or "fp16" (`dtype`). `base`
    is the base model's folder, whose config.json tells the attention heads; without it the one that the config names
    is looked for.

    Raises `InputError` with every fault that was found; nothing is written then.
    """
    if layout not in LAYOUTS:
        raise InputError(f"unknown layout {layout!r}", "--layout", nearest(layout, LAYOUTS))
    _check_place(out)
    options = lora_options(config)
    found = read_checkpoint(checkpoint)
    if not check_same_training(options, found, checkpoint):
        what = f"the checkpoint does not tell its scale; alpha {options.alpha:g} is taken from {options.where}"
        report.warn(f"{what}, so be sure that it is the config of this training")
    pairs = _read_pairs(found, options, checkpoint)
    is_internlm2 = any(_is_internlm2(module) for module in pairs)
    if is_internlm2 and layout == "llama":
        pairs = _relaid(pairs, options, base, checkpoint)
    if dtype:
        wanted = DTYPES[dtype]
        pairs = {module: Pair(pair.a.to(wanted), pair.b.to(wanted)) for module, pair in pairs.items()}
        _check_numbers(pairs, f"as {wanted} ".replace("torch.", ""), checkpoint, f"leave out --{dtype}")
    result = {
        "folder": str(out),
        "layout": ("llama" if layout == "llama" else "internlm2") if is_internlm2 else "as trained",
        "from": found.kind,
        "modules": len(pairs),
        "parameters": sum(pair.a.numel() + pair.b.numel() for pair in pairs.values()),
        "rank": options.rank,
        "alpha": options.alpha,
        "target_modules": sorted({module.rpartition(".")[2] for module in pairs}),
        "dtype": sorted({str(pair.a.dtype).removeprefix("torch.") for pair in pairs.values()}),
        **found.facts,
    }
    _write(out, pairs, options, base, result["target_modules"])
    _tell(result, options, report)
    return result


def _check_place(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("something is in the place of the adapter", str(out), "choose a new folder")


# -- out of the checkpoint ---------------------------------------------------------------------------------------------


def _read_pairs(found: Checkpoint, options: LoraOptions, path: Path) -> dict[str, Pair]:
    """The LoRA of each module by the module's name in the base. `InputError` with every fault."""
    faults: list[MrpError] = []
    if found.others:
        what = f"{len(found.others)} whole weights were trained beside the LoRA, such as {found.others[0]}"
        fix = "an adapter has no place for them: train LoRA alone (no modules_to_save, no projector)"
        faults.append(InputError(what, str(path), fix))
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in found.tensors.items():
        if matched := KEY.fullmatch(name):
            halves.setdefault(matched[1], {})[matched[2]] = tensor
        else:
            what = f"{name} is no A or B of a plain LoRA on a linear layer"
            faults.append(InputError(what, str(path), "train plain LoRA, as XTuner's recipes do"))
    pairs: dict[str, Pair] = {}
    for module, both in halves.items():
        problems = list(_half_faults(module, both, options, path))
        faults += problems
        if not problems:
            pairs[module] = Pair(both["A"], both["B"])
    faults += _target_faults(set(halves), options, path)
    raise_all(f"{path.name} cannot be converted", faults)
    _check_numbers(pairs, "", path, TRAIN_AGAIN)
    return pairs


def _half_faults(module: str, both: dict[str, torch.Tensor], options: LoraOptions, path: Path) -> Iterator[MrpError]:
    where = f"{path}: {module}"
    if missing := {"A", "B"} - both.keys():
        yield InputError(f"lora_{missing.pop()} is missing: half of the pair", where, "copy the checkpoint anew")
        return
    for half, tensor in sorted(both.items()):
        if tensor.dim() != 2 or not tensor.dtype.is_floating_point:
            what = f"lora_{half} is {tensor.dtype} of shape {list(tensor.shape)}: not that of a linear layer"
            yield InputError(what, where, "train plain LoRA, as XTuner's recipes do")
        elif not options.has_patterns and options.rank != (rank := tensor.shape[0 if half == "A" else 1]):
            what = f"lora_{half} has rank {rank}, and {options.where} says {options.rank}"
            yield InputError(what, where, "name the CONFIG.py that this checkpoint was trained with")


def _target_faults(modules: set[str], options: LoraOptions, path: Path) -> Iterator[MrpError]:
    """A list of target modules in the config must be what the checkpoint holds."""
    if not isinstance(options.targets, list) or not modules:
        return
    trained = {module.rpartition(".")[2] for module in modules}
    wanted = {str(target).rpartition(".")[2] for target in options.targets}
    if trained != wanted:
        what = f"LoRA is on {', '.join(sorted(trained))}, and {options.where} says {', '.join(sorted(wanted))}"
        yield InputError(what, str(path), "name the CONFIG.py that this checkpoint was trained with")


def _check_numbers(pairs: dict[str, Pair], how: str, path: Path, fix: str) -> None:
    faults: list[MrpError] = []
    for module, pair in pairs.items():
        for half, tensor in (("A", pair.a), ("B", pair.b)):
            if not bool(torch.isfinite(tensor).all()):
                faults.append(InputError(f"lora_{half} {how}holds NaN or infinity", f"{path}: {module}", fix))
    raise_all(f"{path.name} holds numbers that are none", faults)


# -- InternLM2's names to Llama's --------------------------------------------------------------------------------------


def _is_internlm2(module: str) -> bool:
    return ".attention.w" in module or ".feed_forward.w" in module


def _relaid(pairs: dict[str, Pair], options: LoraOptions, base: Path | None, path: Path) -> dict[str, Pair]:
    """The same adapter under Llama's names. `InputError` where the heads are not known, or do not fit."""
    faults: list[MrpError] = []
    heads: Heads | None = None
    if any(module.endswith(FUSED) for module in pairs):
        heads = _heads(pairs, options, base)
    relaid: dict[str, Pair] = {}
    for module, pair in pairs.items():
        names = llama_modules(module)
        if not names:
            what = f"{module} is no layer of InternLM2 that has a place in Llama"
            faults.append(InputError(what, str(path), "keep XTuner's names: --layout internlm2"))
        elif len(names) == 1:
            relaid[names[0]] = pair
        elif heads is not None and len(pair.b) == heads.fused_rows:
            parts = split_rows(pair.b, heads)
            relaid |= {name: Pair(pair.a, part) for name, part in zip(names, parts, strict=True)}
        else:
            rows = heads.fused_rows if heads else 0
            what = f"{module} has {len(pair.b)} rows, and the base model's queries, keys and values have {rows}"
            faults.append(InputError(what, str(path), "give the base model of the training: --base DIR"))
    raise_all(f"{path.name} does not fit its base model", faults)
    return relaid


def _heads(pairs: dict[str, Pair], options: LoraOptions, base: Path | None) -> Heads:
    """The base's attention heads: from its config.json, or as they are in the released models."""
    for folder in [base] if base else options.base_candidates():
        if (folder / "config.json").is_file():
            config = read_json(folder / "config.json")
            try:
                return heads_of(config)
            except (KeyError, TypeError, ZeroDivisionError):
                what = "the base's config.json does not tell its attention heads"
                raise InputError(what, str(folder / "config.json"), "copy the base model's config.json anew") from None
    fused = next(pair for module, pair in pairs.items() if module.endswith(FUSED))
    released = RELEASED.get(fused.a.shape[1])
    if base is None and released and "internlm2" in options.base.lower() and len(fused.b) == released.fused_rows:
        return released
    what = "the rows of wqkv cannot be told apart without the base model's config.json"
    looked = ", ".join(str(folder) for folder in ([base] if base else options.base_candidates())) or "nowhere"
    fix = "give the base model's folder: --base DIR (InternLM2's or the re-laid one)"
    raise InputError(what, f"{options.where}: base {options.base!r}, looked for in {looked}", fix)


# -- the folder --------------------------------------------------------------------------------------------------------


def _write(out: Path, pairs: dict[str, Pair], options: LoraOptions, base: Path | None, targets: list[str]) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for module, pair in pairs.items():
        # A file of safetensors holds no tensor twice, so the shared A of q, k and v is copied.
        tensors[f"base_model.model.{module}.lora_A.weight"] = pair.a.clone()
        tensors[f"base_model.model.{module}.lora_B.weight"] = pair.b.contiguous()
    with replacing_folder(out) as part:
        save_file(tensors, part / WEIGHTS, metadata={"format": "pt"})
        (part / WEIGHTS).chmod(0o644)
        write_json(part / CONFIG, options.peft_config(str(base) if base else options.base, targets))


def _tell(result: dict[str, Any], options: LoraOptions, report: Reporter) -> None:
    names = ", ".join(result["target_modules"])
    what = f"LoRA on {result['modules']} layers ({names}), rank {result['rank']}, alpha {options.alpha:g}"
    report.line(f"wrote {result['folder']}: {what}, {'/'.join(result['dtype'])}")
    if "lm_head" in result["target_modules"] or "output" in result["target_modules"]:
        report.line("the adapter also changes the head (XTuner's default does): it needs a base whose head is untied")
    if result["layout"] == "llama":
        report.line(
            "next: `mrp convert internlm2-to-llama BASE BASE-LLAMA` (once), "
            f"then `mrp merge BASE-LLAMA {result['folder']} --out DIR`"
        )
