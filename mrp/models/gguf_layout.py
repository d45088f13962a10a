"""How a model of Hugging Face's layout is called and laid out in a GGUF file: llama.cpp's names, numbers and rows.

    layout = gguf_layout(config, "model/config.json")     # InputError for an architecture that is not written
    layout.fields                                          # "llama.block_count": 30, ...
    plan_tensors(layout, read_weights(folder), folder)     # what goes into the file, in order

Llama, Qwen2 and Qwen3 are written (an InternLM2 arrives as Llama). llama.cpp turns the pairs (2j, 2j + 1) of a head
in the `llama` architecture, transformers the halves (j, j + d/2); so the rows of q and k are put in another order
there, and only there: `qwen2` and `qwen3` turn halves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrp.errors import InputError, MrpError, nearest, raise_all
from mrp.models.shards import FLOATS, StoredTensor

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # model types of transformers; llama.cpp calls them the same
IN_PAIRS = ("llama",)  # architectures whose q and k rows llama.cpp wants in pairs
MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
OPTIONAL = ("bias",)
BUFFERS = ("rotary_emb.inv_freq",)  # computed anew from the config; old checkpoints carry it


@dataclass(frozen=True)
class Layout:
    """What a config says, in GGUF's words."""

    architecture: str
    fields: dict[str, Any]
    layers: int
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    is_tied: bool
    rope_factors: list[float] = field(default_factory=list)  # of each pair: llama.cpp divides its frequency by it
    notes: list[str] = field(default_factory=list)  # what the file cannot say, for people

    def gguf_name(self, name: str) -> str:
        """The name of a layer's or module's tensor ("model.layers.0.mlp.up_proj.weight") in GGUF; "" if unknown."""
        module, _, leaf = name.rpartition(".")
        if module in OUTER:
            return f"{OUTER[module]}.{leaf}"
        parts = module.split(".", 3)
        if parts[:2] == ["model", "layers"] and len(parts) == 4 and parts[3] in MODULES:
            return f"blk.{parts[2]}.{MODULES[parts[3]]}.{leaf}"
        return ""

    def paired_heads(self, name: str) -> int:
        """Over how many heads the rows of this tensor are put in pairs; 0: they stay as they are."""
        if self.architecture not in IN_PAIRS:
            return 0
        for end, heads in (("self_attn.q_proj", self.heads), ("self_attn.k_proj", self.kv_heads)):
            if name.rpartition(".")[0].endswith(end):
                return heads
        return 0


@dataclass(frozen=True)
class Planned:
    """A tensor of the GGUF file: where its numbers lie, and how its rows are ordered."""

    name: str
    source: StoredTensor
    paired_heads: int = 0


# -- the config ----------------------------------------------------------------------------------------------------


