"""A LoRA adapter in PEFT's format, read for merging: matched with the base's files, and refused by name where it is
more than LoRA's plain sum.

    pairs = read_adapter(Path("run/adapter"), base, read_weights(base))
    pairs["model.layers.0.self_attn.q_proj"].scale           # alpha / rank

What an adapter adds to the weight of a linear layer is `scale * B @ A` (Hu et al. 2021, arXiv 2106.09685), with
scale = alpha / rank, or alpha / sqrt(rank) if it is rank-stabilised (Kalajdzievski 2023, arXiv 2312.03732).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mrp.errors import InputError, MrpError, raise_all
from mrp.files import read_json
from mrp.models.internlm2_layout import llama_modules
from mrp.models.shards import FLOATS, StoredTensor, read_header, read_matrix
from mrp.train.lora import check_adapter_folder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY_PREFIX = "base_model.model."
PLAIN = "use a plain LoRA adapter, as `mrp train` makes"

USED = (
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
)
WITHOUT_EFFECT = (  # on the sum: they belong to training, or say where the adapter comes from
    *("task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
    *("lora_dropout", "runtime_config", "megatron_core", "qalora_group_size"),
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),  # see INITS
)
REFUSED = {
    "use_dora": "DoRA also rescales each row of the weight by a trained magnitude",
    "modules_to_save": "it replaces whole modules of the base",
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
    "megatron_config": "it was made for Megatron's layers",
    "ensure_weight_tying": "it changes embedding and head together",
}
INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")  # those that leave the base's weights alone
KEY_REASONS = {  # parts of keys in the adapter's file that are not A or B of a linear layer
    "lora_embedding": "LoRA on an embedding",
    "lora_magnitude_vector": "a magnitude of DoRA",
    "modules_to_save": "a whole module that replaces the base's",
    "trainable_tokens": "trained rows of an embedding",
    "lora_A.bias": "a trained bias",
    "lora_B.bias": "a trained bias",
}


@dataclass(frozen=True)
class Pair:
    """What the adapter adds to the weight of one linear layer: `scale * B @ A`."""

    a: StoredTensor  # (rank, in)
    b: StoredTensor  # (out, rank)
    scale: float

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B in float32."""
        return read_matrix(self.a), read_matrix(self.b)


def read_adapter(folder: Path, base: Path, weights: dict[str, StoredTensor]) -> dict[str, Pair]:
    """The adapter's pairs by the name of their layer; `weights` are those of the folder `base`.

    Raises `InputError` with every reason that keeps the adapter from being merged exactly: options other than plain
    LoRA, the embedding, a head that is tied to it, layers that the base lacks, shapes, ranks, halves, NaN, quantised
    weights.
    """
    config = _read_config(folder)
    faults = [*_config_faults(folder, config), *_base_faults(base, weights)]
    found: dict[str, dict[str, StoredTensor]] = {}
    for key, tensor in read_header(folder / WEIGHTS).items():
        layer, half = _layer_and_half(key)
        if half:
            found.setdefault(layer, {})[half] = tensor
        else:
            faults.append(_unknown_key(key, folder))
    model = _skeleton(base)
    pairs: dict[str, Pair] = {}
    for layer, halves in sorted(found.items()):
        rank, scale = _rank_and_scale(config, layer)
        problems = [*_layer_faults(layer, model, base, weights, folder), *_half_faults(layer, halves, rank)]
        if not problems:
            problems = [*_number_faults(layer, halves, weights[f"{layer}.weight"])]
            pairs[layer] = Pair(halves["A"], halves["B"], scale)
        faults += problems
    if not found:
        faults.append(InputError("the adapter's file holds no LoRA weights", str(folder / WEIGHTS), PLAIN))
    faults += _missing_layers(config, model, found, folder)
    raise_all(f"{folder.name} cannot be merged into {base.name}", faults)
    return pairs


# -- the config ----------------------------------------------------------------------------------------------------


