"""One decoder block, forwards and backwards, written out by hand.

    x, delta = block.forward(x, delta, places, kept)     # the stream is x + delta: the next norm adds them
    d = block.backward(d, places, kept)                  # gradient of the stream after the block -> before it

By hand because then each 4-bit matrix is written out once for recomputation and backward pass together, the last
product of a recomputed block is never made, sums and norms are one kernel, and the MLP can go in tiles of tokens.
Only attention goes back through autograd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mrp.train.fast.attention import attend
from mrp.train.fast.linear import Joint, MakeJoint, Scratch, base_of
from mrp.train.fast.pointwise import Dropout, for_device

JOINTS = 4  # LoRA groups in a block: qkv, o, gate and up, down


@dataclass
class Places:
    """What a pass knows of its tokens; the same for all blocks. T tokens in D documents."""

    cos: torch.Tensor  # (T, head / 2) fp32
    sin: torch.Tensor
    ends: torch.Tensor  # (D + 1,) int32: 0, and where each document ends
    longest: int  # no document is longer
    seed: torch.Tensor  # (1,) int64, of the dropout
    learns: bool  # dropout is on, and what the way back needs is kept


@dataclass
class Kept:
    """What the way back through a block needs. Recomputing keeps `x` alone and finds the rest again."""

    x: torch.Tensor | None = None  # (T, H) the stream before the block
    middle: torch.Tensor | None = None  # (T, H) the stream between attention and MLP
    attention: tuple[torch.Tensor, ...] = ()  # q, k, v and the output, with autograd's graph between them
    low_qkv: torch.Tensor | None = None  # (T, 3 r)
    low_o: torch.Tensor | None = None
    low_up: torch.Tensor | None = None
    both: torch.Tensor | None = None  # (T, 2 I) gate and up


class Block:
    """A block of a Llama-like decoder whose linear layers carry LoRA."""

    def __init__(
        self,
        layer: Any,
        number: int,
        scratch: Scratch,
        dtype: torch.dtype,
        tile: int = 0,
        joint: MakeJoint = Joint,
    ) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        groups = {
            "qkv": [attention.q_proj, attention.k_proj, attention.v_proj],
            "o": [attention.o_proj],
            "up": [mlp.gate_proj, mlp.up_proj],
            "down": [mlp.down_proj],
        }
        joints = [joint(g, name, number * JOINTS + i, scratch, dtype) for i, (name, g) in enumerate(groups.items())]
        self.qkv, self.o, self.up, self.down = self.joints = joints
        self.norm, self.norm_eps = layer.input_layernorm.weight.data, layer.input_layernorm.variance_epsilon
        after = layer.post_attention_layernorm
        self.after, self.after_eps = after.weight.data, after.variance_epsilon
        self.size = attention.head_dim
        self.heads = base_of(attention.q_proj).out_features // self.size
        self.kv_heads = base_of(attention.k_proj).out_features // self.size
        self.scaling, self.tile = float(attention.scaling), tile
        self.ops = for_device(self.norm.device)

    def _drop(self, joint: Joint, places: Places, first_token: int = 0) -> Dropout | None:
        if not (joint.masked and places.learns):
            return None
        return Dropout(places.seed, joint.place, joint.share, joint.scale / (1 - joint.share), first_token)

    def _tiles(self, tokens: int) -> list[slice]:
        tile = self.tile or tokens
        return [slice(at, min(at + tile, tokens)) for at in range(0, tokens, tile)]

    # -- forwards -------------------------------------------------------------------------------------------------

    def forward(
        self, x: torch.Tensor, delta: torch.Tensor | None, places: Places, kept: Kept, keep_all: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream after the block, as two parts still to be added. `kept` is filled for the way back."""
        x, out = self._attention(x, delta, places, kept, keep_all)
        middle, normed, low_in = self.ops.norm(x, out, self.after, self.after_eps, self._drop(self.up, places))
        down = torch.empty_like(middle)
        for tile in self._tiles(len(x)):
            both, low_up = self.up.forward(normed[tile], low_in[tile], places.learns)
            act, act_low = self.ops.swiglu(both, self._drop(self.down, places, tile.start))
            down[tile], _ = self.down.forward(act, act_low, places.learns)
            if keep_all and self.tile == 0:
                kept.both, kept.low_up = both, low_up
        if keep_all:
            kept.middle = middle
        return middle, down

    def _attention(
        self, x: torch.Tensor, delta: torch.Tensor | None, places: Places, kept: Kept, keep_all: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(stream before the block, what attention adds to it)."""
        x, normed, low_in = self.ops.norm(x, delta, self.norm, self.norm_eps, self._drop(self.qkv, places))
        qkv, low_qkv = self.qkv.forward(normed, low_in, places.learns)
        heads = qkv.view(len(x), -1, self.size)
        self.ops.rotate(heads, places.cos, places.sin, self.heads + self.kv_heads)
        attention = attend(heads, self.heads, self.kv_heads, places.ends, places.longest, self.scaling, keep_all)
        seen = attention[-1].detach().reshape(len(x), -1)
        drop = self._drop(self.o, places)
        out, low_o = self.o.forward(seen, seen if drop is None else self.ops.dropped(seen, drop), places.learns)
        kept.x = x
        if keep_all:
            kept.attention, kept.low_qkv, kept.low_o = attention, low_qkv, low_o
        return x, out

    # -- backwards ------------------------------------------------------------------------------------------------

    def backward(self, d: torch.Tensor, places: Places, kept: Kept) -> torch.Tensor:
        """Gradient of the stream before the block, from that after it; LoRA gradients are added where they belong."""
        again = kept.middle is None
        if again:  # only `x` was kept: find the rest again, up to where the MLP begins
            assert kept.x is not None
            x, out = self._attention(kept.x, None, places, kept, keep_all=True)
            kept.middle, normed, low_in = self.ops.norm(x, out, self.after, self.after_eps, self._drop(self.up, places))
            del out
        else:
            assert kept.middle is not None
            _, normed, low_in = self.ops.norm(
                kept.middle, None, self.after, self.after_eps, self._drop(self.up, places)
            )
        d = self._mlp_backward(d, normed, low_in, places, kept)
        del normed, low_in
        kept.both = kept.low_up = kept.middle = None
        return self._attention_backward(d, places, kept)

    def _mlp_backward(
        self, d: torch.Tensor, normed: torch.Tensor, low_in: torch.Tensor, places: Places, kept: Kept
    ) -> torch.Tensor:
        grad = torch.empty_like(normed)
        lora = torch.empty_like(normed) if self.up.masked else None
        for tile in self._tiles(len(d)):
            if kept.both is not None and kept.low_up is not None:
                both, low_up = kept.both, kept.low_up
            else:
                both, low_up = self.up.forward(normed[tile], low_in[tile], places.learns)
            drop = self._drop(self.down, places, tile.start)
            # the down projection's own low-rank values need its input, which the next kernel gives back; so first dh
            dact, dact_lora, dh = self.down.backward_input(d[tile])
            act_low = self.ops.swiglu_backward(both, dact, dact_lora, drop)
            del dact, dact_lora
            self.down.learn_both(d[tile], self.down.low(act_low, self.down.masked), dh, act_low)
            del act_low
            found, found_lora, dh = self.up.backward_input(both)
            self.up.learn_both(both, low_up, dh, low_in[tile])
            grad[tile] = found
            if lora is not None and found_lora is not None:
                lora[tile] = found_lora
        assert kept.middle is not None
        return self.ops.norm_backward(
            grad, lora, kept.middle, self.after, self.after_eps, d, self._drop(self.up, places)
        )

    def _attention_backward(self, d: torch.Tensor, places: Places, kept: Kept) -> torch.Tensor:
        assert kept.low_o is not None and kept.low_qkv is not None and kept.x is not None
        *inputs, output = kept.attention
        drop = self._drop(self.o, places)
        seen = output.detach().reshape(len(d), -1)
        grad, lora, dh = self.o.backward_input(d)
        self.o.learn_both(d, kept.low_o, dh, seen if drop is None else self.ops.dropped(seen, drop))
        if lora is not None and drop is not None:
            self.ops.add_dropped(grad, lora, drop)
        dq, dk, dv = attention_grads(output, inputs, grad.view(output.shape))
        kept.attention = ()
        heads = self.ops.rotate_back(dq, dk, dv, places.cos, places.sin)
        drop = self._drop(self.qkv, places)
        dqkv = heads.view(len(d), -1)
        grad, lora, dh = self.qkv.backward_input(dqkv)
        _, _, low_in = self.ops.norm(kept.x, None, self.norm, self.norm_eps, drop)
        self.qkv.learn_both(dqkv, kept.low_qkv, dh, low_in)
        return self.ops.norm_backward(grad, lora, kept.x, self.norm, self.norm_eps, d, drop)


def attention_grads(
    output: torch.Tensor, inputs: list[torch.Tensor], grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v; the same to the bit each time (flash attention adds in any order otherwise)."""
    was, filled = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        dq, dk, dv = torch.autograd.grad(output, inputs, grad)
    finally:
        torch.use_deterministic_algorithms(was)
        torch.utils.deterministic.fill_uninitialized_memory = filled
    return dq, dk, dv