def gguf_layout(config: dict[str, Any], where: str) -> Layout:
    """The layout of the model that a config (of transformers, as a dict) describes.

    Raises `InputError` with every trait that the file could not hold: another architecture, quantised weights,
    sliding windows, a kind of rotary scaling that llama.cpp does not compute.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        what = f"a model of type {kind!r} cannot be written as GGUF by this version, which writes {known}"
        fix = f"{nearest(str(kind), ARCHITECTURES)}; or export with --to hf and use llama.cpp's own converter"
        raise InputError(what, f"{where}: model_type", fix)
    raise_all(f"{where} cannot be written as GGUF", list(_faults(config, where)))
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    rope, factors, notes = _rope(config, head_dim, where)
    numbers = {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": hidden,
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": head_dim,
        **rope,
    }
    return Layout(
        architecture=kind,
        fields={f"{kind}.{key}": value for key, value in numbers.items()},
        layers=config["num_hidden_layers"],
        hidden=hidden,
        vocabulary=config["vocab_size"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        inner=config["intermediate_size"],
        is_tied=bool(config.get("tie_word_embeddings")),
        rope_factors=factors,
        notes=notes,
    )


def _faults(config: dict[str, Any], where: str) -> Iterator[MrpError]:
    numbers = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size")
    for key in (*numbers, "max_position_embeddings", "rms_norm_eps"):
        if not isinstance(config.get(key), int | float) or not config[key] > 0:
            yield InputError(f"{key} is {config.get(key)!r}", f"{where}: {key}", "copy config.json of the model anew")
    for key in ("quantization_config", "compression_config"):
        if config.get(key):
            method = config[key].get("quant_method", key) if isinstance(config[key], dict) else key
            fix = "export the full-precision model: take the unquantised base, and merge the adapter into it"
            yield InputError(f"the model is quantised ({method})", f"{where}: {key}", fix)
    if config.get("hidden_act", "silu") != "silu":
        what = f"hidden_act is {config['hidden_act']!r}, and llama.cpp computes this architecture with silu"
        yield InputError(what, f"{where}: hidden_act", "use the model with --to hf")
    if config.get("use_sliding_window"):
        what = "the model sees a sliding window only, which the GGUF architecture cannot say"
        yield InputError(what, f"{where}: use_sliding_window", "use the model with --to hf")


def rope_of(config: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """The rotary base, and the scaling in the words of transformers 5 ({} for none), from old words or new."""
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = said.get("rope_theta") or config.get("rope_theta") or 10000.0
    kind = said.get("rope_type", said.get("type", "default"))
    if kind == "default":
        return float(theta), {}
    return float(theta), {"rope_type": kind} | {k: v for k, v in said.items() if k not in ("rope_theta", "type")}


def _rope(config: dict[str, Any], head_dim: int, where: str) -> tuple[dict[str, Any], list[float], list[str]]:
    """Fields, factors of the frequencies, and notes."""
    theta, scaling = rope_of(config)
    kind, factor = scaling.get("rope_type", "default"), scaling.get("factor", 1.0)
    fields: dict[str, Any] = {"rope.freq_base": theta}
    if kind == "default":
        return fields, [], []
    if kind == "linear":
        return {**fields, "rope.scaling.type": "linear", "rope.scaling.factor": float(factor)}, [], []
    if kind == "dynamic":
        longest = config["max_position_embeddings"]
        note = (
            f"dynamic rotary scaling begins behind {longest:,} tokens and has no place in GGUF: up to there the file "
            "computes the same, and it says that its context ends there"
        )
        return fields, [], [note]
    if kind == "llama3":
        return fields, _llama3_factors(scaling, theta, head_dim), []
    what = f"rotary scaling {kind!r} cannot be written"
    fix = "default, linear, dynamic and llama3 can; use the model with --to hf, or llama.cpp's own converter"
    raise InputError(what, f"{where}: rope_scaling", fix)


def _llama3_factors(scaling: dict[str, Any], theta: float, head_dim: int) -> list[float]:
    """By how much each frequency is divided (Llama 3.1; transformers' `_compute_llama3_parameters`)."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    trained = scaling["original_max_position_embeddings"]
    factors = []
    for k in range(0, head_dim, 2):
        turns = trained / (2 * math.pi * theta ** (k / head_dim))  # full turns within the context of pre-training
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


# -- the weights ---------------------------------------------------------------------------------------------------


def plan_tensors(layout: Layout, weights: dict[str, StoredTensor], where: Path) -> list[Planned]:
    """The tensors of the file in the order of the model.

    Raises `InputError` with every weight that is missing, has another shape or number format, or has no place.
    """
    wanted = dict(expected_shapes(layout))
    optional = {name: shape for name, shape in _biases(layout) if name in weights}
    faults: list[MrpError] = []
    planned = []
    for name, shape in {**wanted, **optional}.items():
        tensor = weights.get(name)
        if tensor is None:
            fix = "copy the model anew; where its head is the embedding, config.json says tie_word_embeddings: true"
            faults.append(InputError(f"{name} is missing", str(where), fix))
        elif tensor.shape != shape:
            what = f"{name} has shape {list(tensor.shape)}, and config.json says {list(shape)}"
            faults.append(InputError(what, tensor.where, "copy the model anew"))
        elif tensor.dtype not in FLOATS:
            what = f"{name} is stored as {tensor.dtype}: the model is quantised"
            faults.append(InputError(what, tensor.where, "export the full-precision model"))
        else:
            planned.append(Planned(layout.gguf_name(name), tensor, layout.paired_heads(name)))
    ignored = ("lm_head.weight",) if layout.is_tied else ()  # transformers ties it, whatever is stored
    for name in sorted(weights.keys() - wanted.keys() - optional.keys() - set(ignored)):
        if not name.endswith(BUFFERS):
            what = f"{name} has no place in a GGUF of the architecture {layout.architecture}"
            faults.append(InputError(what, weights[name].where, "use the model with --to hf"))
    raise_all(f"{where.name} cannot be written as GGUF", faults)
    return planned


def expected_shapes(layout: Layout) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every weight that the model must have, in transformers' names."""
    hidden, queries, keys = layout.hidden, layout.heads * layout.head_dim, layout.kv_heads * layout.head_dim
    yield "model.embed_tokens.weight", (layout.vocabulary, hidden)
    for layer in range(layout.layers):
        at = f"model.layers.{layer}."
        yield f"{at}input_layernorm.weight", (hidden,)
        for part, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield f"{at}self_attn.{part}_proj.weight", (rows, hidden)
            if layout.architecture == "qwen2":
                yield f"{at}self_attn.{part}_proj.bias", (rows,)
        if layout.architecture == "qwen3":
            yield f"{at}self_attn.q_norm.weight", (layout.head_dim,)
            yield f"{at}self_attn.k_norm.weight", (layout.head_dim,)
        yield f"{at}self_attn.o_proj.weight", (hidden, queries)
        yield f"{at}post_attention_layernorm.weight", (hidden,)
        yield f"{at}mlp.gate_proj.weight", (layout.inner, hidden)
        yield f"{at}mlp.up_proj.weight", (layout.inner, hidden)
        yield f"{at}mlp.down_proj.weight", (hidden, layout.inner)
    yield "model.norm.weight", (hidden,)
    if not layout.is_tied:
        yield "lm_head.weight", (layout.vocabulary, hidden)


def _biases(layout: Layout) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Biases that a Llama may have (InternLM2's do): llama.cpp reads them where they are."""
    if layout.architecture != "llama":
        return
    for name, shape in expected_shapes(layout):
        if "_proj." in name:
            yield f"{name.removesuffix('weight')}bias", shape[:1]
