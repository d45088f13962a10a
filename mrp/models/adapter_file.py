"""A LoRA adapter in PEFT's format, matched with the base's files, and refused by name where it cannot be merged
exactly.

    adapter = read_whole_adapter(Path("run/adapter"), base, read_weights(base))
    adapter.pairs["model.layers.0.self_attn.q_proj"].scale           # alpha / rank
    adapter.replaced                                                 # weights it brings whole: modules_to_save
    pairs = read_adapter(Path("run/adapter"), base, read_weights(base))     # plain LoRA alone; all else is refused

What an adapter adds to the weight of a linear layer is `scale * B @ A` (Hu et al. 2021, arXiv 2106.09685); DoRA then
gives each row a trained length (Liu et al. 2024, arXiv 2402.09353).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mrp.errors import InputError, MrpError, raise_all
from mrp.files import read_json
from mrp.models.adapter_options import PLAIN, config_faults, rank_and_scale, read_config
from mrp.models.internlm2_layout import llama_modules
from mrp.models.shards import FLOATS, StoredTensor, has_bad_number, read_header, read_matrix
from mrp.train.lora import CONFIG, WEIGHTS

KEY_PREFIX = "base_model.model."
OTHER_BASE = "merge into the base model that the adapter was trained on (base_model_name_or_path)"
HALVES = {  # ends of keys in the adapter's file
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "embedding A",
    ".lora_embedding_B": "embedding B",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",  # of older PEFT
}
KEY_REASONS = {  # parts of other keys
    "trainable_tokens": "trained rows of an embedding",
    "lora_A.bias": "a trained bias",
    "lora_B.bias": "a trained bias",
}


@dataclass(frozen=True)
class Pair:
    """What the adapter adds to one layer's weight: `scale * B @ A`, and for an embedding its transpose."""

    a: StoredTensor  # (rank, in)
    b: StoredTensor  # (out, rank)
    scale: float
    magnitude: StoredTensor | None = None  # (out,): DoRA's length of each row
    is_embedding: bool = False  # its weight is (in, out): in are the tokens

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B in float32."""
        return read_matrix(self.a), read_matrix(self.b)

    def addends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, rank) and (rank, columns) in float32, whose product is what is added to the weight."""
        a, b = self.factors()
        return (a.T.contiguous() * self.scale, b.T.contiguous()) if self.is_embedding else (b * self.scale, a)


@dataclass
class Adapter:
    """One adapter that fits its base: pairs by layer, and the weights (by name) that it brings whole."""

    folder: Path
    pairs: dict[str, Pair] = field(default_factory=dict)
    replaced: dict[str, StoredTensor] = field(default_factory=dict)
    saved_modules: tuple[str, ...] = ()  # names of replaced weights that belong to modules_to_save

    @property
    def is_plain_sum(self) -> bool:
        """True if it only adds: such adapters can be weighted and summed."""
        return not self.replaced and not any(pair.magnitude for pair in self.pairs.values())


def read_adapter(folder: Path, base: Path, weights: dict[str, StoredTensor]) -> dict[str, Pair]:
    """The pairs of a plain LoRA adapter by the name of their layer; `weights` are those of the folder `base`.

    Raises `InputError` as `read_whole_adapter` does, and for whatever is more than LoRA on linear layers.
    """
    adapter = read_whole_adapter(folder, base, weights)
    faults: list[MrpError] = []
    for layer, pair in adapter.pairs.items():
        where = f"{folder / WEIGHTS}: {layer}"
        if pair.magnitude:
            faults.append(InputError(f"{layer} has a magnitude of DoRA, which is more than a sum", where, PLAIN))
        if pair.is_embedding:
            faults.append(InputError(f"{layer} is LoRA on an embedding", where, PLAIN))
    for name in adapter.replaced:
        what = f"{name} replaces the base's (modules_to_save, or a saved embedding)"
        faults.append(InputError(what, str(folder / WEIGHTS), PLAIN))
    raise_all(f"{folder.name} is more than plain LoRA", faults)
    return adapter.pairs