def _read_config(folder: Path) -> dict[str, Any]:
    check_adapter_folder(folder)
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise InputError("adapter_config.json is not a JSON object", str(folder / CONFIG), "copy the file anew")
    kind = config.get("peft_type")
    if kind != "LORA":  # nothing else in it can be judged
        raise InputError(f"an adapter of type {kind!r} cannot be merged", f"{folder / CONFIG}: peft_type", PLAIN)
    return config


def _config_faults(folder: Path, config: dict[str, Any]) -> Iterator[MrpError]:
    for key, value in sorted(config.items()):
        where = f"{folder / CONFIG}: {key}"
        if key in REFUSED and value:
            yield InputError(f"{key} is {_short(value)}: {REFUSED[key]}", where, PLAIN)
        elif key not in (*USED, *WITHOUT_EFFECT, *REFUSED) and value:
            what = f"{key} is {_short(value)}: this option is not known, and may change what the adapter computes"
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


def _rank_and_scale(config: dict[str, Any], layer: str) -> tuple[int, float]:
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


# -- the base ------------------------------------------------------------------------------------------------------


def _base_faults(base: Path, weights: dict[str, StoredTensor]) -> Iterator[MrpError]:
    config = read_json(base / "config.json")
    fix = "take the unquantised form of the base model"
    for key in ("quantization_config", "compression_config"):
        if config.get(key):
            method = config[key].get("quant_method", key) if isinstance(config[key], dict) else key
            yield InputError(f"the base is quantised ({method})", f"{base / 'config.json'}: {key}", fix)
    narrow = {t.dtype: t for t in weights.values() if t.dtype.startswith(("F8", "F4", "F6", "E8"))}
    for dtype, tensor in sorted(narrow.items()):
        yield InputError(f"the base holds weights in {dtype}, such as {tensor.name}", str(tensor.path), fix)


