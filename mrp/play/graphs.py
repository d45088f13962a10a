"""Steps of one token a row as CUDA graphs: the host launches one graph instead of thousands of kernels.

    steps = GraphedSteps(reader, voices)
    logits = steps.read(rows)            # (R, V), or None: take the ordinary way, `steps.why` tells for what reason

Each of `SIZES` has a graph of its own, captured when so many rows have come up a few times; rows that are lacking are
nobody's. A graph reads what changes from a table (step_kernels.py), so each stream keeps its own storage, which may
grow, be parked and taken up again. Before a graph is trusted, the model is asked both ways for the same step. Whatever
cannot be captured (the CPU, no Triton, layers that ask the host) goes the ordinary way, and so does whatever has no
graph while memory is short: the plan counts one of them (`mrp.plan.chat`).
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface

from mrp.plan.chat import GRAPH
from mrp.play.kv import KeysValues, Row, RowsCache, RowsReader

if TYPE_CHECKING:
    from mrp.models.voices import VoiceBank

log = logging.getLogger("mrp.play")

STEP_ATTENTION = "mrp_step"  # its name among transformers' attention functions
SIZES = (1, 2, 4, 8, 16)  # rows of a graph; more keep a GPU busy by themselves
LATER = 200  # steps after which it is looked again whether memory is left for one more graph
ASKED = 3  # times that a number of rows comes up before its graph is made: it costs two steps


class _Now(threading.local):
    """The step that the attention function is in."""

    step: Step


_now = _Now()


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *_: Any,
    scaling: float | None = None,
    **how: Any,
) -> tuple[torch.Tensor, None]:
    from mrp.play.step_kernels import attend_step

    if how.get("softcap") is not None or how.get("s_aux") is not None:
        raise NotImplementedError("attention with soft caps or sinks")
    step, window = _now.step, how.get("sliding_window")
    q, k, v = (t[:, :, 0].to(step.kind).contiguous() for t in (query, key, value))  # (R, heads, size)
    found: torch.Tensor = attend_step(q, k, v, step.table, step.slots[module.layer_idx], scaling, window)
    return found[:, None].to(query.dtype), None


AttentionInterface.register(STEP_ATTENTION, _attend)


class Step:
    """The next token's logits for a fixed number of rows; everything that changes stands in `table`."""

    def __init__(self, reader: RowsReader, rows: Sequence[Row]) -> None:
        self.reader, self.count = reader, len(rows)
        layers = rows[0].kept.layers
        self.slots = {layer: slot for slot, layer in enumerate(sorted(layers))}
        self.kind = next(iter(layers.values()))[0].dtype
        self.table = torch.zeros((2 + 3 * len(layers)) * self.count, dtype=torch.int64, device=reader.on.device)

    def fill(self, rows: Sequence[Row]) -> None:
        """Say what the rows read next, and where they keep it: one copy to the GPU."""
        for row in rows:
            row.kept.make_room(len(row.kept.ids) + 1)
        numbers = [row.ids[0] for row in rows] + [len(row.kept.ids) for row in rows]
        for layer in self.slots:
            for row in rows:
                keys, values = row.kept.layers[layer]
                numbers += (keys.data_ptr(), values.data_ptr(), keys.shape[1])
        self.table.copy_(torch.tensor(numbers))

    def compute(self) -> torch.Tensor:
        """(R, V) for what the table says; keeps the keys and values of the tokens read."""
        ids, positions = self.table[: self.count, None], self.table[self.count : 2 * self.count, None]
        _now.step = self
        try:
            with torch.no_grad(), self.reader.on.autocast_context(), self.reader.attending((), STEP_ATTENTION):
                logits = self.reader.model(
                    input_ids=ids,
                    position_ids=positions,
                    past_key_values=RowsCache(1),
                    use_cache=True,
                    logits_to_keep=1,
                ).logits
        finally:
            del _now.step
        return torch.as_tensor(logits[:, -1])


def nobody(like: Row) -> Row:
    """A row that reads a token after nothing, into storage of its own for one token."""
    layers = {
        layer: (keys.new_zeros(len(keys), 1, keys.shape[2]), values.new_zeros(len(values), 1, values.shape[2]))
        for layer, (keys, values) in like.kept.layers.items()
    }
    return Row(KeysValues(layers=layers), (0,))


@dataclass
class _Graph:
    step: Step
    graph: Any
    logits: torch.Tensor  # of the last replay


