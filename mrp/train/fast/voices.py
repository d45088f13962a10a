"""Linear layers with a frozen LoRA adapter and, over it, a small LoRA of its own for each row of a pass: voices.

    speakers = Speakers(len(bank.ids), rows=4, device, dtype)
    engine = Engine(model, shape, joint=voice_joints(model, bank, speakers))
    speakers.choose([2, 0])                                # who speaks the rows of the next pass; further rows: nobody

Of T tokens in R rows the first T / R are the first row's, and so on, so voices are batched products: for each row the
weights of its speaker, and of their gradients the sum over the rows of a voice. Adapter and voice of a layer share the
dropped input (through PEFT and hooks each draws its own).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mrp.models.voices import Voice, VoiceBank, linear_layers
from mrp.train.fast.linear import ADAPTER, Joint, MakeJoint, Scratch


class Speakers:
    """Which of V voices speaks each of the R rows of a pass, where a captured graph reads it."""

    def __init__(self, voices: int, rows: int, device: torch.device, dtype: torch.dtype) -> None:
        self.rows = rows
        self.number = torch.zeros(rows, dtype=torch.long, device=device)
        self.share = torch.zeros(voices, rows, dtype=dtype, device=device)  # 1 where the voice speaks the row

    def choose(self, numbers: Sequence[int]) -> None:
        """Row k is spoken by voice `numbers[k]`; what further rows are filled up with teaches nobody."""
        chosen = torch.tensor([*numbers, *[0] * (self.rows - len(numbers))])
        share = torch.zeros(self.share.shape)
        share[chosen[: len(numbers)], torch.arange(len(numbers))] = 1
        self.number.copy_(chosen)
        self.share.copy_(share)


def voice_joints(model: Any, bank: VoiceBank, speakers: Speakers) -> MakeJoint:
    """How the engine makes its groups of linear layers, so that the voices of `bank` learn and the adapter does not."""
    names = {id(module): name for name, module in linear_layers(model).items()}

    def make(layers: list[Any], name: str, place: int, scratch: Scratch, dtype: torch.dtype) -> VoiceJoint:
        own = [names[id(layer)] for layer in layers]
        return VoiceJoint(layers, name, place, scratch, dtype, list(bank.voices.values()), own, speakers)

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
        speakers: Speakers,
    ) -> None:
        super().__init__(layers, name, place, scratch, dtype)
        self.voices, self.names, self.speakers = voices, names, speakers
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
        a = self._of_rows(self.a).transpose(1, 2)
        own = torch.baddbmm(nothing[None], self._rows(dropped), a, beta=0, alpha=voice_scale)
        return torch.cat([shared, own.flatten(0, 1)], 1)

    def output(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.linear(x, self.frozen.dense(), self.frozen.bias)
        shared, own = self._halves(h)
        for part, low, b in zip(self._parts(y), shared.split(self.rank, 1), self.frozen_b, strict=True):
            part.addmm_(low, b.t())
        for part, low, b in zip(self._parts(y), own.split(self.voice_rank, 1), self.b, strict=True):
            self._rows(part).baddbmm_(self._rows(low), self._of_rows(b).transpose(1, 2))
        return y

    def backward_input(self, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """As `Joint.backward_input`; dh (T, groups q) is of the voices."""
        shared = torch.cat([part @ b for part, b in zip(self._parts(dy), self.frozen_b, strict=True)], 1)
        own = [torch.bmm(self._rows(part), self._of_rows(b)) for part, b in zip(self._parts(dy), self.b, strict=True)]
        dh, dx = torch.cat([part.flatten(0, 1) for part in own], 1), dy @ self.frozen.dense()
        scale, voice_scale = self._scales(self.masked)
        lora = torch.empty_like(dx) if self.masked else dx
        lora.addmm_(shared, self.frozen_a, beta=0 if self.masked else 1, alpha=scale)
        self._rows(lora).baddbmm_(self._rows(dh), self._of_rows(self.a), alpha=voice_scale)
        return dx, lora if self.masked else None, dh

    def learn_both(self, dy: torch.Tensor, h: torch.Tensor, dh: torch.Tensor, dropped: torch.Tensor) -> None:
        """The gradients of the voices' A and B, added to what is there."""
        _, own = self._halves(h)
        for part, low, grad in zip(self._parts(dy), own.split(self.voice_rank, 1), self.grad_b, strict=True):
            self._add(grad, torch.bmm(self._rows(part).transpose(1, 2), self._rows(low)), 1.0)
        _, voice_scale = self._scales(self.masked)
        self._add(self.grad_a, torch.bmm(self._rows(dh).transpose(1, 2), self._rows(dropped)), voice_scale)

    def _scales(self, is_dropped: bool) -> tuple[float, float]:
        """By what low-rank values of adapter and voice are multiplied: a dropped input carries the adapter's scale."""
        return (1.0, self.voice_scale / self.scale) if is_dropped else (self.scale, self.voice_scale)

    def _halves(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shared = len(self.layers) * self.rank
        return h[:, :shared], h[:, shared:]

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        """(T, N) as (R, T / R, N)."""
        return x.view(self.speakers.rows, -1, x.shape[1])

    def _of_rows(self, weights: torch.Tensor) -> torch.Tensor:
        """(R, ...) of each row's speaker, from (V, ...)."""
        return weights.index_select(0, self.speakers.number)

    def _add(self, grad: torch.Tensor, of_rows: torch.Tensor, scale: float) -> None:
        """Add gradients (R, ...) to their voices' (V, ...): a product, since a GPU adds to places in any order."""
        grad.view(len(grad), -1).addmm_(self.speakers.share, of_rows.flatten(1), alpha=scale)
