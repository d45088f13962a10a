"""Whether a model and a machine can take the fast path; if not, why.

reason = why_not(model, options, on)      # "" if they can
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from mrp.config import TrainOptions
from mrp.train.fast.linear import ADAPTER, base_of, is_4bit

FAMILIES = ("llama", "mistral", "qwen2")
FIXED_ROPES = ("default", "linear", "llama3", "yarn")  # angles that do not hang on the length of the input
PROJECTIONS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
AMPERE = (8, 0)  # the first GPUs with bf16 and flash attention


def why_not(model: Any, options: TrainOptions, device: str) -> str:
    """Why the fast path cannot train this model here; empty if it can."""
    return machine_lacks(device) or model_lacks(model, options)


def machine_lacks(device: str) -> str:
    """What this machine lacks for the fast path."""
    if device != "cuda":
        return "there is no CUDA GPU"
    if torch.cuda.get_device_capability() < AMPERE:
        return f"{torch.cuda.get_device_name()} is older than Ampere"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is missing"
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return f"torch {torch.__version__} has no attention for rows of several samples"
    return ""


def model_lacks(model: Any, options: TrainOptions) -> str:
    """What this model has that the fast path cannot compute."""
    if options.method != "lora":
        return "the fast path trains LoRA only"
    inner = model.get_base_model()
    config = inner.config
    if config.model_type not in FAMILIES:
        return f"the fast path knows {', '.join(FAMILIES)}, not {config.model_type}"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    reasons = {
        f"rotary positions of the kind {rope!r}": rope not in FIXED_ROPES,
        f"the activation {config.hidden_act!r}": config.hidden_act not in ("silu", "swish"),
        "dropout in attention": bool(getattr(config, "attention_dropout", 0)),
        "a sliding window": _window(config) < options.max_tokens,
        f"heads of {_head_size(config)} numbers, not a multiple of 8 up to 256": _head_size(config) % 8 != 0
        or _head_size(config) > 256,
        "a head with a bias": getattr(inner.get_output_embeddings(), "bias", None) is not None,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    return f"the model has {', '.join(found)}" if found else _layers_lack(inner.model.layers)


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _window(config: Any) -> float:
    window = getattr(config, "sliding_window", None)
    return window if window and getattr(config, "use_sliding_window", True) else float("inf")


def _layers_lack(layers: Any) -> str:
    shapes = set()
    for layer in layers:
        for part, names in PROJECTIONS.items():
            for name in names:
                projection = getattr(getattr(layer, part), name, None)
                if projection is None:
                    return f"a block has no {part}.{name}"
                if ADAPTER not in getattr(projection, "lora_A", {}) or getattr(projection, "use_dora", {}).get(ADAPTER):
                    return f"{part}.{name} carries no plain LoRA"
                shapes.add((is_4bit(projection), base_of(projection).weight.dtype if not is_4bit(projection) else None))
    return "some linear layers are in 4 bit and some are not" if len({four for four, _ in shapes}) > 1 else ""