def read_whole_adapter(folder: Path, base: Path, weights: dict[str, StoredTensor]) -> Adapter:
    """Everything that the adapter in `folder` does to the base.

    Raises `InputError` with every reason that keeps it from being merged exactly: options that are not honoured,
    layers that the base lacks, shapes, ranks, halves, NaN, quantised weights.
    """
    config = read_config(folder)
    faults = [*config_faults(folder, config), *_base_faults(base, weights)]
    model = skeleton(base)
    adapter = Adapter(folder)
    found: dict[str, dict[str, StoredTensor]] = {}
    for key, tensor in read_header(folder / WEIGHTS).items():
        layer, half = _layer_and_half(key)
        if half:
            found.setdefault(layer, {})[half] = tensor
        elif (name := _replaced_name(key)) in weights or name == _head_name(model):
            faults += _replacement_faults(name, tensor, model, config, weights, folder)
            adapter.replaced[name] = tensor
        else:
            faults.append(_unknown_key(key, folder))
    for layer, halves in sorted(found.items()):
        rank, scale = rank_and_scale(config, layer)
        is_embedding = "embedding A" in halves or "embedding B" in halves
        pair = {half.removeprefix("embedding "): tensor for half, tensor in halves.items()}
        problems = [*_layer_faults(layer, model, base, weights, folder, is_embedding)]
        problems += _half_faults(layer, pair, rank, bool(config.get("use_dora")) and not is_embedding)
        if not problems:
            adapter.pairs[layer] = Pair(pair["A"], pair["B"], scale, pair.get("magnitude"), is_embedding)
            target = adapter.replaced.get(f"{layer}.weight") or weights.get(f"{layer}.weight")
            problems = [*_number_faults(layer, adapter.pairs[layer], target or embedding_weight(model, weights))]
        faults += problems
    if not found and not adapter.replaced:
        faults.append(InputError("the adapter's file holds no LoRA weights", str(folder / WEIGHTS), PLAIN))
    adapter.saved_modules = tuple(n for n in adapter.replaced if _is_saved(n.rpartition(".")[0], config))
    faults += _missing_layers(config, model, found, folder)
    faults += _missing_modules(config, model, adapter, folder)
    raise_all(f"{folder.name} cannot be merged into {base.name}", faults)
    return adapter


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


def skeleton(base: Path) -> Any:
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


def name_of(model: Any, wanted: Any) -> str:
    """The name of a module in the model; "" if it is not there."""
    return next((name for name, module in model.named_modules() if module is wanted), "")


def _head_name(model: Any) -> str:
    return f"{name_of(model, model.get_output_embeddings())}.weight"


def embedding_weight(model: Any, weights: dict[str, StoredTensor]) -> StoredTensor:
    """The weight of the embedding in the files."""
    return weights[f"{name_of(model, model.get_input_embeddings())}.weight"]


# -- the layers ----------------------------------------------------------------------------------------------------


def _layer_and_half(key: str) -> tuple[str, str]:
    """("model.layers.0.mlp.up_proj", "A") for the key of a half; ("", "") for anything else."""
    for end, half in HALVES.items():
        if key.startswith(KEY_PREFIX) and key.endswith(end):
            return key.removeprefix(KEY_PREFIX).removesuffix(end), half
    return "", ""


def _replaced_name(key: str) -> str:
    """The name of the base's weight that a key without LoRA stands for."""
    name = key.removeprefix(KEY_PREFIX).replace(".base_layer.", ".")
    return re.sub(r"\.modules_to_save(\.default)?\.", ".", name)  # older PEFT writes it out


def _unknown_key(key: str, folder: Path) -> InputError:
    reason = next((reason for part, reason in KEY_REASONS.items() if part in key), "not a LoRA weight that is known")
    return InputError(f"{key} is {reason}", str(folder / WEIGHTS), PLAIN)


def _is_saved(module: str, config: dict[str, Any]) -> bool:
    """True if PEFT keeps a copy of this module: modules_to_save names it by its end ("norm": "input_layernorm" too)."""
    return any(module.endswith(name) for name in config.get("modules_to_save") or ())


def _replacement_faults(
    name: str, tensor: StoredTensor, model: Any, config: dict[str, Any], weights: dict[str, StoredTensor], folder: Path
) -> Iterator[MrpError]:
    where = f"{folder / WEIGHTS}: {name}"
    module = name.rpartition(".")[0]
    is_vocabulary = name in (_head_name(model), embedding_weight(model, weights).name)
    old = weights.get(name) or embedding_weight(model, weights)
    if not is_vocabulary and not _is_saved(module, config):
        yield InputError(f"{name} is brought whole, and modules_to_save does not name it", where, PLAIN)
    if tensor.dtype not in FLOATS or old.dtype not in FLOATS:
        what = f"{name} is stored as {tensor.dtype}, and in the base as {old.dtype}"
        yield InputError(what, where, "save the adapter in float32, float16 or bfloat16")
        return
    skip = 1 if is_vocabulary else 0  # a vocabulary may have grown
    if tensor.shape[skip:] != old.shape[skip:] or len(tensor.shape) > 2:
        yield InputError(f"the adapter's {name} is {_shape(tensor)}, the base's is {_shape(old)}", where, OTHER_BASE)
    elif has_bad_number(tensor):
        yield InputError(f"{name} holds NaN or infinity", where, "train again, with a lower train.learning_rate")