def _skeleton(base: Path) -> Any:
    """The base as transformers builds it, without numbers: which layers it has and what they are."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        fix = "take a base model whose type transformers knows by itself"
        raise InputError(
            f"transformers cannot build the base model: {first}", str(base / "config.json"), fix
        ) from error


# -- the layers ----------------------------------------------------------------------------------------------------


def _layer_and_half(key: str) -> tuple[str, str]:
    """("model.layers.0.mlp.up_proj", "A") for the key of a half; ("", "") for anything else."""
    for half in ("A", "B"):
        if key.startswith(KEY_PREFIX) and key.endswith(f".lora_{half}.weight"):
            return key.removeprefix(KEY_PREFIX).removesuffix(f".lora_{half}.weight"), half
    return "", ""


def _unknown_key(key: str, folder: Path) -> InputError:
    reason = next((reason for part, reason in KEY_REASONS.items() if part in key), "not a LoRA weight that is known")
    return InputError(f"{key} is {reason}", str(folder / WEIGHTS), PLAIN)


def _layer_faults(
    layer: str, model: Any, base: Path, weights: dict[str, StoredTensor], folder: Path
) -> Iterator[MrpError]:
    where = f"{folder / WEIGHTS}: {layer}"
    other_base = "merge into the base model that the adapter was trained on (base_model_name_or_path)"
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        if llama_modules(layer) not in ((), (layer,)) and layer != "output":
            other_base = f"give it Llama's names first: mrp convert pth-to-hf {folder / CONFIG} {folder} NEW_ADAPTER"
        yield InputError(f"the base has no layer {layer}", where, other_base)
        return
    if module is model.get_input_embeddings():
        yield InputError(f"{layer} is the base's embedding, which LoRA must leave alone", where, PLAIN)
    elif module is model.get_output_embeddings() and _is_tied(model, layer, weights):
        what = f"{layer} is the base's head, and shares its weight with the embedding: the merge would change both"
        yield InputError(what, where, "use base and adapter unmerged, or train without LoRA on the head")
    elif not isinstance(module, torch.nn.Linear):
        yield InputError(f"{layer} is a {type(module).__name__}, not a linear layer", where, PLAIN)
    elif (stored := weights.get(f"{layer}.weight")) is None:
        what = f"the base's files have no {layer}.weight: this architecture keeps the layer under another name"
        yield InputError(what, where, "merge with PEFT itself (merge_and_unload): it needs the model in memory")
    elif stored.dtype not in FLOATS:
        fix = "take the unquantised form of the base model"
        yield InputError(f"{layer}.weight is stored as {stored.dtype}: the base is quantised", stored.where, fix)
    elif stored.shape != (module.out_features, module.in_features):
        what = f"{layer}.weight has shape {_shape(stored)}, and config.json says {_shape(module.weight)}"
        yield InputError(what, f"{base}", "copy the base model anew")


def _is_tied(model: Any, head: str, weights: dict[str, StoredTensor]) -> bool:
    """True if head and embedding are one weight: config.json says so, or the files hold no weight of the head."""
    config = model.config.get_text_config()
    return bool(getattr(config, "tie_word_embeddings", False)) or f"{head}.weight" not in weights


def _half_faults(layer: str, halves: dict[str, StoredTensor], rank: int) -> Iterator[MrpError]:
    where = next(iter(halves.values())).where
    if missing := {"A", "B"} - halves.keys():
        yield InputError(f"{layer} has no lora_{missing.pop()}: half of the pair is missing", where, "train it anew")
        return
    for half, tensor in sorted(halves.items()):
        if tensor.dtype not in FLOATS:
            what = f"lora_{half} of {layer} is stored as {tensor.dtype}"
            yield InputError(what, tensor.where, "save the adapter in float32, float16 or bfloat16")
        if len(tensor.shape) != 2:
            what = f"lora_{half} of {layer} has shape {_shape(tensor)}: not a linear layer"
            yield InputError(what, tensor.where, PLAIN)
        elif rank and rank != (tensor.shape[0] if half == "A" else tensor.shape[1]):
            what = f"lora_{half} of {layer} has shape {_shape(tensor)}, and the config says rank {rank}"
            yield InputError(what, tensor.where, "restore the adapter's own adapter_config.json (r, rank_pattern)")


def _number_faults(layer: str, halves: dict[str, StoredTensor], stored: StoredTensor) -> Iterator[MrpError]:
    """Faults of a whole pair on its own weight: shapes, and NaN or infinity."""
    a, b = halves["A"], halves["B"]
    if (b.shape[0], a.shape[1]) != stored.shape:
        what = f"the adapter's {layer} is {b.shape[0]}x{a.shape[1]}, the base's is {_shape(stored)}"
        fix = "merge into the base model that the adapter was trained on (base_model_name_or_path)"
        yield InputError(what, a.where, fix)
    for half, tensor in sorted(halves.items()):
        if not torch.isfinite(read_matrix(tensor)).all():
            what = f"lora_{half} of {layer} holds NaN or infinity"
            yield InputError(what, tensor.where, "train again, with a lower train.learning_rate")


def _missing_layers(config: dict[str, Any], model: Any, found: Iterable[str], folder: Path) -> Iterator[MrpError]:
    """Layers that the config says are trained and the file lacks (a file cut or mixed up; PEFT would only warn)."""
    import peft
    from peft.tuners.tuners_utils import check_target_module_exists

    targets = config.get("target_modules")
    if not targets or targets == "all-linear":
        return
    keys = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    try:
        wanted = peft.LoraConfig(**{key: config[key] for key in keys if config.get(key) is not None})
        lacking = sorted(name for name in linear if check_target_module_exists(wanted, name) and name not in found)
    except (TypeError, ValueError, re.error) as error:
        yield InputError(f"its layers cannot be told: {error}", str(folder / CONFIG), "restore the adapter's own file")
        return
    if lacking:
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        what = f"the config names layers that the adapter's file lacks: {shown}"
        yield InputError(what, str(folder / WEIGHTS), "copy the adapter anew: file and config do not belong together")


def _shape(tensor: Any) -> str:
    return "x".join(str(n) for n in tensor.shape)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
