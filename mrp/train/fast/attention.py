"""Attention within documents, for tokens that lie end to end in one line.

    *inputs, out = attend(heads, 16, 8, ends, longest, scaling, keep_graph=True)

On CUDA PyTorch's own `varlen_attn` (flash attention; nothing to build), elsewhere sdpa with a block mask.
"""

from __future__ import annotations

import inspect
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812


@cache
def _takes_gqa() -> bool:
    """torch 2.13 wants to be told of grouped heads, 2.11 sees them."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def attend(
    heads: torch.Tensor, queries: int, keys: int, ends: torch.Tensor, longest: int, scaling: float, keep_graph: bool
) -> tuple[torch.Tensor, ...]:
    """(q, k, v, out) from heads (T, queries + 2 keys, D); with `keep_graph` autograd knows how out came about."""
    q, k, v = (part.detach().requires_grad_(keep_graph) for part in heads.split([queries, keys, keys], 1))
    with torch.set_grad_enabled(keep_graph):
        out = _flash(q, k, v, ends, longest, scaling) if heads.is_cuda else _masked(q, k, v, ends, scaling)
    return q, k, v, out


def _flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor, longest: int, scaling: float
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    more = {"enable_gqa": True} if _takes_gqa() and q.shape[1] != k.shape[1] else {}
    return varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0), **more)


def _masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor, scaling: float) -> torch.Tensor:
    tokens = len(q)
    document = torch.bucketize(torch.arange(tokens, device=q.device), ends[1:].long(), right=True)
    seen = (document[:, None] == document) & torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril()
    shared = q.shape[1] // k.shape[1]
    k, v = (part.repeat_interleave(shared, 1) for part in (k, v))
    q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling)[0].transpose(0, 1)
