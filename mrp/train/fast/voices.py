"""Linear layers with a frozen LoRA adapter and, over it, a small LoRA of its own for each row of a pass: voices.

    engine = Engine(model, shape, joint=voice_joints(model, bank))       # row k of a pass learns voice k of the bank

Of T tokens in V rows the first T / V are the first voice's, and so on, so voices are batched products. Adapter and
voice of a layer share the dropped input (through PEFT and hooks each draws its own).
"""

from __future__ import annotations

from typing import Any

import torch

from mrp.models.voices import Voice, VoiceBank, linear_layers
from mrp.train.fast.linear import ADAPTER, Joint, MakeJoint, Scratch


def voice_joints(model: Any, bank: VoiceBank) -> MakeJoint:
    """How the engine makes its groups of linear layers, so that the voices of `bank` learn and the adapter does not."""
    names = {id(module): name for name, module in linear_layers(model).items()}

    def make(layers: list[Any], name: str, place: int, scratch: Scratch, dtype: torch.dtype) -> VoiceJoint:
        own = [names[id(layer)] for layer in layers]
        return VoiceJoint(layers, name, place, scratch, dtype, list(bank.voices.values()), own)

    return make


class VoiceJoint(Joint):
    """A group whose adapter (rank r) is frozen, with V voices (rank q) that learn."""

    def __init__(
        self,
        layers: list[Any],
        name: str,
        place: int,
        scratch: Scratch,
        dtype: torch.dtype,
        voices: list[Voice],
        names: list[str],
    ) -> None:
        super().__init__(layers, name, place, scratch, dtype)
        self.voices, self.names = voices, names
        self.voice_rank = len(voices[0].a[names[0]])
        self.voice_scale = voices[0].scales[names[0]]
        self.frozen_a = torch.cat([layer.lora_A[ADAPTER].weight.data for layer in layers]).to(dtype)  # (groups r, K)
        self.frozen_b = [layer.lora_B[ADAPTER].weight.data.to(dtype) for layer in layers]  # (N, r) each

    def parameters(self) -> list[torch.nn.Parameter]:
        """A of the first voice for each layer, of the second, ...; then B of the first layer for each voice, ..."""
        a = [voice.a[name] for voice in self.voices for name in self.names]
        return a + [voice.b[name] for name in self.names for voice in self.voices]

    def split(self, flat: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A (V, groups q, K), and for each layer B (V, N, q)."""
        many, groups, inputs = len(self.voices), len(self.names), self.frozen.inputs
        rows = groups * self.voice_rank
        a = flat[0].as_strided((many, rows, inputs), (rows * inputs, inputs, 1))
        b = []
        for number, size in enumerate(self.frozen.sizes):
            first = flat[many * groups + number * many]
            b.append(first.as_strided((many, size, self.voice_rank), (size * self.voice_rank, self.voice_rank, 1)))
        return a, b

    def low(self, dropped: torch.Tensor, is_dropped: bool) -> torch.Tensor:
        """(T, groups (r + q)): the adapter's low-rank values, then the voices'."""
        scale, voice_scale = self._scales(is_dropped)
        nothing = dropped.new_empty(1, 1)
        shared = torch.addmm(nothing, dropped, self.frozen_a.t(), beta=0, alpha=scale)
        own = torch.baddbmm(nothing[None], self._rows(dropped), self.a.transpose(1, 2), beta=0, alpha=voice_scale)
        return torch.cat([shared, own.flatten(0, 1)], 1)

    def output(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.linear(x, self.frozen.dense(), self.frozen.bias)
        shared, own = self._halves(h)
        for part, low, b in zip(self._parts(y), shared.split(self.rank, 1), self.frozen_b, strict=True):
            part.addmm_(low, b.t())
        for part, low, b in zip(self._parts(y), own.split(self.voice_rank, 1), self.b, strict=True):
            self._rows(part).baddbmm_(self._rows(low), b.transpose(1, 2))
        return y

    def backward_input(self, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """As `Joint.backward_input`; dh (T, groups q) is of the voices."""
        shared = torch.cat([part @ b for part, b in zip(self._parts(dy), self.frozen_b, strict=True)], 1)
        own = [torch.bmm(self._rows(part), b).flatten(0, 1) for part, b in zip(self._parts(dy), self.b, strict=True)]
        dh, dx = torch.cat(own, 1), dy @ self.frozen.dense()
        scale, voice_scale = self._scales(self.masked)
        lora = torch.empty_like(dx) if self.masked else dx
        lora.addmm_(shared, self.frozen_a, beta=0 if self.masked else 1, alpha=scale)
        self._rows(lora).baddbmm_(self._rows(dh), self.a, alpha=voice_scale)
        return dx, lora if self.masked else None, dh

    def learn_both(self, dy: torch.Tensor, h: torch.Tensor, dh: torch.Tensor, dropped: torch.Tensor) -> None:
        """The gradients of the voices' A and B, added to what is there."""
        _, own = self._halves(h)
        for part, low, grad in zip(self._parts(dy), own.split(self.voice_rank, 1), self.grad_b, strict=True):
            grad.baddbmm_(self._rows(part).transpose(1, 2), self._rows(low))
        _, voice_scale = self._scales(self.masked)
        self.grad_a.baddbmm_(self._rows(dh).transpose(1, 2), self._rows(dropped), alpha=voice_scale)

    def _scales(self, is_dropped: bool) -> tuple[float, float]:
        """By what low-rank values of adapter and voice are multiplied: a dropped input carries the adapter's scale."""
        return (1.0, self.voice_scale / self.scale) if is_dropped else (self.scale, self.voice_scale)

    def _halves(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shared = len(self.layers) * self.rank
        return h[:, :shared], h[:, shared:]

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        """(T, N) as (V, T / V, N)."""
        return x.view(len(self.voices), -1, x.shape[1])
