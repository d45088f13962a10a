"""The configs of an InternLM2 and of the Llama that computes the same, each made from the other.

    sizes = read_sizes(config, "src/config.json")        # InternLM2's or Llama's
    llama = llama_config(config, sizes, "src/config.json")

The architecture is Llama's (RMS norm, SwiGLU, rotary positions on halves, grouped keys), so every number has a place;
`bias` covers q, k, v and the output projection in both. Rotary scaling is none, linear or dynamic NTK, whose base
grows with the longest position seen, by the same formula in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrp.errors import InputError, MrpError, raise_all
from mrp.models.internlm2_layout import FUSED, Heads, heads_of, llama_modules

MODEL_TYPE, ARCHITECTURE = "internlm2", "InternLM2ForCausalLM"
CODE_FILES = ("configuration_internlm2.py", "modeling_internlm2.py", "tokenization_internlm2.py")
AUTO_MAP = {
    "AutoConfig": "configuration_internlm2.InternLM2Config",
    "AutoModel": "modeling_internlm2.InternLM2ForCausalLM",
    "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
}
NUMBERS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
SHARED = (
    *("hidden_act", "hidden_size", "initializer_range", "intermediate_size", "max_position_embeddings"),
    *("num_attention_heads", "num_hidden_layers", "num_key_value_heads", "pad_token_id", "bos_token_id"),
    *("eos_token_id", "pretraining_tp", "rms_norm_eps", "tie_word_embeddings", "use_cache", "vocab_size"),
)
# What InternLM2Config takes where its config.json is silent; Llama's own defaults differ.
DEFAULTS = {
    **{"hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 2048, "pad_token_id": 0},
    **{"bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "use_cache": True},
}
SCALINGS = ("linear", "dynamic")
DEFAULT_THETA = 10000


@dataclass(frozen=True)
class Sizes:
    """What decides the shapes of the weights."""

    hidden: int
    inner: int
    layers: int
    vocabulary: int
    heads: Heads
    has_bias: bool
    is_tied: bool

    def internlm2_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor in InternLM2's layout; a tied model has no `output`."""
        hidden, inner, fused = self.hidden, self.inner, self.heads.fused_rows
        shapes: dict[str, tuple[int, ...]] = {"model.tok_embeddings.weight": (self.vocabulary, hidden)}
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            queries = self.heads.rows[0]
            shapes[f"{at}attention.wqkv.weight"] = (fused, hidden)
            shapes[f"{at}attention.wo.weight"] = (hidden, queries)
            if self.has_bias:
                shapes[f"{at}attention.wqkv.bias"] = (fused,)
                shapes[f"{at}attention.wo.bias"] = (hidden,)
            shapes[f"{at}feed_forward.w1.weight"] = shapes[f"{at}feed_forward.w3.weight"] = (inner, hidden)
            shapes[f"{at}feed_forward.w2.weight"] = (hidden, inner)
            shapes[f"{at}attention_norm.weight"] = shapes[f"{at}ffn_norm.weight"] = (hidden,)
        shapes["model.norm.weight"] = (hidden,)
        return shapes if self.is_tied else shapes | {"output.weight": (self.vocabulary, hidden)}

    def llama_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor in Llama's layout; a tied model has no `lm_head`."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in self.internlm2_shapes().items():
            module, _, leaf = name.rpartition(".")
            rows = self.heads.rows if module.endswith(FUSED) else shape[:1]
            for target, count in zip(llama_modules(module), rows, strict=True):
                shapes[f"{target}.{leaf}"] = (count, *shape[1:])
        return shapes


def read_sizes(config: dict[str, Any], where: str) -> Sizes:
    """The sizes that a config.json of either kind gives. `InputError` with every number that is missing or unfit."""
    raise_all(f"{where} does not describe a model", list(_number_faults(config, where)))
    return Sizes(
        hidden=config["hidden_size"],
        inner=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        vocabulary=config["vocab_size"],
        heads=heads_of(config),
        # InternLM2Config takes a bias where the file does not say; every released file says.
        has_bias=bool(
            config.get("bias", True) if config.get("model_type") == MODEL_TYPE else config.get("attention_bias", False)
        ),
        is_tied=bool(config.get("tie_word_embeddings", False)),
    )


def _number_faults(config: dict[str, Any], where: str) -> Iterator[MrpError]:
    fix = "copy config.json of the model anew"
    unfit = False
    optional = [key for key in ("num_key_value_heads", "head_dim") if config.get(key) is not None]
    for key in (*NUMBERS, *optional):
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            unfit = True
            yield InputError(f"{key} is {value!r}, not a number above 0", f"{where}: {key}", fix)
    if unfit:
        return
    heads = heads_of(config)
    if heads.heads % heads.kv_heads:
        what = f"{heads.heads} attention heads cannot share {heads.kv_heads} key heads"
        yield InputError(what, f"{where}: num_key_value_heads", fix)
    if heads.heads * heads.head_dim != config["hidden_size"]:
        what = f"{heads.heads} heads do not fill the hidden size {config['hidden_size']}"
        yield InputError(what, f"{where}: num_attention_heads", fix)


