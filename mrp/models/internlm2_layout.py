"""How InternLM2 names and lays out its weights, and how Llama does: names and rows, nothing else.

    llama_modules("model.layers.3.attention.wqkv")     # (...self_attn.q_proj, ...k_proj, ...v_proj)
    q, k, v = split_rows(fused, Heads(32, 8, 128))     # rows of weights, of biases, of the B of a LoRA

InternLM2 keeps the queries, keys and values of a layer in one matrix, key head by key head: the queries that share
the key head, then the key, then the value. Everything else is Llama under other names (InternLM/InternLM,
modeling_internlm2.py). `internlm2.py` converts whole models by it, `xtuner_*.py` adapters: in a LoRA on `wqkv` the
matrix A is that of q, k and v alike, and the rows of B are split as those of the weight.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LAYER = re.compile(r"(model\.layers\.\d+\.)(.+)")
FUSED = "attention.wqkv"
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
IN_LAYER = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OUTSIDE = {"model.tok_embeddings": "model.embed_tokens", "model.norm": "model.norm", "output": "lm_head"}

_IN_LAYER_BACK = {llama: own for own, llama in IN_LAYER.items()}
_OUTSIDE_BACK = {llama: own for own, llama in OUTSIDE.items()}


@dataclass(frozen=True)
class Heads:
    """The attention heads of a model: `heads` queries share `kv_heads` keys and values of `head_dim` numbers each."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def queries_per_group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def rows(self) -> tuple[int, int, int]:
        """Rows of q, k and v."""
        return self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim

    @property
    def fused_rows(self) -> int:
        return sum(self.rows)

    def stretches(self) -> Iterator[tuple[int, int, int]]:
        """(part, first, end) of the fused rows in order; part 0, 1, 2 is q, k, v, each filled from its top down."""
        at = 0
        for _ in range(self.kv_heads):
            for part, count in enumerate((self.queries_per_group, 1, 1)):
                yield part, at, at + count * self.head_dim
                at += count * self.head_dim


def heads_of(config: dict[str, Any]) -> Heads:
    """The heads of a config.json of either kind. `KeyError` where a number is missing."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return Heads(heads, config.get("num_key_value_heads") or heads, head_dim)


def llama_modules(module: str) -> tuple[str, ...]:
    """Llama's names of an InternLM2 module: three for `wqkv` (q, k, v), else one; none if it is no InternLM2 module.

    >>> llama_modules("model.layers.0.feed_forward.w2")
    ('model.layers.0.mlp.down_proj',)
    """
    if found := LAYER.fullmatch(module):
        layer, inner = found.groups()
        if inner == FUSED:
            return tuple(layer + name for name in QKV)
        return (layer + IN_LAYER[inner],) if inner in IN_LAYER else ()
    return (OUTSIDE[module],) if module in OUTSIDE else ()


def internlm2_module(module: str) -> str:
    """InternLM2's name of a Llama module (that of `wqkv` for q, k and v); "" if it is no Llama module.

    >>> internlm2_module("model.layers.0.self_attn.k_proj")
    'model.layers.0.attention.wqkv'
    """
    if found := LAYER.fullmatch(module):
        layer, inner = found.groups()
        own = FUSED if inner in QKV else _IN_LAYER_BACK.get(inner)
        return layer + own if own else ""
    return _OUTSIDE_BACK.get(module, "")


def split_rows(fused: Any, heads: Heads) -> tuple[Any, Any, Any]:
    """q, k and v of a fused tensor (fused_rows, ...), of torch or numpy; copies, so each is contiguous."""
    groups = fused.reshape(heads.kv_heads, heads.queries_per_group + 2, heads.head_dim, *fused.shape[1:])
    queries, rest = heads.queries_per_group, fused.shape[1:]
    q = groups[:, :queries].reshape(heads.rows[0], *rest)
    k = groups[:, queries].reshape(heads.rows[1], *rest)
    v = groups[:, queries + 1].reshape(heads.rows[2], *rest)
    return q, k, v


def join_rows(q: Any, k: Any, v: Any, heads: Heads) -> Any:
    """The fused torch tensor (fused_rows, ...) of q, k and v: `split_rows` undone, bit for bit."""
    import torch

    per_group = [part.reshape(heads.kv_heads, -1, heads.head_dim, *part.shape[1:]) for part in (q, k, v)]
    return torch.cat(per_group, dim=1).reshape(heads.fused_rows, *q.shape[1:])
