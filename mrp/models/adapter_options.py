"""The options in an adapter's adapter_config.json: what of them merging honours, and what it refuses by name.

    config = read_config(Path("run/adapter"))
    list(config_faults(Path("run/adapter"), config))         # what keeps it from being merged exactly
    rank_and_scale(config, "model.layers.0.mlp.up_proj")     # (16, 2.0)

scale = alpha / rank (Hu et al. 2021, arXiv 2106.09685), or alpha / sqrt(rank) if it is rank-stabilised (Kalajdzievski
2023, arXiv 2312.03732).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrp.errors import InputError, MrpError
from mrp.files import read_json
from mrp.train.lora import CONFIG, check_adapter_folder

PLAIN = "use a plain LoRA adapter, as `mrp train` makes"

USED = (
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights"),
    *("use_dora", "modules_to_save"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
)
WITHOUT_EFFECT = (  # on the sum: they belong to training, or say where the adapter comes from
    *("task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
    *("lora_dropout", "runtime_config", "megatron_core", "qalora_group_size"),
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),  # see INITS
)
REFUSED = {
    "trainable_token_indices": "it changes rows of the embedding, which the base may share with its head",
    "fan_in_fan_out": "its layers keep their weights transposed",
    "lora_bias": "its layers add a trained bias",
    "target_parameters": "it changes parameters that are not linear layers (experts of a mixture)",
    "layer_replication": "it uses layers of the base several times, so the merged model would have others",
    "alora_invocation_tokens": "it works only after certain tokens (activated LoRA), and a merged weight always does",
    "use_qalora": "its input is pooled in groups (QALoRA)",
    "use_bdlora": "its matrices are block-diagonal (BD-LoRA)",
    "arrow_config": "it mixes several adapters anew for each token (Arrow)",
    "kasa_config": "it has a third factor and cuts the base's weights (KaSA)",
    "monteclora_config": "its weights are drawn at random (MonteCLoRA)",
    "ensure_weight_tying": "it trains embedding and head as one",
    "megatron_config": "it was made for Megatron's layers",
}
INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")  # those that leave the base's weights alone


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json; `InputError` if it is none, or not LoRA's."""
    check_adapter_folder(folder)
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise InputError("adapter_config.json is not a JSON object", str(folder / CONFIG), "copy the file anew")
    kind = config.get("peft_type")
    if kind != "LORA":  # nothing else in it can be judged
        raise InputError(f"an adapter of type {kind!r} cannot be merged", f"{folder / CONFIG}: peft_type", PLAIN)
    return config


def config_faults(folder: Path, config: dict[str, Any]) -> Iterator[MrpError]:
    """Every option that keeps the adapter from being merged exactly, and every broken one."""
    for key, value in sorted(config.items()):
        where = f"{folder / CONFIG}: {key}"
        if key in REFUSED and value:
            yield InputError(f"{key} is {short_text(value)}: {REFUSED[key]}", where, PLAIN)
        elif key not in (*USED, *WITHOUT_EFFECT, *REFUSED) and value:
            what = f"{key} is {short_text(value)}: this option is not known, and may change what the adapter computes"
            yield InputError(what, where, PLAIN)
    if config.get("bias", "none") != "none":
        what = f"bias is {config['bias']!r}: it trains biases of the base"
        yield InputError(what, f"{folder / CONFIG}: bias", PLAIN)
    if (init := config.get("init_lora_weights", True)) not in INITS:
        what = f"init_lora_weights is {init!r}: it changes the base's weights, so the adapter fits another base"
        fix = "save it with PEFT's path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        yield InputError(what, f"{folder / CONFIG}: init_lora_weights", fix)
    for key in ("r", "lora_alpha"):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            yield InputError(f"{key} is {value!r}", f"{folder / CONFIG}: {key}", "restore the adapter's own file")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            what, where = f"{key} is no mapping of layers to numbers", f"{folder / CONFIG}: {key}"
            yield InputError(what, where, "restore the adapter's own file")


def rank_and_scale(config: dict[str, Any], layer: str) -> tuple[int, float]:
    """Rank and scale of one layer; (0, 0) where the config has no numbers for them (a fault by itself)."""
    from peft.utils.other import get_pattern_key

    def of(pattern: str, default: str) -> Any:
        special: Any = config.get(pattern)
        special = special if isinstance(special, dict) else {}
        return special.get(get_pattern_key(special.keys(), layer), config.get(default))

    rank, alpha = of("rank_pattern", "r"), of("alpha_pattern", "lora_alpha")
    if not isinstance(rank, int | float) or not isinstance(alpha, int | float) or not rank > 0:
        return 0, 0.0
    return int(rank), alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def short_text(value: Any) -> str:
    """A value of an option, cut to what fits a line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