# -- InternLM2 to Llama ----------------------------------------------------------------------------------------------


def llama_config(config: dict[str, Any], sizes: Sizes, where: str) -> dict[str, Any]:
    """The config.json of the Llama that computes what this InternLM2 computes."""
    kind = config.get("architectures") or [ARCHITECTURE]
    if kind != [ARCHITECTURE]:
        what = f"it is {', '.join(map(str, kind))}, not a model that writes text ({ARCHITECTURE})"
        raise InputError(what, f"{where}: architectures", "take the chat or base model of the family")
    theta, scaling = _rope(config, where)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **_shared(config, DEFAULTS | {"num_key_value_heads": sizes.heads.heads}),
        "attention_bias": sizes.has_bias,
        "attention_dropout": 0.0,
        "dtype": _dtype(config),
        "head_dim": sizes.heads.head_dim,
        "mlp_bias": False,
        # transformers 5 reads the first of these; version 4 (in older servers) the other two.
        "rope_parameters": {"rope_type": "default", "rope_theta": theta} | scaling,
        "rope_scaling": scaling or None,
        "rope_theta": theta,
    }


def _shared(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {key: config.get(key, defaults.get(key)) for key in SHARED if key in config or key in defaults}


def _dtype(config: dict[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")


def _rope(config: dict[str, Any], where: str) -> tuple[float, dict[str, Any]]:
    """The rotary base, and its scaling in the words of transformers 5 (nothing for none), from old words or new.

    Raises `InputError` for a kind of scaling that InternLM2 does not have.
    """
    key = next((key for key in ("rope_parameters", "rope_scaling") if config.get(key)), "rope_scaling")
    said = config.get(key) or {}
    if not isinstance(said, dict):
        raise InputError(f"{key} is {said!r}", f"{where}: {key}", "copy config.json of the model anew")
    theta = said.get("rope_theta") or config.get("rope_theta") or DEFAULT_THETA
    kind, factor = said.get("rope_type", said.get("type", "default")), said.get("factor")
    if kind == "default":
        return theta, {}
    if kind not in SCALINGS or not isinstance(factor, int | float) or not factor >= 1:
        what = f"rotary scaling {kind!r} with factor {factor!r} is none that InternLM2 has"
        raise InputError(what, f"{where}: {key}", f"known: {' and '.join(SCALINGS)}, with a factor of 1 or more")
    return theta, {"rope_type": kind, "factor": float(factor)}


# -- Llama to InternLM2 ----------------------------------------------------------------------------------------------


def internlm2_config(config: dict[str, Any], sizes: Sizes, where: str) -> dict[str, Any]:
    """The config.json, as released, of the InternLM2 that computes what this Llama computes.

    Raises `InputError` with every trait of the Llama that InternLM2 lacks.
    """
    raise_all(f"{where}: InternLM2 cannot compute this model", list(_llama_faults(config, where)))
    theta, scaling = _rope(config, where)
    released = {
        "architectures": [ARCHITECTURE],
        "attn_implementation": "eager",
        "auto_map": AUTO_MAP,
        "bias": sizes.has_bias,
        "model_type": MODEL_TYPE,
        **_shared(config, {"num_key_value_heads": sizes.heads.heads}),
        "rope_scaling": {"type": scaling["rope_type"], "factor": scaling["factor"]} if scaling else None,
        "rope_theta": theta,
        "torch_dtype": _dtype(config),
    }
    return dict(sorted(released.items()))


def _llama_faults(config: dict[str, Any], where: str) -> Iterator[MrpError]:
    if config.get("model_type") != "llama":
        what = f"the model is of type {config.get('model_type')!r}, not 'llama'"
        fix = "only a model of Llama's architecture has a form in InternLM2's layout"
        yield InputError(what, f"{where}: model_type", fix)
        return
    fix = "InternLM2's layout has no place for it: use the model as it is"
    if config.get("mlp_bias"):
        yield InputError("the feed-forward layers have biases", f"{where}: mlp_bias", fix)


# -- generation ------------------------------------------------------------------------------------------------------


def generation_config(given: Any, config: dict[str, Any], stop_ids: list[int]) -> dict[str, Any]:
    """generation_config.json of either kind: what was there, with every id that ends a reply among the stops."""
    kept = dict(given) if isinstance(given, dict) else {}
    eos = kept.get("eos_token_id")
    known = [eos] if isinstance(eos, int) else list(eos or [])
    special = {key: config[key] for key in ("bos_token_id", "pad_token_id") if isinstance(config.get(key), int)}
    return {**special, **kept, "eos_token_id": list(dict.fromkeys([*known, *stop_ids]))}


def code_files_note(folder: Path) -> str:
    """What a person who loads the result through its remote code must add."""
    return (
        f"{folder.name} names the code files of the released repository ({', '.join(CODE_FILES)}), and holds none: "
        "XTuner and plain transformers want them copied from there, LMDeploy does not"
    )
