"""The functions of `pointwise.py` as Triton kernels; their docstrings there say what each computes.

Each reads its inputs once and writes its outputs once. Features lie in one row of memory; a program takes one token,
or a block of one. On a machine without a GPU they run under TRITON_INTERPRET=1 (tests).
"""

# ruff: noqa: N803  (Triton's compile-time arguments are written large)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-not-found, import-untyped"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from mrp.train.fast.pointwise import Dropout

WIDE_BLOCK = 2048  # features a program of the MLP kernels takes
PLAIN_INTEGERS = ["place", "first_token", "threshold"]  # no kernel of its own for the values 1 or 16


@triton.jit
def _mix(value):
    value = value ^ (value >> 16)
    value = value * 0x7FEB352D
    value = value ^ (value >> 15)
    value = value * 0x846CA68B
    return value ^ (value >> 16)


@triton.jit
def _multiplier(seed, place, first_token, row, column, features, threshold, factor):
    key = _mix((tl.load(seed) + place.to(tl.int64) * 0x9E3779B9).to(tl.uint32))
    index = ((row + first_token) * features + column).to(tl.uint32)
    return tl.where(_mix(_mix(index) ^ key) >= threshold.to(tl.uint32), factor, 0.0)


@triton.jit(do_not_specialize=PLAIN_INTEGERS)
def _norm(
    x, delta, weight, stream, out, out_dropped, features, eps, seed, place, first_token, threshold, factor,
    HAS_DELTA: tl.constexpr, HAS_DROP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < features
    at = row * features + column
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        value += tl.load(delta + at, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(stream.dtype.element_ty)
        tl.store(stream + at, rounded, mask=inside)
        value = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value) / features + eps)
    y = value * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, y, mask=inside)
    if HAS_DROP:
        y *= _multiplier(seed, place, first_token, row, column, features, threshold, factor)
        tl.store(out_dropped + at, y, mask=inside)


@triton.jit(do_not_specialize=PLAIN_INTEGERS)
def _norm_backward(
    grad, lora, x, weight, residual, out, features, eps, seed, place, first_token, threshold, factor,
    HAS_RESIDUAL: tl.constexpr, HAS_DROP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < features
    at = row * features + column
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_DROP:
        more = tl.load(lora + at, mask=inside, other=0.0).to(tl.float32)
        total += more * _multiplier(seed, place, first_token, row, column, features, threshold, factor)
    scale = tl.rsqrt(tl.sum(value * value) / features + eps)
    weighted = total * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    hat = value * scale
    result = scale * (weighted - hat * (tl.sum(weighted * hat) / features))
    if HAS_RESIDUAL:
        result += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, result, mask=inside)


