"""Keys and values of sequences: each sequence has its own storage, and rows of a batch attend to their own.

    reader = RowsReader(model, on)
    row = Row(keys_values, [5, 6, 7])         # three tokens to be read after those that `keys_values` holds
    logits = reader.read([row, other], 3)     # (2, 3, V): all rows of one call read as many tokens
    logits = reader.read_ends([row, longer])  # (2, V): after the last token of each, whatever their lengths

No row is padded to another's length and nothing is copied when a sequence joins or leaves a batch. Grouped queries
(Ainslie et al. 2023, arXiv 2305.13245) attend without repeating the keys; layers with a sliding window keep all keys
and look at the last ones, so a prefix can be taken up anywhere. Models for which this does not give the logits of
transformers are found by `RowsReader.fits`, which asks both.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AttentionInterface, Cache

from mrp.models.load import Hardware, one_thread

ATTENTION = "mrp_rows"  # its name among transformers' attention functions
GROWTH = 256  # tokens by which a storage grows
LITTLE = 2**13  # pairs of query and key up to which a row's attention is too little to be shared out among threads


@dataclass(eq=False)  # two of the same tokens are two storages
class KeysValues:
    """What the model keeps of `ids`, for one voice: a key and a value for each token, head and layer."""

    voice: str | None = None
    ids: list[int] = field(default_factory=list)
    reserve: int = 0  # tokens for which room is made at once
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # (heads, capacity, size)

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for pair in self.layers.values() for t in pair)

    @property
    def capacity(self) -> int:
        """Tokens for which there is room."""
        return min((keys.shape[1] for keys, _ in self.layers.values()), default=0)

    def write(self, layer: int, start: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keep keys and values (heads, T, size) from position `start` on. A layer's storage grows by itself, so only
        one layer stands twice in memory while it is copied."""
        end = start + key.shape[1]
        if layer not in self.layers or self.layers[layer][0].shape[1] < end:
            self._grow(layer, start, end, key, value)
        keys, values = self.layers[layer]
        keys[:, start:end] = key
        values[:, start:end] = value

    def make_room(self, end: int) -> None:
        """Storage for `end` tokens in each layer that has one."""
        for layer, (keys, values) in self.layers.items():
            if keys.shape[1] < end:
                self._grow(layer, len(self.ids), end, keys, values)

    def _grow(self, layer: int, used: int, end: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Storage for `end` tokens, like `key` and `value`, with the `used` ones that there are."""
        kept = self.layers.get(layer)
        capacity = max(-(-end // GROWTH) * GROWTH, self.reserve)
        self.layers[layer] = (
            _grown(kept and kept[0], key, capacity, used),
            _grown(kept and kept[1], value, capacity, used),
        )

    def copy(self, count: int) -> KeysValues:
        """The first `count` tokens by themselves."""
        layers = {n: (k[:, :count].clone(), v[:, :count].clone()) for n, (k, v) in self.layers.items()}
        return KeysValues(self.voice, self.ids[:count], 0, layers)


def _grown(kept: torch.Tensor | None, like: torch.Tensor, capacity: int, used: int) -> torch.Tensor:
    new = like.new_empty(like.shape[0], capacity, like.shape[2])
    if kept is not None:
        new[:, :used] = kept[:, :used]
    return new


@dataclass(eq=False)
class Row:
    """Tokens to be read after what `kept` holds; `kept.ids` grows only when the caller adds them."""

    kept: KeysValues
    ids: Sequence[int]


class _Now(threading.local):
    """What the attention function must know of the call that it is in."""

    def __init__(self) -> None:
        self.rows: Sequence[Row] = ()
        self.in_one = False  # rows stand one behind the other in a single sequence
        self.masks: dict[tuple[int, int, int, int | None], torch.Tensor] = {}


_now = _Now()


class RowsCache(Cache):  # type: ignore[misc]
    """Hands keys and values on as they are: `_attend` keeps them, row by row."""

    def __init__(self, seen: int) -> None:
        super().__init__(layers=[])
        self.seen = seen

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        del layer_idx
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        del layer_idx
        return self.seen


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """(R, T, heads, size) from queries (R, heads, T, size); each row attends to what it keeps, and to its new keys.
    Of rows that stand in one sequence, (1, sum of T, heads, size).

    Rows may share what they keep: each then reads its own new tokens after the same beginning, and overwrites those of
    the row before.
    """
    del attention_mask
    if more.get("s_aux") is not None:
        raise NotImplementedError("attention sinks")
    found, at = [], 0
    for number, row in enumerate(_now.rows):
        start, count = len(row.kept.ids), len(row.ids)
        end = start + count
        new = (0, slice(None), slice(at, at + count)) if _now.in_one else (number,)
        at += count
        row.kept.write(module.layer_idx, start, key[new], value[new])
        keys, values = row.kept.layers[module.layer_idx]
        first = max(0, start + 1 - sliding_window) if sliding_window else 0
        near = (keys[:, first:end], values[:, first:end])
        with one_thread() if keys.device.type == "cpu" and count * end <= LITTLE else nullcontext():
            found.append(_attend_row(query[new].to(keys.dtype), *near, start - first, scaling, sliding_window, softcap))
    return (torch.cat(found)[None] if _now.in_one else torch.stack(found)).to(query.dtype), None


def _attend_row(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    before: int,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """(T, heads, size) of one row; its T queries come after `before` of the keys (key heads, before + T, size)."""
    heads, count, size = query.shape
    groups = heads // len(keys)
    grouped = query.reshape(len(keys), groups * count, size)  # heads of a group stand one below the other
    mask = _mask(query, before, groups, window) if count > 1 else None
    if softcap is None:
        done = F.scaled_dot_product_attention(
            grouped[None], keys[None], values[None], attn_mask=None if mask is None else mask[None, None], scale=scaling
        )[0]
    else:  # as Gemma 2 computes it
        scores = grouped @ keys.transpose(1, 2) * (size**-0.5 if scaling is None else scaling)
        scores = torch.tanh(scores / softcap) * softcap
        scores = scores if mask is None else scores + mask
        done = torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype) @ values
    return done.reshape(heads, count, values.shape[2]).transpose(0, 1)


def _mask(query: torch.Tensor, before: int, groups: int, window: int | None) -> torch.Tensor:
    """(groups * T, before + T): 0 where a query sees a key, else minus infinity. The same for all layers of a call."""
    count = query.shape[1]
    key = (count, before, groups, window)
    if key not in _now.masks:
        at = torch.arange(before, before + count, device=query.device)[:, None]
        other = torch.arange(before + count, device=query.device)[None]
        seen = (other <= at) if window is None else (other <= at) & (other > at - window)
        blank = torch.zeros(seen.shape, dtype=query.dtype, device=query.device)
        _now.masks[key] = blank.masked_fill(~seen, float("-inf")).repeat(groups, 1)
    return _now.masks[key]


AttentionInterface.register(ATTENTION, _attend)


class RowsReader:
    """A model that reads rows of tokens, each after what it keeps."""

    def __init__(self, model: Any, on: Hardware) -> None:
        self.model, self.on = model, on
        configs = [module.config for module in model.modules() if hasattr(module, "config")]
        self._configs = list({id(c): c for c in configs if hasattr(c, "_attn_implementation_internal")}.values())

    def read(self, rows: Sequence[Row], logits_to_keep: int = 1) -> torch.Tensor:
        """Logits (R, logits_to_keep, V) of the last tokens of each row; all rows read equally many."""
        count = len(rows[0].ids)
        starts = torch.tensor([[len(row.kept.ids)] for row in rows], device=self.on.device)
        ids = torch.tensor([list(row.ids) for row in rows], device=self.on.device)
        # chosen by number: for a slice of longer rows `torch.matmul` would copy the whole head once for each row
        keep = torch.arange(count - logits_to_keep, count, device=self.on.device) if logits_to_keep < count else count
        return self._run(rows, ids, starts + torch.arange(count, device=self.on.device), keep)

    def read_ends(self, rows: Sequence[Row]) -> torch.Tensor:
        """Logits (R, V) after the last token of each row. Rows that read unequally many go through the model as one
        sequence, so not one token is computed in vain; a batch whose rows have different voices cannot do that."""
        if len({len(row.ids) for row in rows}) == 1:
            return self.read(rows)[:, -1]
        ids = torch.tensor([[token for row in rows for token in row.ids]], device=self.on.device)
        at = [k for row in rows for k in range(len(row.kept.ids), len(row.kept.ids) + len(row.ids))]
        ends = torch.tensor([len(row.ids) for row in rows], device=self.on.device).cumsum(0) - 1
        return self._run(rows, ids, torch.tensor([at], device=self.on.device), ends, in_one=True)[0]

    def _run(
        self, rows: Sequence[Row], ids: torch.Tensor, positions: torch.Tensor, keep: Any, in_one: bool = False
    ) -> torch.Tensor:
        cache = RowsCache(max(len(row.kept.ids) for row in rows))
        with torch.no_grad(), self.on.autocast_context(), self.attending(rows, ATTENTION, in_one):
            found = self.model(
                input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=keep
            ).logits
        return torch.as_tensor(found)

    @contextmanager
    def attending(self, rows: Sequence[Row], attention: str, in_one: bool = False) -> Iterator[None]:
        """Within it the model's attention is the one of that name; outside it is as it was."""
        before = [config._attn_implementation_internal for config in self._configs]
        try:
            for config in self._configs:
                config._attn_implementation_internal = attention
            _now.rows, _now.in_one = rows, in_one
            yield
        finally:
            _now.rows, _now.in_one, _now.masks = (), False, {}
            for config, own in zip(self._configs, before, strict=True):
                config._attn_implementation_internal = own

    def fits(self) -> bool:
        """Whether rows give the logits that transformers gives: asked of the model itself, with few tokens.

        Two rows of different lengths, in two pieces; and two as one sequence. Not so for recurrent layers, attention of
        its own, and the like.
        """
        vocabulary = self.model.get_input_embeddings().num_embeddings
        first, second = ([(7 * k + add) % vocabulary for k in range(12)] for add in (1, 5))
        try:
            wanted = []
            for ids in (first, second[:9]):
                with torch.no_grad(), self.on.autocast_context():
                    given = torch.tensor([ids], device=self.on.device)
                    wanted.append(self.model(input_ids=given, use_cache=False, logits_to_keep=1).logits[0, -1].float())
            kept = [KeysValues(), KeysValues()]
            for one, ids in zip(kept, (first[:11], second[:8]), strict=True):
                self.read([Row(one, ids)])
                one.ids += ids
            found = self.read([Row(kept[0], first[11:]), Row(kept[1], second[8:9])])[:, -1].float()
            again = self.read_ends([Row(kept[0], first[11:]), Row(KeysValues(), second[:9])]).float()
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a model's own code may fail in any way when it is asked for what it cannot do
            return False
        return self.is_near(found, wanted) and self.is_near(again, wanted)

    def is_near(self, found: Iterable[torch.Tensor], wanted: Iterable[torch.Tensor]) -> bool:
        """Whether the logits (V,) of each row are the same but for rounding."""
        near = 1e-3 if self.on.weights == torch.float32 else 0.3  # of the spread of the logits
        return all(float((a - b).abs().max()) < near * float(b.std()) for a, b in zip(found, wanted, strict=True))
