"""What an XTuner config, or an adapter_config.json, says of the LoRA that was trained.

    options = lora_options(Path("xiyou.py"))
    options.rank, options.alpha, options.targets

Read for `adapter.py`. A value that cannot be read is an error here, as a guessed scale would make another model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrp.errors import InputError, MrpError, raise_all
from mrp.files import read_json
from mrp.xtuner.checkpoint import Checkpoint
from mrp.xtuner.config import XtunerConfig, read_config, read_config_text
from mrp.xtuner.scope import Unread

# PEFT's own defaults, where a config is silent (peft.LoraConfig).
DEFAULTS: dict[str, Any] = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none", "use_rslora": False}
RELEVANT = (*DEFAULTS, "target_modules", "rank_pattern", "alpha_pattern", "use_dora", "modules_to_save")
SAME = {"r": "rank", "lora_alpha": "alpha"}  # what must be equal for the adapter to compute the same


@dataclass(frozen=True)
class LoraOptions:
    """The LoRA of a training."""

    rank: int
    alpha: float
    dropout: float
    is_rank_stabilised: bool
    targets: Any  # a list of names, a pattern, or None: whatever the trainer found
    base: str  # as the config names the base model
    where: str  # the config
    has_patterns: bool = False

    def base_candidates(self) -> list[Path]:
        """Where the base may lie: seen from the working directory, as XTuner saw it, and from the config."""
        if not self.base:
            return []
        return list(dict.fromkeys((Path(self.base), Path(self.where).parent / self.base)))

    def peft_config(self, base: str, targets: list[str]) -> dict[str, Any]:
        """adapter_config.json, for PEFT and `mrp merge`."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "inference_mode": True,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "bias": "none",
            "fan_in_fan_out": False,
            "use_rslora": self.is_rank_stabilised,
            "target_modules": targets,
        }


def lora_options(path: Path) -> LoraOptions:
    """The LoRA options of a CONFIG.py, or of an adapter_config.json.

    Raises `InputError` with every option that is missing, could not be read, or is more than plain LoRA.
    """
    if path.suffix == ".json":
        value = read_json(path)
        if not isinstance(value, dict) or value.get("peft_type", "LORA") != "LORA":
            raise InputError("the file is no adapter_config.json of a LoRA", str(path), "name the CONFIG.py")
        return _checked(value, str(value.get("base_model_name_or_path") or ""), path, "")
    config = read_config(path)
    lora = config.find("model.lora", None)
    if not isinstance(lora, dict):
        what = "the config trains no LoRA: it has no model.lora"
        if isinstance(lora, Unread):
            what = f"model.lora {lora}"
        raise InputError(what, f"{path}: model.lora", "name the CONFIG.py that the checkpoint was trained with")
    return _checked(lora, _base_of(config), path, "model.lora.")


def _base_of(config: XtunerConfig) -> str:
    value = config.find("model.llm.pretrained_model_name_or_path", None)
    return value if isinstance(value, str) else ""


def _checked(value: dict[str, Any], base: str, path: Path, prefix: str) -> LoraOptions:
    given = DEFAULTS | {key: item for key, item in value.items() if item is not None}
    raise_all(f"{path.name} does not tell a LoRA that can be converted", list(_faults(given, path, prefix)))
    targets = given.get("target_modules")
    return LoraOptions(
        rank=int(given["r"]),
        alpha=given["lora_alpha"],
        dropout=float(given["lora_dropout"]),
        is_rank_stabilised=bool(given["use_rslora"]),
        targets=list(targets) if isinstance(targets, list | tuple) else targets,
        base=base,
        where=str(path),
    )


def _faults(given: dict[str, Any], path: Path, prefix: str) -> Iterator[MrpError]:
    for key in RELEVANT:
        value, where = given.get(key), f"{path}: {prefix}{key}"
        if isinstance(value, Unread):
            yield InputError(f"{prefix}{key} {value}", where, "write the value itself there")
        elif key in ("r", "lora_alpha", "lora_dropout"):
            if not _is_fit(key, value):
                yield InputError(f"{prefix}{key} is {value!r}", where, "correct it to what was trained")
        elif key == "bias" and value != "none":
            yield InputError(f"{prefix}bias is {value!r}: biases were trained too", where, "train with bias='none'")
        elif key in ("rank_pattern", "alpha_pattern", "use_dora", "modules_to_save") and value:
            what = f"{prefix}{key} is {str(value)[:60]}: more than plain LoRA"
            yield InputError(what, where, "use XTuner's own converter, and the adapter with PEFT")


def _is_fit(key: str, value: Any) -> bool:
    """True if a rank, a scale or a share of dropout is a number that it can be."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if key == "lora_dropout":
        return 0 <= value < 1
    return value > 0 and (key != "r" or value == int(value))


def check_same_training(options: LoraOptions, found: Checkpoint, path: Path) -> bool:
    """`InputError` where the config that the checkpoint itself keeps says another rank or scale.

    Returns False if it keeps none that can be read, so that nothing but shapes could be compared.
    """
    kept = found.adapter_config
    if found.config_text:
        with suppress(InputError):  # mmengine prints some objects in a way that is no Python
            lora = read_config_text(found.config_text, f"{path}: meta.cfg").find("model.lora", None)
            kept = lora if isinstance(lora, dict) else {}
    faults: list[MrpError] = []
    for key, name in SAME.items():
        told = kept.get(key, getattr(options, name))
        if isinstance(told, int | float) and told != getattr(options, name):
            what = f"the checkpoint was trained with {key} {told}, and {options.where} says {getattr(options, name)}"
            faults.append(InputError(what, str(path), "name the CONFIG.py that this checkpoint was trained with"))
    raise_all(f"{path.name} and {Path(options.where).name} do not belong together", faults)
    return bool(kept)
