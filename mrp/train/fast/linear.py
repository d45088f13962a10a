"""Linear layers that share an input, as one frozen matrix with their LoRA parts.

    qkv = Joint([layer.q_proj, layer.k_proj, layer.v_proj], place, share, scratch)
    y, h = qkv.forward(x, dropped_x, True)      # (T, Nq + Nk + Nv), (T, 3 r)
    dx, lora, dh = qkv.backward_input(dy)       # (T, K), and what goes back through the dropout (or None)
    qkv.learn_both(dy, h, dh, dropped_x)        # gradients of A and B

One product for q, k and v instead of three, one for gate and up: larger matrices, fewer launches. The layers of such
a group share the dropped input too (in PEFT each draws its own): one mask, one thin product.

Frozen weights stay where the model has them: 16-bit ones become views of one matrix, 4-bit ones are written out as 16
bit into a scratch buffer whenever they are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

ADAPTER = "default"  # PEFT's name of the only adapter


@dataclass
class Scratch:
    """Room for 4-bit matrices written out as 16 bit."""

    shared: dict[str, str]  # matrix -> the one whose room it uses
    rooms: dict[str, torch.Tensor] = field(default_factory=dict)
    holds: dict[str, object] = field(default_factory=dict)  # room -> whose matrix lies in it

    def reserve(self, name: str, count: int, device: torch.device, dtype: torch.dtype) -> None:
        name = self.shared.get(name, name)
        there = self.rooms.get(name)
        if there is None or there.numel() < count:
            self.rooms[name] = torch.empty(count, device=device, dtype=dtype)

    def room(self, name: str, count: int, owner: object) -> tuple[torch.Tensor, bool]:
        """(the room, whether `owner`'s matrix lies there already)."""
        name = self.shared.get(name, name)
        is_there = self.holds.get(name) is owner  # as when a block is computed again just before its way back
        self.holds[name] = owner
        return self.rooms[name][:count], is_there

    def forget(self) -> None:
        """At the beginning of a pass: what a captured pass finds written must have been written in it."""
        self.holds.clear()


def base_of(layer: Any) -> Any:
    """The frozen linear layer inside PEFT's layer."""
    return layer.base_layer if hasattr(layer, "base_layer") else layer


def is_4bit(layer: Any) -> bool:
    return getattr(base_of(layer).weight, "quant_state", None) is not None


class Frozen:
    """Frozen matrices below one another, as one (N, K) matrix in 16 bit."""

    def __init__(self, layers: list[Any], name: str, scratch: Scratch, dtype: torch.dtype) -> None:
        bases = [base_of(layer) for layer in layers]
        self.name, self.scratch, self.dtype = name, scratch, dtype
        self.sizes = [base.out_features for base in bases]
        self.inputs = bases[0].in_features
        self.states = [base.weight.quant_state for base in bases] if is_4bit(layers[0]) else []
        self.packed = [base.weight.data.view(-1) for base in bases] if self.states else []
        self.matrix: torch.Tensor | None = None
        if self.states:
            scratch.reserve(name, sum(self.sizes) * self.inputs, bases[0].weight.device, dtype)
        elif len(bases) == 1:
            self.matrix = bases[0].weight.data
        else:
            self.matrix = torch.cat([base.weight.data for base in bases])
            for base, part in zip(bases, self.matrix.split(self.sizes), strict=True):
                base.weight.data = part  # a view: the model and the fast path hold the weights once
        biases = [base.bias for base in bases]
        self.bias = None if biases[0] is None else torch.cat([bias.data for bias in biases])

    def dense(self) -> torch.Tensor:
        """The matrix (N, K); a 4-bit one is written out, unless it lies in its room from the last time."""
        if self.matrix is not None:
            return self.matrix
        room, is_there = self.scratch.room(self.name, sum(self.sizes) * self.inputs, self)
        out = room.view(-1, self.inputs)
        if not is_there:
            for packed, state, part in zip(self.packed, self.states, out.split(self.sizes), strict=True):
                dense_4bit(packed, state, part)
        return out


def dense_4bit(packed: torch.Tensor, state: Any, out: torch.Tensor) -> torch.Tensor:
    """The numbers of bitsandbytes' NF4 format, in `out` (contiguous)."""
    if out.is_cuda:
        from mrp.train.fast.kernels import dense4

        nested = (state.state2.code, state.state2.absmax, state.offset.view(1)) if state.nested else None
        second = state.state2.blocksize if state.nested else 1
        return dense4(packed, state.absmax, nested, second, state.code, state.blocksize, out)
    from bitsandbytes.functional import dequantize_4bit  # type: ignore[import-not-found, import-untyped]

    return out.copy_(dequantize_4bit(packed.view(-1, 1), state))


class Joint:
    """A group of LoRA layers with one input: frozen matrix, LoRA A below one another, LoRA B one by one."""

    def __init__(self, layers: list[Any], name: str, place: int, scratch: Scratch, dtype: torch.dtype) -> None:
        self.frozen = Frozen(layers, name, scratch, dtype)
        self.place, self.layers = place, layers
        self.rank, self.scale = layers[0].r[ADAPTER], layers[0].scaling[ADAPTER]
        self.share = float(getattr(layers[0].lora_dropout[ADAPTER], "p", 0.0))
        self.masked = self.share > 0
        self.a = self.grad_a = torch.empty(0)  # (groups r, K); both are laid out by `Adapter`
        self.b: list[torch.Tensor] = []  # (N, r) each
        self.grad_b: list[torch.Tensor] = []

    def parameters(self) -> list[torch.nn.Parameter]:
        """LoRA A of each layer, then LoRA B of each: the order in which they lie in memory."""
        a = [layer.lora_A[ADAPTER].weight for layer in self.layers]
        return a + [layer.lora_B[ADAPTER].weight for layer in self.layers]

    def split(self, flat: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Tensors in the order of `parameters`, lying one after another: A as one matrix, and the Bs."""
        count = len(self.layers)
        rows = count * self.rank
        a = flat[0].as_strided((rows, self.frozen.inputs), (self.frozen.inputs, 1))
        return a, flat[count:]

    def forward(self, x: torch.Tensor, dropped: torch.Tensor, learns: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(y, h): all layers' outputs side by side, and the low-rank values that the way back needs.

        Only a pass that learns drops anything; elsewhere `dropped` is x.
        """
        h = self.low(dropped, self.masked and learns)
        return self.output(x, h), h

    def low(self, dropped: torch.Tensor, is_dropped: bool) -> torch.Tensor:
        """(T, groups r) of the dropped input, which carries the LoRA scale already; without dropout it comes here."""
        if is_dropped:
            return dropped @ self.a.t()
        return torch.addmm(dropped.new_empty(1, 1), dropped, self.a.t(), beta=0, alpha=self.scale)

    def output(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.linear(x, self.frozen.dense(), self.frozen.bias)
        for part, low, b in zip(self._parts(y), h.split(self.rank, 1), self.b, strict=True):
            part.addmm_(low, b.t())
        return y

    def backward_input(self, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """(dx, gradient of the dropped input, dh). Without dropout the second is None, being in dx already."""
        dh = dy.new_empty(len(dy), self.rank * len(self.b))
        for part, low, b in zip(self._parts(dy), dh.split(self.rank, 1), self.b, strict=True):
            torch.mm(part, b, out=low)
        dx = dy @ self.frozen.dense()
        if self.masked:
            return dx, dh @ self.a, dh
        return dx.addmm_(dh, self.a, alpha=self.scale), None, dh

    def learn_both(self, dy: torch.Tensor, h: torch.Tensor, dh: torch.Tensor, dropped: torch.Tensor) -> None:
        """The gradients of LoRA A and B, added to what is there."""
        for part, low, grad in zip(self._parts(dy), h.split(self.rank, 1), self.grad_b, strict=True):
            grad.addmm_(part.t(), low)
        self.grad_a.addmm_(dh.t(), dropped, alpha=1 if self.masked else self.scale)

    def _parts(self, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What of (T, N) belongs to each layer."""
        parts: tuple[torch.Tensor, ...] = y.split(self.frozen.sizes, 1)
        return parts


MakeJoint = Callable[[list[Any], str, int, Scratch, torch.dtype], Joint]


class Adapter:
    """All LoRA parameters in one stretch of memory, and their gradients in another.

    The parameters become views of it. If they are not in the numbers that the products run in (fp32 beside bf16), a
    copy in these is kept beside them (`refresh`), and gradients are gathered block by block in these and added up in
    the parameters' own.
    """

    def __init__(self, blocks: list[list[Joint]], dtype: torch.dtype) -> None:
        groups = [[p for joint in block for p in joint.parameters()] for block in blocks]
        every = [p for group in groups for p in group]
        device, own = every[0].device, every[0].dtype
        self.parameters = every
        self.values = torch.empty(sum(p.numel() for p in every), device=device, dtype=own)
        self.grads = torch.zeros_like(self.values)
        self.is_copied = own != dtype
        self.copy = torch.empty_like(self.values, dtype=dtype) if self.is_copied else self.values
        sizes = [sum(p.numel() for p in group) for group in groups]
        block_grad = torch.zeros(max(sizes), device=device, dtype=dtype) if self.is_copied else None
        self.block_grad, self.spans = block_grad, []
        start = 0
        for block, size in zip(blocks, sizes, strict=True):
            grads = self.grads[start : start + size] if block_grad is None else block_grad[:size]
            self._lay_out(block, start, grads)
            self.spans.append((start, size))
            start += size

    def _lay_out(self, block: list[Joint], start: int, grads: torch.Tensor) -> None:
        at = 0
        for joint in block:
            used, given = [], []
            for p in joint.parameters():
                here = slice(start + at, start + at + p.numel())
                own = self.values[here].view(p.shape)
                own.copy_(p.data)
                p.data = own
                p.grad = self.grads[here].view(p.shape)
                used.append(self.copy[here].view(p.shape))
                given.append(grads[at : at + p.numel()].view(p.shape))
                at += p.numel()
            joint.a, joint.b = joint.split(used)
            joint.grad_a, joint.grad_b = joint.split(given)

    def begin_step(self) -> None:
        """Gradients at zero, and where the optimizer looks for them; the copy as the optimizer left the values."""
        self.grads.zero_()
        start = 0
        for p in self.parameters:
            p.grad = self.grads[start : start + p.numel()].view(p.shape)
            start += p.numel()
        self.refresh()

    def refresh(self) -> None:
        if self.is_copied:
            self.copy.copy_(self.values)

    def begin_block(self, number: int) -> None:
        if self.block_grad is not None:
            self.block_grad[: self.spans[number][1]].zero_()

    def end_block(self, number: int) -> None:
        """What a block's backward pass gave is added to the gradients."""
        if self.block_grad is not None:
            start, size = self.spans[number]
            self.grads[start : start + size].add_(self.block_grad[:size])
