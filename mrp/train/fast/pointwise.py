"""What the fast path computes between its matrix products, in plain torch: for the CPU, and as reference.

    y, dropped = norm(...)      # kernels.py holds the same functions as Triton kernels; `for_device` chooses

T tokens, H features of the residual stream, I of the MLP. Everything is worked out in fp32 (fp64 for fp64 inputs) and
rounded once when it is written: chains of rounded bf16 steps train measurably worse than their fp32 selves.

Dropout keeps no random state: whether an element is dropped is a hash of (seed of the pass, place in the model, token,
feature). So the backward pass, a recomputed layer, a captured graph and a resumed training all see the same mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch

MIX_1, MIX_2, GOLDEN = 0x7FEB352D, 0x846CA68B, 0x9E3779B9  # "lowbias32" of Chris Wellons' hash-prospector
LOW = 0xFFFFFFFF


@dataclass(frozen=True)
class Dropout:
    """Which elements of a LoRA input are dropped, and by what the others are multiplied."""

    seed: torch.Tensor  # (1,) int64 on the device, new in each pass
    place: int  # of the LoRA part in the model
    share: float
    factor: float  # LoRA scale / (1 - share)
    first_token: int = 0  # of a tile

    @property
    def threshold(self) -> int:
        """Elements whose hash is below it are dropped."""
        return min(int(self.share * 2**32), LOW)


def for_device(device: torch.device) -> ModuleType:
    """The functions of this module that run best on `device`: Triton kernels on CUDA, these here elsewhere."""
    if device.type == "cuda":
        from mrp.train.fast import kernels

        return kernels
    import sys

    return sys.modules[__name__]


def mix(value: torch.Tensor) -> torch.Tensor:
    """A 32-bit hash of int64 values in [0, 2^32)."""
    value = value ^ (value >> 16)
    value = (value * MIX_1) & LOW
    value = value ^ (value >> 15)
    value = (value * MIX_2) & LOW
    return value ^ (value >> 16)


def multiplier(drop: Dropout, tokens: int, features: int) -> torch.Tensor:
    """(tokens, features) fp64: 0 where dropped, else the factor."""
    device = drop.seed.device
    key = mix((drop.seed + drop.place * GOLDEN) & LOW)
    rows = torch.arange(tokens, device=device)[:, None] + drop.first_token
    index = (rows * features + torch.arange(features, device=device)) & LOW
    kept = mix(mix(index) ^ key) >= drop.threshold
    return kept * drop.factor


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def dropped(x: torch.Tensor, drop: Dropout) -> torch.Tensor:
    """x (T, N) with dropout and the LoRA scale."""
    return (_wide(x) * multiplier(drop, *x.shape)).to(x.dtype)


def add_dropped(x: torch.Tensor, lora: torch.Tensor, drop: Dropout) -> torch.Tensor:
    """x + dropout(lora), in place: the way back through `dropped`."""
    return x.copy_(_wide(x) + _wide(lora) * multiplier(drop, *x.shape))


def norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float, drop: Dropout | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """RMSNorm of the residual stream: (x + delta, its norm, the norm dropped for LoRA or the norm itself)."""
    if delta is not None:
        x = (_wide(x) + _wide(delta)).to(x.dtype)
    wide = _wide(x)
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * _wide(weight)
    normed = y.to(x.dtype)
    return x, normed, normed if drop is None else (y * multiplier(drop, *x.shape)).to(x.dtype)


def norm_backward(
    grad: torch.Tensor,
    lora: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None,
    drop: Dropout | None,
) -> torch.Tensor:
    """Gradient of the stream: through the norm, and past it (`residual`). `lora`: gradient of the dropped norm."""
    wide, total = _wide(x), _wide(grad)
    if lora is not None:
        assert drop is not None
        total = total + _wide(lora) * multiplier(drop, *x.shape)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    weighted, hat = total * _wide(weight), wide * scale
    out = scale * (weighted - hat * (weighted * hat).mean(-1, keepdim=True))
    return (out if residual is None else out + _wide(residual)).to(x.dtype)


def swiglu(both: torch.Tensor, drop: Dropout | None) -> tuple[torch.Tensor, torch.Tensor]:
    """silu(gate) * up of (T, 2 I), and the same dropped for LoRA (or itself)."""
    gate, up = _wide(both).chunk(2, -1)
    y = torch.nn.functional.silu(gate) * up
    out = y.to(both.dtype)
    return out, out if drop is None else (y * multiplier(drop, *y.shape)).to(both.dtype)


def swiglu_backward(
    both: torch.Tensor, grad: torch.Tensor, lora: torch.Tensor | None, drop: Dropout | None
) -> torch.Tensor:
    """`both` (T, 2 I) becomes its gradient; returns the (dropped) input of the down projection again, (T, I)."""
    gate, up = _wide(both).chunk(2, -1)
    total = _wide(grad)
    sigmoid = torch.sigmoid(gate)
    y = gate * sigmoid * up
    if lora is not None:
        assert drop is not None
        mask = multiplier(drop, *grad.shape)
        total, y = total + _wide(lora) * mask, y * mask
    d_gate = total * up * sigmoid * (1 + gate * (1 - sigmoid))
    d_up = total * gate * sigmoid
    again = y.to(both.dtype)
    both.copy_(torch.cat([d_gate, d_up], -1))
    return again


def rotate(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int, back: bool = False) -> torch.Tensor:
    """Rotary positions on the first `heads` heads of qkv (T, all heads, D), in place; cos, sin (T, D / 2)."""
    half = qkv.shape[-1] // 2
    first, second = _wide(qkv[:, :heads, :half]), _wide(qkv[:, :heads, half:])
    c, s = _wide(cos)[:, None], _wide(sin)[:, None] * (-1 if back else 1)
    turned = torch.cat([first * c - second * s, second * c + first * s], -1)
    qkv[:, :heads] = turned.to(qkv.dtype)
    return qkv


def rotate_back(
    dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """Gradients of rotated q, k (T, heads, D) and of v, as one gradient of what was rotated: (T, all heads, D)."""
    return rotate(torch.cat([dq, dk, dv], 1), cos, sin, dq.shape[1] + dk.shape[1], back=True)


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(N,) fp32 losses of logits (N, V); the logits become their gradient times weight (N,). Target < 0: nothing."""
    wide = _wide(logits)
    live = target >= 0
    chosen = target.clamp_min(0)[:, None]
    total = torch.logsumexp(wide, -1, keepdim=True)
    losses = torch.where(live, (total - wide.gather(1, chosen))[:, 0], 0)
    grad = (wide - total).exp()
    grad.scatter_add_(1, chosen, grad.new_full(chosen.shape, -1.0))
    logits.copy_(grad * torch.where(live, weight, 0)[:, None])
    return losses.float() if logits.dtype != torch.float64 else losses