class GraphedSteps:
    """Graphs by their size and whether any of them has a voice."""

    def __init__(self, reader: RowsReader, voices: VoiceBank | None = None) -> None:
        self.reader, self.voices = reader, voices
        self.why: str | None = None  # there are no graphs, if so
        if reader.on.device != "cuda":
            self.why = "CUDA graphs need a GPU"
        elif importlib.util.find_spec("triton") is None:
            self.why = "CUDA graphs need triton"
            log.warning("tokens come one kernel after another, more slowly than they could: triton is not installed")
        self._asked: Counter[tuple[int, bool]] = Counter()
        self._graphs: dict[tuple[int, bool], _Graph] = {}
        self._filler: Row | None = None
        self._spoken: torch.Tensor | None = None  # the weights of the rows' voices, where the graphs look for them
        self._pool: Any = None  # their memory: one, since only one runs at a time

    def read(self, rows: Sequence[Row], spare: Callable[[], int]) -> torch.Tensor | None:
        """(R, V) after one token of each row, as the ordinary way gives them; None where there is no graph (yet).
        `spare` gives the bytes of the GPU to which nobody has a claim."""
        kept_same = all(row.kept.layers.keys() == rows[0].kept.layers.keys() for row in rows)
        if self.why is not None or len(rows) > SIZES[-1] or not rows[0].kept.layers or not kept_same:
            return None
        count, size = len(rows), next(size for size in SIZES if size >= len(rows))
        if size > count:
            self._filler = self._filler or nobody(rows[0])
            rows = [*rows, *[self._filler] * (size - count)]
        who = tuple(row.kept.voice for row in rows)
        key = size, any(who)
        found = self._graphs.get(key)
        if found is None:
            self._asked[key] += 1
            if self._asked[key] < ASKED:
                return None
            if self._graphs and spare() < 2 * GRAPH * len(rows[0].kept.layers) + self._bytes_of_voices(who):
                self._asked[key] = ASKED - LATER
                return None
            found = self._try(key, rows, who)
            if found is None:
                return None
        found.step.fill(rows)
        self._speak(who)
        found.graph.replay()
        return found.logits[:count]

    def _try(self, key: tuple[int, bool], rows: Sequence[Row], who: tuple[str | None, ...]) -> _Graph | None:
        """A new graph, if the model can be captured and computes the same; else the reason is kept."""
        try:
            found = self._capture(rows, who)
        except torch.OutOfMemoryError:
            self._stop("the GPU's memory is too short for CUDA graphs")
        except Exception as error:  # a model's own code may do anything that cannot be captured
            self._stop(f"this model cannot be captured: {type(error).__name__}: {error}".splitlines()[0])
        else:
            if found is not None:
                self._graphs[key] = found
                return found
            self._stop("a captured step gave other numbers than an ordinary one")
        return None

    def _stop(self, why: str) -> None:
        log.warning("tokens come one kernel after another, more slowly than they could: %s", why)
        self.why, self._spoken, self._pool = why, None, None
        self._graphs.clear()
        torch.cuda.empty_cache()

    def _capture(self, rows: Sequence[Row], who: tuple[str | None, ...]) -> _Graph | None:
        """None if the step computes other logits than the ordinary way does, which is computed first."""
        with self.voices.speaking(list(who)) if self.voices else nullcontext():
            wanted = self.reader.read(rows)[:, -1].float()
        self._make_room_for_voices(who)
        step = Step(self.reader, rows)
        step.fill(rows)
        with self._speaking(who):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # once uncaptured: kernels are compiled, libraries take their workspace
                given = step.compute().float()
            torch.cuda.current_stream().wait_stream(aside)
            if not self.reader.is_near(given, wanted):
                return None
            del given, wanted
            graph = torch.cuda.CUDAGraph()
            if not self._graphs:  # a pool ends with its last graph
                self._pool = torch.cuda.graph_pool_handle()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits = step.compute()
        return _Graph(step, graph, logits)

    # -- voices ----------------------------------------------------------------------------------------------------

    def _bytes_of_voices(self, who: tuple[str | None, ...]) -> int:
        """What their place would take more than it does."""
        if self.voices is None or not any(who):
            return 0
        more = len(who) - (len(self._spoken) if self._spoken is not None else 0)
        return max(0, more) * self.voices.bytes_of_one(self.reader.on.autocast)

    def _make_room_for_voices(self, who: tuple[str | None, ...]) -> None:
        """Graphs with voices share one place for the weights; when it must be larger, they are made anew."""
        if self.voices is None or not any(who) or (self._spoken is not None and len(self._spoken) >= len(who)):
            return
        self._graphs = {key: graph for key, graph in self._graphs.items() if not key[1]}
        self._spoken = None
        self._spoken = self.voices.room_for(len(who), torch.device(self.reader.on.device), self.reader.on.autocast)
        self._who: list[str | None] = [None] * len(who)

    def _speak(self, who: tuple[str | None, ...]) -> None:
        """Put the rows' voices where the graphs look for them, those that changed."""
        if self.voices is None or self._spoken is None or not any(who):
            return
        for at, one in enumerate(who):
            if self._who[at] != one:
                self.voices.put(one, self._spoken[at])
                self._who[at] = one

    def _speaking(self, who: tuple[str | None, ...]) -> Any:
        if self.voices is None or self._spoken is None or not any(who):
            return nullcontext()
        self._speak(who)
        return self.voices.speaking_from(self._spoken[: len(who)])