def _layer_faults(
    layer: str, model: Any, base: Path, weights: dict[str, StoredTensor], folder: Path, is_embedding: bool
) -> Iterator[MrpError]:
    where = f"{folder / WEIGHTS}: {layer}"
    fix = OTHER_BASE
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        if llama_modules(layer) not in ((), (layer,)) and layer != "output":
            fix = f"give it Llama's names first: mrp convert pth-to-hf {folder / CONFIG} {folder} NEW_ADAPTER"
        yield InputError(f"the base has no layer {layer}", where, fix)
        return
    kind = torch.nn.Embedding if is_embedding else torch.nn.Linear
    stored = weights.get(f"{layer}.weight")
    is_head = module is model.get_output_embeddings()
    if module is model.get_input_embeddings() and not is_embedding:
        yield InputError(f"{layer} is the base's embedding, and its LoRA that of a linear layer", where, PLAIN)
    elif not isinstance(module, kind):
        what = "an embedding" if is_embedding else "a linear layer"
        yield InputError(f"{layer} is a {type(module).__name__}, not {what}", where, PLAIN)
    elif stored is None and not is_head:  # a tied head has no weight of its own
        what = f"the base's files have no {layer}.weight: this architecture keeps the layer under another name"
        yield InputError(what, where, "merge with PEFT itself (merge_and_unload): it needs the model in memory")
    elif stored and stored.dtype not in FLOATS:
        fix = "take the unquantised form of the base model"
        yield InputError(f"{layer}.weight is stored as {stored.dtype}: the base is quantised", stored.where, fix)
    elif stored and stored.shape != tuple(module.weight.shape):
        what = f"{layer}.weight has shape {_shape(stored)}, and config.json says {_shape(module.weight)}"
        yield InputError(what, f"{base}", "copy the base model anew")


def _half_faults(layer: str, halves: dict[str, StoredTensor], rank: int, is_dora: bool) -> Iterator[MrpError]:
    where = next(iter(halves.values())).where
    if missing := {"A", "B"} - halves.keys():
        yield InputError(f"{layer} has no lora_{missing.pop()}: half of the pair is missing", where, "train it anew")
        return
    magnitude = halves.get("magnitude")
    if is_dora is not bool(magnitude):
        what = f"{layer} has {'no' if is_dora else 'a'} magnitude of DoRA, and the config says use_dora {is_dora}"
        fix = "restore the adapter's own adapter_config.json; DoRA on an embedding cannot be merged"
        yield InputError(what, where, fix)
    for half, tensor in sorted(halves.items()):
        if tensor.dtype not in FLOATS:
            what = f"lora_{half} of {layer} is stored as {tensor.dtype}"
            yield InputError(what, tensor.where, "save the adapter in float32, float16 or bfloat16")
        if half == "magnitude":
            continue
        if len(tensor.shape) != 2:
            what = f"lora_{half} of {layer} has shape {_shape(tensor)}: not a linear layer"
            yield InputError(what, tensor.where, PLAIN)
        elif rank and rank != (tensor.shape[0] if half == "A" else tensor.shape[1]):
            what = f"lora_{half} of {layer} has shape {_shape(tensor)}, and the config says rank {rank}"
            yield InputError(what, tensor.where, "restore the adapter's own adapter_config.json (r, rank_pattern)")


def _number_faults(layer: str, pair: Pair, target: StoredTensor) -> Iterator[MrpError]:
    """Faults of a whole pair on its own weight: shapes, and NaN or infinity."""
    added = (pair.b.shape[0], pair.a.shape[1])
    if (added[::-1] if pair.is_embedding else added) != target.shape:
        what = f"the adapter's {layer} is {added[0]}x{added[1]}, the base's is {_shape(target)}"
        yield InputError(what, pair.a.where, OTHER_BASE)
    if pair.magnitude and pair.magnitude.shape != (pair.b.shape[0],):
        what = f"the magnitude of {layer} has shape {_shape(pair.magnitude)}, and the layer {added[0]} rows"
        yield InputError(what, pair.magnitude.where, OTHER_BASE)
    for half, tensor in (("A", pair.a), ("B", pair.b), ("magnitude", pair.magnitude)):
        if tensor and has_bad_number(tensor):
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
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    layers = [n for n, m in model.named_modules() if isinstance(m, kinds) and not _is_saved(n, config)]
    try:
        wanted = peft.LoraConfig(**{key: config[key] for key in keys if config.get(key) is not None})
        lacking = sorted(name for name in layers if check_target_module_exists(wanted, name) and name not in found)
    except (TypeError, ValueError, re.error) as error:
        yield InputError(f"its layers cannot be told: {error}", str(folder / CONFIG), "restore the adapter's own file")
        return
    if lacking:
        yield _lacks(f"the config names layers that the adapter's file lacks: {_some(lacking)}", folder)


def _missing_modules(config: dict[str, Any], model: Any, adapter: Adapter, folder: Path) -> Iterator[MrpError]:
    """Weights of modules_to_save that the file lacks."""
    wanted = [
        f"{name}.{weight}"
        for name, module in model.named_modules()
        if _is_saved(name, config)
        for weight, _ in module.named_parameters()
    ]
    if lacking := sorted({*wanted} - adapter.replaced.keys()):
        yield _lacks(f"modules_to_save names weights that the adapter's file lacks: {_some(lacking)}", folder)
    if config.get("modules_to_save") and not wanted:
        what = f"modules_to_save is {config['modules_to_save']!r}, and the base has no such module"
        yield InputError(what, f"{folder / CONFIG}: modules_to_save", OTHER_BASE)


def _lacks(what: str, folder: Path) -> InputError:
    return InputError(what, str(folder / WEIGHTS), "copy the adapter anew: file and config do not belong together")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shape(tensor: Any) -> str:
    return "x".join(str(n) for n in tensor.shape)
