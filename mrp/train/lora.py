"""The adapter: LoRA on all linear layers of the blocks, made and kept in PEFT's own format.

Source of the method: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685);
"all linear layers": Dettmers et al. 2023, "QLoRA" (arXiv 2305.14314).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mrp.config import TrainOptions
from mrp.errors import InputError
from mrp.files import replacing_folder
from mrp.train.checkpoint import disk_errors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names


def add_adapter(model: Any, options: TrainOptions, seed: int) -> Any:
    """`model` with a new LoRA adapter (fp32, or bf16 with `adapter_bits: 16`), whose start depends on the seed alone.

    Raises `InputError` for a model without linear layers that LoRA could go beside.
    """
    import peft

    torch.manual_seed(seed % 2**63)
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        with _no_advice_to_peft():
            wrapped = _without_casts(peft.get_peft_model(model, config, autocast_adapter_dtype=True))
    except ValueError as error:
        raise InputError(f"LoRA finds no layers in this model: {error}", "base", "take another base model") from error
    for parameter in adapter_parameters(wrapped).values():
        parameter.data = parameter.data.to(torch.float32 if options.adapter_bits == 32 else torch.bfloat16)
    return wrapped


def load_adapter(model: Any, folder: Path) -> Any:
    """`model` with the trained adapter in `folder`, frozen; fp32 adapter weights."""
    import peft

    check_adapter_folder(folder)
    try:
        with _no_advice_to_peft():
            loaded = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=False, autocast_adapter_dtype=True)
    except (RuntimeError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [""])[0]
        fix = "use the base model that the adapter was trained on (see its run.json)"
        raise InputError(f"the adapter does not fit the base model: {first}", str(folder), fix) from error
    return _without_casts(loaded.eval())


@contextmanager
def _no_advice_to_peft() -> Iterator[None]:
    """Without the warning that PEFT (0.21) uses a name which transformers (5.23) is going to drop: nobody here can."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield


def _without_casts(model: Any) -> Any:
    """Spare LoRA layers a copy of their input: PEFT casts it to fp32 and autocast at once back (a tenth of a CPU step).

    Without autocast base and adapter are both fp32, so there is nothing to cast either.
    """
    for layer in model.modules():
        if hasattr(layer, "cast_input_dtype_enabled"):
            layer.cast_input_dtype_enabled = False
    return model


def check_adapter_folder(folder: Path) -> None:
    """`InputError` unless `folder` holds an adapter in PEFT's format."""
    missing = [n for n in (CONFIG, WEIGHTS) if not (folder / n).is_file()]
    if missing:
        raise InputError(f"no trained adapter here: {', '.join(missing)} missing", str(folder), "run `mrp train RUN`")


def adapter_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """The trained parameters by name, in a fixed order."""
    return {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}


def save_adapter(model: Any, folder: Path, base: str, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write the adapter whole or not at all. `base` is what PEFT's config names as base model.

    `weights` are its values by parameter where those in `model` are sharded. Raises `SetupError` if the disk is full.
    """
    with replacing_folder(folder) as part, disk_errors():
        for config in model.peft_config.values():
            config.base_model_name_or_path = base
        model.save_pretrained(str(part), safe_serialization=True, save_embedding_layers=False, state_dict=weights)
        (part / "README.md").unlink(missing_ok=True)  # PEFT's card template says nothing about this adapter
