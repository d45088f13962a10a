"""A base model and its tokenizer from a folder in Hugging Face format. No code of the folder runs (law 9).

tokenizer = load_tokenizer(folder)
model = load_model(folder, hardware())
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrp.errors import InputError, need_extra
from mrp.models.bases import refuse_internlm2

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Hardware:
    """Where the model runs, and in which numbers."""

    device: str  # "cuda" or "cpu"
    weights: torch.dtype  # of the frozen base
    autocast: torch.dtype | None  # of matmuls; None: as the weights are

    @property
    def precision(self) -> str:
        """For the record: "bf16 autocast over fp32 LoRA, base in float32" and the like."""
        base = str(self.weights).removeprefix("torch.")
        if self.autocast is None:
            return f"float32, base in {base}"
        return f"{str(self.autocast).removeprefix('torch.')} autocast over float32 LoRA, base in {base}"

    def autocast_context(self) -> Any:
        import torch

        return torch.autocast(self.device, dtype=self.autocast, enabled=self.autocast is not None)


def hardware(precision: str = "auto") -> Hardware:
    """This machine's device and number formats; `precision` "bf16" or "fp32" insists.

    Raises `InputError` if bf16 is asked for and the hardware has none.
    """
    # Memory in segments that grow: a 7B pass of 4096 tokens reserves 0.65 GiB more than it needs, else 0.95.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    torch = _torch()
    cuda = torch.cuda.is_available()
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else _cpu_has_bf16()
    if precision == "bf16" and not has_bf16:
        raise InputError("this hardware has no bf16", "train.precision", "set train.precision: auto or fp32")
    device = "cuda" if cuda else "cpu"
    if precision == "fp32" or not has_bf16:
        return Hardware(device, torch.float32, None)
    return Hardware(device, torch.bfloat16, torch.bfloat16)


def _cpu_has_bf16() -> bool:
    import torch

    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a base or merged folder; `InputError` if it has none that loads."""
    refuse_internlm2(folder)
    tokenizer = _transformers().AutoTokenizer  # without torch too: a server that has another behind it needs no more
    try:
        return tokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "put the tokenizer files of the base model into the folder (tokenizer.json, tokenizer_config.json)"
        raise InputError(f"the tokenizer cannot be loaded: {_first_line(error)}", str(folder), fix) from error


def load_model(folder: Path, on: Hardware, bits: int = 16) -> Any:
    """The causal language model in `folder`, frozen, in evaluation mode, on `on.device` with `on.weights`.

    `bits` 4: the blocks' linear layers in NF4 with double quantisation (Dettmers et al. 2023, arXiv 2305.14314); 8: in
    LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339). Head and embedding stay as they are; `SetupError` if
    bitsandbytes is missing.
    """
    refuse_internlm2(folder)
    _torch()
    import torch
    import transformers
    from safetensors import SafetensorError

    more = {"quantization_config": _quantised(bits, on.weights)} if bits != 16 else {}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=on.weights,
            device_map={"": on.device} if on.device != "cpu" or more else None,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            **more,
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        fix = "check the folder: config.json, whole *.safetensors, a model type that transformers knows by itself"
        raise InputError(f"the model cannot be loaded: {_first_line(error)}", str(folder), fix) from error
    model.requires_grad_(False)
    return model.eval()


def _quantised(bits: int, compute: torch.dtype) -> Any:
    """How transformers is told of bitsandbytes' 8 or 4 bit."""
    import transformers

    try:
        import bitsandbytes  # type: ignore[import-not-found, import-untyped]  # noqa: F401
    except ImportError as error:
        raise need_extra("gpu", "bitsandbytes") from error
    if bits == 8:
        # it casts what comes in to float16 at each product, and says so each time
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def set_threads(threads: int) -> int:
    """CPU threads for torch (0: its default); returns how many are used."""
    torch = _torch()
    if threads:
        torch.set_num_threads(threads)
    return int(torch.get_num_threads())


def _torch() -> Any:
    _transformers()
    try:
        import torch
    except ImportError as error:
        raise need_extra("train", error.name or "torch") from error
    return torch


def _transformers() -> Any:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        import transformers
    except ImportError as error:
        raise need_extra("train", error.name or "transformers") from error
    return transformers


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def template_text(path: Path) -> str:
    """The chat template in a file."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the chat template cannot be read: {error}", str(path), "check --template") from None
