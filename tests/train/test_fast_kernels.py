"""The Triton kernels compute what `pointwise` does, on a machine without a GPU: under Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
from interpreter import interpreted, run_interpreted

pytest.importorskip("torch")
import torch

from mrp.train.fast import pointwise as plain
from mrp.train.fast.pointwise import Dropout


def test_all_of_this_file_under_the_interpreter() -> None:
    run_interpreted(__file__)


def made(*size: int, seed: int = 0) -> Any:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def drop(first: int = 0) -> Dropout:
    return Dropout(torch.tensor([2**31 + 12345]), 3, 0.3, 1.7, first)


def kernels() -> Any:
    from mrp.train.fast import kernels

    return kernels


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@interpreted
@pytest.mark.parametrize("share", [None, 0.3])
@pytest.mark.parametrize("has_delta", [False, True])
def test_norm(share: float | None, has_delta: bool) -> None:
    x, delta, weight = made(5, 40), made(5, 40, seed=1) if has_delta else None, made(40, seed=2)
    chosen = drop() if share else None
    given = x, delta, weight, 1e-5, chosen
    for found, expected in zip(kernels().norm(*given), plain.norm(*given), strict=True):
        same(found, expected)


@interpreted
@pytest.mark.parametrize("share", [None, 0.3])
@pytest.mark.parametrize("residual", [False, True])
def test_norm_backward(share: float | None, residual: bool) -> None:
    chosen = drop() if share else None
    given = (made(5, 40), made(5, 40, seed=1) if share else None, made(5, 40, seed=2), made(40, seed=3), 1e-5)
    past = made(5, 40, seed=4) if residual else None
    same(kernels().norm_backward(*given, past, chosen), plain.norm_backward(*given, past, chosen))


@interpreted
@pytest.mark.parametrize("share", [None, 0.3])
def test_swiglu_there_and_back(share: float | None) -> None:
    both, grad, lora = made(4, 5000), made(4, 2500, seed=1), made(4, 2500, seed=2) if share else None
    chosen = drop(first=7) if share else None
    for a, b in zip(kernels().swiglu(both, chosen), plain.swiglu(both, chosen), strict=True):
        same(a, b)
    mine, other = both.clone(), both.clone()
    same(kernels().swiglu_backward(mine, grad, lora, chosen), plain.swiglu_backward(other, grad, lora, chosen))
    same(mine, other)


@interpreted
def test_dropout_there_and_back() -> None:
    x, lora = made(6, 2100), made(6, 2100, seed=1)
    same(kernels().dropped(x, drop()), plain.dropped(x, drop()))
    same(kernels().add_dropped(x.clone(), lora, drop()), plain.add_dropped(x.clone(), lora, drop()))


@interpreted
def test_rotation_there_and_back() -> None:
    heads, cos, sin = made(5, 7, 12), made(5, 6, seed=1), made(5, 6, seed=2)
    same(kernels().rotate(heads.clone(), cos, sin, 5), plain.rotate(heads.clone(), cos, sin, 5))
    parts = made(5, 3, 12), made(5, 2, 12, seed=3), made(5, 2, 12, seed=4)
    same(kernels().rotate_back(*parts, cos, sin), plain.rotate_back(*parts, cos, sin))


@interpreted
def test_cross_entropy() -> None:
    logits, target, weight = made(6, 5000) * 4, torch.tensor([0, 4999, -100, 17, -100, 4100]), made(6, seed=1).abs()
    mine, other = logits.clone(), logits.clone()
    same(kernels().cross_entropy(mine, target, weight), plain.cross_entropy(other, target, weight))
    same(mine, other)


@interpreted
@pytest.mark.parametrize("nested", [True, False])
def test_nf4_becomes_what_bitsandbytes_makes_of_it(nested: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="only on a machine with bitsandbytes")
    weight = made(96, 256)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
    out = torch.empty(weight.numel())
    inner = (state.state2.code, state.state2.absmax, state.offset.view(1)) if nested else None
    second = state.state2.blocksize if nested else 1
    kernels().dense4(packed.view(-1), state.absmax, inner, second, state.code, state.blocksize, out)
    same(out.view(96, 256), functional.dequantize_4bit(packed, state))


def test_cross_entropy_is_torchs_with_its_gradient() -> None:
    logits, target, weight = made(6, 50).double() * 4, torch.tensor([0, 49, -100, 17, -100, 41]), made(6, seed=1).abs()
    leaf = logits.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf, target, reduction="none", ignore_index=-100)
    (expected * weight).sum().backward()
    same(plain.cross_entropy(logits, target, weight.double()), expected.detach())
    same(logits, leaf.grad)