@triton.jit(do_not_specialize=PLAIN_INTEGERS)
def _swiglu(
    both, out, out_dropped, features, seed, place, first_token, threshold, factor,
    HAS_DROP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < features
    at = row * 2 * features + column
    gate = tl.load(both + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + at + features, mask=inside, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(out + row * features + column, y, mask=inside)
    if HAS_DROP:
        y *= _multiplier(seed, place, first_token, row, column, features, threshold, factor)
        tl.store(out_dropped + row * features + column, y, mask=inside)


@triton.jit(do_not_specialize=PLAIN_INTEGERS)
def _swiglu_backward(
    both, grad, lora, again, features, seed, place, first_token, threshold, factor,
    HAS_DROP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < features
    at, narrow = row * 2 * features + column, row * features + column
    gate = tl.load(both + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + at + features, mask=inside, other=0.0).to(tl.float32)
    total = tl.load(grad + narrow, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    y = gate * sigmoid * up
    if HAS_DROP:
        mask = _multiplier(seed, place, first_token, row, column, features, threshold, factor)
        total += tl.load(lora + narrow, mask=inside, other=0.0).to(tl.float32) * mask
        y *= mask
    tl.store(again + narrow, y, mask=inside)
    tl.store(both + at, total * up * sigmoid * (1 + gate * (1 - sigmoid)), mask=inside)
    tl.store(both + at + features, total * gate * sigmoid, mask=inside)


@triton.jit(do_not_specialize=PLAIN_INTEGERS)
def _dropped(
    x, lora, out, features, seed, place, first_token, threshold, factor, ADD: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < features
    at = row * features + column
    mask = _multiplier(seed, place, first_token, row, column, features, threshold, factor)
    if ADD:
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(lora + at, mask=inside, other=0.0).to(tl.float32) * mask
    else:
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * mask
    tl.store(out + at, value, mask=inside)


@triton.jit
def _rotate(
    source, cos, sin, out, source_stride, out_stride, out_first, turned, heads, size, sign,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head, place = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    half = size // 2
    inside = (head < heads) & (place < half)
    here = source + row * source_stride + head * size + place
    there = out + row * out_stride + (head + out_first) * size + place
    first = tl.load(here, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(here + half, mask=inside, other=0.0).to(tl.float32)
    angles = row * half + place
    c = tl.load(cos + angles, mask=place < half, other=1.0).to(tl.float32)
    s = tl.load(sin + angles, mask=place < half, other=0.0).to(tl.float32) * sign
    turn = head < turned
    tl.store(there, tl.where(turn, first * c - second * s, first), mask=inside)
    tl.store(there + half, tl.where(turn, second * c + first * s, second), mask=inside)


@triton.jit
def _cross_entropy(logits, stride, target, weight, losses, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    here = logits + row * stride
    wanted = tl.load(target + row)
    peak = -float("inf")
    total = 0.0
    for start in range(0, VOCABULARY, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(here + column, mask=column < VOCABULARY, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(value))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(value - higher))
        peak = higher
    normalizer = peak + tl.log(total)
    chosen = tl.load(here + tl.maximum(wanted, 0)).to(tl.float32)
    tl.store(losses + row, tl.where(wanted >= 0, normalizer - chosen, 0.0))
    factor = tl.where(wanted >= 0, tl.load(weight + row), 0.0)
    tl.debug_barrier()  # the chosen logit is read before any thread overwrites it
    for start in range(0, VOCABULARY, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(here + column, mask=column < VOCABULARY, other=-float("inf")).to(tl.float32)
        grad = tl.exp(value - normalizer)
        tl.store(here + column, tl.where(column == wanted, grad - 1.0, grad) * factor, mask=column < VOCABULARY)


@triton.jit
def _dense4(
    packed, scales, scale_code, scale_scales, offset, code, out, count,
    GROUP: tl.constexpr, SECOND: tl.constexpr, NESTED: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """NF4 to 16 bit: each byte holds two numbers, the first in its upper half; a scale for each GROUP numbers."""
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    live = group < count
    if NESTED:
        number = tl.load(scales + group, mask=live, other=0).to(tl.int32)
        scale = tl.load(scale_code + number) * tl.load(scale_scales + group // SECOND, mask=live, other=0.0)
        scale += tl.load(offset)
    else:
        scale = tl.load(scales + group, mask=live, other=0.0)
    place = group[:, None] * (GROUP // 2) + tl.arange(0, GROUP // 2)[None, :]
    byte = tl.load(packed + place, mask=live[:, None], other=0).to(tl.int32)
    first = tl.load(code + (byte >> 4)) * scale[:, None]
    second = tl.load(code + (byte & 15)) * scale[:, None]
    both = tl.reshape(tl.join(first, second), (GROUPS, GROUP))
    at = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    tl.store(out + at, both, mask=live[:, None])


def _drop_arguments(drop: Dropout | None, stand_in: torch.Tensor) -> tuple[Any, ...]:
    """The last arguments of a kernel that may drop; without dropout they are not used."""
    if drop is None:
        return stand_in, 0, 0, 0, 0.0
    return drop.seed, drop.place, drop.first_token, drop.threshold, drop.factor


def _warps(block: int) -> int:
    return 4 if block <= 2048 else 8


def dropped(x: torch.Tensor, drop: Dropout) -> torch.Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    grid = (x.shape[0], triton.cdiv(x.shape[1], WIDE_BLOCK))
    _dropped[grid](x, x, out, x.shape[1], *_drop_arguments(drop, x), ADD=False, BLOCK=WIDE_BLOCK)
    return out


def add_dropped(x: torch.Tensor, lora: torch.Tensor, drop: Dropout) -> torch.Tensor:
    grid = (x.shape[0], triton.cdiv(x.shape[1], WIDE_BLOCK))
    _dropped[grid](x, lora, x, x.shape[1], *_drop_arguments(drop, x), ADD=True, BLOCK=WIDE_BLOCK)
    return x


def norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float, drop: Dropout | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    out = torch.empty_like(x)
    out_dropped = out if drop is None else torch.empty_like(x)
    stream = x if delta is None else torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    _norm[(x.shape[0],)](
        x, x if delta is None else delta, weight, stream, out, out_dropped, x.shape[1], eps, *_drop_arguments(drop, x),
        HAS_DELTA=delta is not None, HAS_DROP=drop is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return stream, out, out_dropped


def norm_backward(
    grad: torch.Tensor,
    lora: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None,
    drop: Dropout | None,
) -> torch.Tensor:
    out = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    _norm_backward[(x.shape[0],)](
        grad, x if lora is None else lora, x, weight, x if residual is None else residual, out, x.shape[1], eps,
        *_drop_arguments(drop, x),
        HAS_RESIDUAL=residual is not None, HAS_DROP=lora is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return out


def swiglu(both: torch.Tensor, drop: Dropout | None) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, features = both.shape[0], both.shape[1] // 2
    out = torch.empty(tokens, features, dtype=both.dtype, device=both.device)
    out_dropped = out if drop is None else torch.empty_like(out)
    grid = (tokens, triton.cdiv(features, WIDE_BLOCK))
    _swiglu[grid](
        both, out, out_dropped, features, *_drop_arguments(drop, both), HAS_DROP=drop is not None, BLOCK=WIDE_BLOCK
    )
    return out, out_dropped


def swiglu_backward(
    both: torch.Tensor, grad: torch.Tensor, lora: torch.Tensor | None, drop: Dropout | None
) -> torch.Tensor:
    tokens, features = grad.shape
    again = torch.empty_like(grad)
    grid = (tokens, triton.cdiv(features, WIDE_BLOCK))
    _swiglu_backward[grid](
        both, grad, grad if lora is None else lora, again, features, *_drop_arguments(drop, both),
        HAS_DROP=lora is not None, BLOCK=WIDE_BLOCK,
    )  # fmt: skip
    return again


def _turn(
    source: torch.Tensor, out: torch.Tensor, first: int, turned: int, cos: torch.Tensor, sin: torch.Tensor, sign: float
) -> None:
    tokens, heads, size = source.shape
    _rotate[(tokens,)](
        source, cos, sin, out, source.stride(0), out.stride(0), first, turned, heads, size, sign,
        HEADS=triton.next_power_of_2(heads), HALF=triton.next_power_of_2(size // 2),
    )  # fmt: skip


def rotate(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int, back: bool = False) -> torch.Tensor:
    _turn(qkv[:, :heads], qkv, 0, heads, cos, sin, -1.0 if back else 1.0)
    return qkv


def rotate_back(
    dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    heads = [part.shape[1] for part in (dq, dk, dv)]
    out = dq.new_empty(dq.shape[0], sum(heads), dq.shape[2])
    first = 0
    for part, count, turned in zip((dq, dk, dv), heads, (heads[0], heads[1], 0), strict=True):
        _turn(part.contiguous(), out, first, turned, cos, sin, -1.0)
        first += count
    return out


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    losses = torch.empty(len(target), dtype=torch.float32, device=logits.device)
    _cross_entropy[(len(target),)](
        logits, logits.stride(0), target, weight, losses, VOCABULARY=logits.shape[1], BLOCK=4096, num_warps=8
    )
    return losses


def dense4(
    packed: torch.Tensor, scales: torch.Tensor, nested: tuple[torch.Tensor, ...] | None, second: int,
    code: torch.Tensor, group: int, out: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """NF4 numbers as 16 bit in `out`. `nested`: (code, scales, offset) of 8-bit scales, a scale for `second` each."""
    count = out.numel() // group
    scale_code, scale_scales, offset = nested or (code, code, code)
    groups = 32
    _dense4[(triton.cdiv(count, groups),)](
        packed, scales, scale_code, scale_scales, offset, code, out, count,
        GROUP=group, SECOND=second, NESTED=nested is not None, GROUPS=groups,
    )  # fmt: skip
    return out
