"""Attention of one new token a row, as Triton kernels: each row's keys and values lie where a table says.

    attend_step(query, key, value, table, slot, scale, window)         # (R, heads, size)

The table is one int64 vector on the GPU: R token ids, R numbers of kept tokens, then for each layer and row the address
of its keys, of its values, and the tokens for which there is room. A CUDA graph over these kernels stays true when a
storage grows, or another stream takes the row: only the numbers in the table change. The kept tokens of a row are
divided among programs, whose parts are then joined (Flash-Decoding, Dao et al. 2023). On a machine without a GPU the
kernels run under TRITON_INTERPRET=1 (tests).
"""

# ruff: noqa: N803  (Triton's compile-time arguments are written large)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-not-found, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 64  # kept tokens that a program looks at together
PROGRAMS = 256  # about as many as fill a GPU
PADDED = 16  # query heads of a group, at least: what a matrix product of Triton takes


@triton.jit(do_not_specialize=["slot"])
def _parts(
    query, key, value, table, tops, sums, parts, slot, scale,
    ROWS: tl.constexpr, KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    WINDOW: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(table + ROWS + row)
    entry = table + 2 * ROWS + (slot * ROWS + row) * 3
    keys = tl.multiple_of(tl.load(entry), 16).to(key.dtype)
    values = tl.multiple_of(tl.load(entry + 1), 16).to(value.dtype)
    base = head * tl.load(entry + 2) * SIZE
    feature, member = tl.arange(0, WIDTH), tl.arange(0, PADDED)
    wide, inside = feature < SIZE, member < GROUP
    heads = (row * KEY_HEADS + head) * GROUP + member
    q = tl.load(query + heads[:, None] * SIZE + feature[None], mask=inside[:, None] & wide[None], other=0.0)
    own_key = tl.load(key + (row * KEY_HEADS + head) * SIZE + feature, mask=wide, other=0.0)
    own_value = tl.load(value + (row * KEY_HEADS + head) * SIZE + feature, mask=wide, other=0.0)
    first = start * 0
    if WINDOW > 0:
        first = tl.maximum(start + 1 - WINDOW, 0)
    each = tl.cdiv(tl.cdiv(start - first, SPLITS), BLOCK) * BLOCK
    low = first + split * each
    high = tl.minimum(low + each, start)
    # The new token, which nobody else reads from memory, belongs to the first split, which also keeps it.
    is_first = split == 0
    tl.store(keys + base + start * SIZE + feature, own_key, mask=wide & is_first)
    tl.store(values + base + start * SIZE + feature, own_value, mask=wide & is_first)
    own_score = tl.sum(q.to(tl.float32) * own_key.to(tl.float32)[None], 1) * scale
    top = tl.where(is_first, own_score, float("-inf"))
    total = tl.where(is_first, 1.0, 0.0) + tl.zeros((PADDED,), tl.float32)
    found = tl.where(is_first, own_value.to(tl.float32)[None], 0.0) + tl.zeros((PADDED, WIDTH), tl.float32)
    at = low
    while at < high:
        token = at + tl.arange(0, BLOCK)
        near = token < high
        where = base + token[:, None] * SIZE + feature[None]
        k = tl.load(keys + where, mask=near[:, None] & wide[None], other=0.0)
        v = tl.load(values + where, mask=near[:, None] & wide[None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(near[None], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        fades = tl.exp(top - higher)
        weights = tl.exp(scores - higher[:, None])
        total = total * fades + tl.sum(weights, 1)
        found = found * fades[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        top = higher
        at += BLOCK
    place = heads * SPLITS + split
    tl.store(tops + place, top, mask=inside)
    tl.store(sums + place, total, mask=inside)
    tl.store(parts + place[:, None] * SIZE + feature[None], found, mask=inside[:, None] & wide[None])


@triton.jit
def _joined(tops, sums, parts, out, SIZE: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr):
    head = tl.program_id(0)
    split, feature = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
    wide = feature < SIZE
    top = tl.load(tops + head * SPLITS + split)
    shares = tl.exp(top - tl.max(top, 0))
    whole = tl.sum(shares * tl.load(sums + head * SPLITS + split), 0)
    where = (head * SPLITS + split)[:, None] * SIZE + feature[None]
    found = tl.sum(tl.load(parts + where, mask=wide[None], other=0.0) * shares[:, None], 0) / whole
    tl.store(out + head * SIZE + feature, found.to(out.dtype.element_ty), mask=wide)


def attend_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    table: torch.Tensor,
    slot: int,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """(R, heads, size) of queries (R, heads, size), after the new key and value (R, key heads, size), in the kept
    ones' number format, are kept too. `slot`: the layer's place in the table. `window`: tokens seen, new one too."""
    rows, heads, size = query.shape
    key_heads = key.shape[1]
    splits = min(32, max(2, triton.next_power_of_2(PROGRAMS // (rows * key_heads))))
    width = max(16, triton.next_power_of_2(size))
    tops, sums = (torch.empty(rows * heads * splits, device=query.device) for _ in range(2))
    parts = torch.empty(rows * heads * splits * size, device=query.device)
    out = torch.empty_like(query)
    group = heads // key_heads
    _parts[(rows, key_heads, splits)](
        query, key, value, table, tops, sums, parts, slot, size**-0.5 if scale is None else scale,
        ROWS=rows, KEY_HEADS=key_heads, GROUP=group, SIZE=size, WIDTH=width, WINDOW=window or 0, SPLITS=splits,
        BLOCK=BLOCK, PADDED=max(PADDED, triton.next_power_of_2(group)),
    )  # fmt: skip
    _joined[(rows * heads,)](tops, sums, parts, out, SIZE=size, WIDTH=width, SPLITS=splits)
    return out
