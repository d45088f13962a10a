"""Voices ready to speak: what each row of a batch adds to the frozen layers, while nothing is trained.

    ready = ReadyVoices(voices)                              # {"wukong": Voice, "bajie": Voice}
    rows = ready.of(("wukong", None, "bajie"), device)       # one for each row; one entry: for all rows of any batch
    output = rows.added("model.layers.0.mlp.up_proj", x, output)      # x (3, T, in), output (3, T, out)

All weights of a voice lie in one vector, so rows that speak together are put side by side by one copy for each row, and
a row alone by none. Layers that read the same input (query, key and value; gate and up) share one product with their A
halves side by side (as Punica and S-LoRA batch theirs: arXiv 2310.18547, 2311.03285, with kernels of their own).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mrp.models.load import one_thread

if TYPE_CHECKING:
    from mrp.models.voices import Voice

ONE_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names of siblings that read the same


FEW = 256  # positions of a batch up to which the products of the voices are too small to be shared out among threads

_Key = tuple[tuple[str | None, ...], torch.device, torch.dtype]


@dataclass(frozen=True)
class _Group:
    """Layers that share one input, and where their weights lie in a voice's vector."""

    layers: tuple[str, ...]
    ranks: tuple[int, ...]
    into: int
    outs: tuple[int, ...]
    start: int

    @property
    def end(self) -> int:
        return self.start + sum(self.ranks) * self.into + sum(r * o for r, o in zip(self.ranks, self.outs, strict=True))


@dataclass
class _Half:
    """One layer's share in the weights of its group's rows."""

    group: _Group
    a: torch.Tensor  # (R, in, ranks of the group)
    b: torch.Tensor  # (R, rank, out), scaled
    first: int  # of the group's ranks that are this layer's
    last: int
    ends: bool  # whether no layer of the group comes after it


class ReadyVoices:
    """The weights of voices in the form in which they are used; made when a voice first speaks."""

    def __init__(self, voices: dict[str, Voice]) -> None:
        self.voices = voices
        self._groups = _groups_of(voices)
        self._vectors: dict[tuple[str, torch.device, torch.dtype], torch.Tensor] = {}
        self._kept: dict[_Key, RowsVoices] = {}  # of voices alone, which takes no memory, and of the last rows
        self._whole: torch.Tensor | None = None  # the last rows side by side, and maybe more
        self._lying: list[str | None] = []  # whose weights lie in each

    def of(self, rows: tuple[str | None, ...], device: torch.device) -> RowsVoices:
        """The weights of `rows`, good until those of other rows are asked for; in 16 bit where autocast would make them
        so at every step."""
        kind = next(iter(next(iter(self.voices.values())).a.values())).dtype
        if torch.is_autocast_enabled(device.type):
            kind = torch.get_autocast_dtype(device.type)
        who = rows if len(set(rows)) > 1 else rows[:1]
        key = (who, device, kind)
        if key not in self._kept:
            self._kept = {key: kept for key, kept in self._kept.items() if len(key[0]) == 1}
            self._kept[key] = RowsVoices(self._groups, self._side_by_side(who, device, kind))
        return self._kept[key]

    def _side_by_side(self, rows: tuple[str | None, ...], device: torch.device, kind: torch.dtype) -> torch.Tensor:
        """(R, numbers); what lies in its place from the last time stays, so one who joins costs one copy."""
        if len(rows) == 1:
            assert rows[0] is not None
            return self._vector(rows[0], device, kind)[None]
        whole = self._whole
        if whole is None or len(whole) < len(rows) or (whole.device, whole.dtype) != (device, kind):
            room = len(rows) if whole is None else max(len(rows), min(2 * len(whole), len(self.voices)))
            self._whole, self._lying = None, []  # before more is taken
            self._whole = whole = torch.empty(room, self._groups[-1].end, device=device, dtype=kind)
        for number, who in enumerate(rows):
            if number < len(self._lying) and self._lying[number] == who:
                continue
            self.put(who, whole[number])
        self._lying = [*rows, *self._lying[len(rows) :]]
        return whole[: len(rows)]

    def put(self, who: str | None, row: torch.Tensor) -> None:
        """Write a voice's weights into a vector of `room_for`; zeros for none."""
        if who is None:
            row.zero_()
        else:
            row.copy_(self._vector(who, row.device, row.dtype))

    def room_for(self, rows: int, device: torch.device, kind: torch.dtype | None) -> torch.Tensor:
        """(rows, numbers) of zeros: for voices in `kind`, or in their own number format."""
        kind = kind or next(iter(next(iter(self.voices.values())).a.values())).dtype
        return torch.zeros(rows, self._groups[-1].end, device=device, dtype=kind)

    def reading(self, whole: torch.Tensor) -> RowsVoices:
        """The voices that stand in `whole`, also when its rows are written anew."""
        return RowsVoices(self._groups, whole)

    def _vector(self, who: str, device: torch.device, kind: torch.dtype) -> torch.Tensor:
        """All weights of a voice, B scaled; layers that it lacks and ranks that only others have are zeros."""
        key = (who, device, kind)
        if key not in self._vectors:
            whole = torch.zeros(self._groups[-1].end, device=device, dtype=kind)
            voice = self.voices[who]
            for half, layer in ((half, layer) for layer, half in RowsVoices(self._groups, whole[None]).halves.items()):
                if layer not in voice.a:
                    continue
                a, b = voice.a[layer].detach(), voice.b[layer].detach()
                half.a[0, :, half.first : half.first + len(a)] = a.T.to(device)
                half.b[0, : len(a)] = (b.to(device) * voice.scales[layer]).T
            self._vectors[key] = whole
        return self._vectors[key]


class RowsVoices:
    """The voices of the rows of a batch: (R, numbers), each layer's part of it as it is multiplied."""

    def __init__(self, groups: Sequence[_Group], whole: torch.Tensor) -> None:
        self.halves = {layer: half for group in groups for layer, half in _halves(group, whole).items()}
        self._count, self._kind = whole.shape[0], whole.dtype
        self._read: tuple[torch.Tensor, _Group, torch.Tensor] | None = None  # the last input and its product with A

    def added(self, layer: str, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """output + x A^T B^T, row by row; `output` itself is changed where no gradients are kept."""
        half = self.halves[layer]
        with one_thread() if x.device.type == "cpu" and x[..., 0].numel() <= FEW else nullcontext():
            return self._added(half, x, output)

    def _added(self, half: _Half, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        down = self._down(x, half)[..., half.first : half.last]
        plain = self._count == 1
        b, whole = (half.b[0], output.reshape(-1, output.shape[-1])) if plain else (half.b, output)
        if output.dtype != self._kind:
            return output + (down @ b).to(output.dtype).view(output.shape)
        if torch.is_grad_enabled() or not output.is_contiguous():
            return (torch.addmm if plain else torch.baddbmm)(whole, down, b).view(output.shape)
        whole.addmm_(down, b) if plain else whole.baddbmm_(down, b)
        return output

    def _down(self, x: torch.Tensor, half: _Half) -> torch.Tensor:
        """x A^T for all layers of the group: (R, T, ranks), or (R * T, ranks) where all rows have one voice."""
        if self._read is not None and self._read[0] is x and self._read[1] is half.group:
            found = self._read[2]
        else:
            given = x.to(self._kind)
            if self._count == 1:
                found = given.reshape(-1, given.shape[-1]) @ half.a[0]
            else:
                assert self._count == len(x), f"{self._count} speakers for a batch of {len(x)} rows"
                found = torch.bmm(given, half.a)
        self._read = None if half.ends else (x, half.group, found)
        return found


def _groups_of(voices: dict[str, Voice]) -> list[_Group]:
    """The layers of all voices by the input that they share; ranks are the widest voice's."""
    shapes: dict[str, tuple[int, int, int]] = {}
    for voice in voices.values():
        for layer in sorted(voice.a):
            (rank, into), out = voice.a[layer].shape, len(voice.b[layer])
            shapes[layer] = max(rank, shapes.get(layer, (0, 0, 0))[0]), into, out
    by_input: dict[tuple[str, ...], list[str]] = {}
    for layer in shapes:
        above, _, name = layer.rpartition(".")
        siblings = next((names for names in ONE_INPUT if name in names), (name,))
        by_input.setdefault((above, *siblings), []).append(layer)
    found: list[_Group] = []
    for (_, *order), members in by_input.items():
        layers = tuple(sorted(members, key=lambda layer: order.index(layer.rpartition(".")[2])))
        ranks, into, outs = zip(*(shapes[layer] for layer in layers), strict=True)
        assert len(set(into)) == 1, f"layers of one input with inputs of several sizes: {layers}"
        found.append(_Group(layers, ranks, into[0], outs, found[-1].end if found else 0))
    return found


def _halves(group: _Group, whole: torch.Tensor) -> dict[str, _Half]:
    count, ranks = len(whole), sum(group.ranks)
    at = group.start + ranks * group.into
    a = whole[:, group.start : at].view(count, ranks, group.into).transpose(1, 2)
    found, first = {}, 0
    for layer, rank, out in zip(group.layers, group.ranks, group.outs, strict=True):
        b = whole[:, at : at + rank * out].view(count, rank, out)
        found[layer] = _Half(group, a, b, first, first + rank, layer == group.layers[-1])
        at, first = at + rank * out, first + rank
    return found
