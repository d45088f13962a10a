"""A large merge and the passes that check it, in one sweep: each weight is read once, and used while it is at hand.

    expected, without, found = sweep(base, plan, shards, part, folding, probes)   # logits; the files are written

The probes go through the model three at a time: beside base + adapters (the adapters as (x @ A^T) @ B^T, not as the
sum), beside the base alone, and beside the weights as they are rounded and written. A linear layer reads its rows in
blocks, multiplies the first two by them, folds the adapters in, writes the block to its place in the new file, and
multiplies the third by what it wrote. So the check costs its arithmetic and no second reading of two models.

What stands in the files afterwards is compared by merge_stream.py: a row of every block, read back.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from mrp.models.merge_numbers import MAX_WORKERS, Blocks, Fold, Folding, Rounding
from mrp.models.merge_plan import Change, MergePlan
from mrp.models.merge_stream import padded, streaming
from mrp.models.page_cache import let_go, read_ahead, stays_in_memory
from mrp.models.shard_files import ShardFiles
from mrp.models.shards import Shard, as_piece, read_rows, row_blocks

Logits = list[torch.Tensor]  # (T, V) of each probe, float32


def sweep(
    base: Path,
    plan: MergePlan,
    shards: list[Shard],
    part: Path,
    folding: Folding,
    probes: Sequence[Sequence[int]],
    tick: Callable[[int], None] = lambda _: None,
) -> tuple[Logits, Logits, Logits]:
    """Write the merged model to the folder `part`; returns the probes' logits beside base + adapters, beside the base
    alone, and beside the merged model. Raises what `Folding.pieces` raises. For models that `can_stream`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # which new threads take over: a block belongs to one of them (see merge_numbers.py)
    try:
        keep = stays_in_memory(2 * sum(shard.data_bytes for shard in shards))
        with ShardFiles(part, shards, tick, keep) as files, ThreadPoolExecutor(min(threads, MAX_WORKERS)) as pool:
            work = _Sweep(plan, files, folding, pool)
            model = streaming(base, plan, work.linear, work.embedding, work.other)
            batch = padded(probes)  # (B, T)
            with torch.inference_mode(), torch.autocast("cpu", enabled=False):
                logits = model(input_ids=batch.repeat(3, 1), use_cache=False).logits.float()  # (3 B, T, V)
            for tensor in plan.tensors:
                if tensor.name not in work.written:
                    files.write(tensor.name, folding.pieces(tensor))
    finally:
        torch.set_num_threads(threads)
    thirds = logits.split(len(batch))
    expected, without, found = ([x[k, : len(ids)] for k, ids in enumerate(probes)] for x in thirds)
    return expected, without, found


class _Sweep:
    """What the modules of one pass share; it makes their forward functions (see merge_stream.streaming)."""

    def __init__(self, plan: MergePlan, files: ShardFiles, folding: Folding, pool: ThreadPoolExecutor) -> None:
        self.tensors = {t.name: t for t in plan.tensors}
        self.files, self.folding, self.pool = files, folding, pool
        self.scratch = _Scratch()
        self.written: set[str] = set()
        self.linears: list[_Linear] = []  # in the order of the modules, which is that of the computation

    def linear(self, name: str, change: Change, bias: tuple[str, Change] | None, is_own: bool) -> Any:
        forward = _Linear(self, name, change, None if bias is None else self.both(*bias), is_own)
        self.linears.append(forward)
        return forward

    def embedding(self, name: str, change: Change) -> Any:
        return _Embedding(change, self.tensors[name].torch_dtype)

    def other(self, module: Any, sources: dict[str, tuple[str, Change]]) -> Any:
        """A norm, say: with the exact numbers for the first two thirds of the batch, with the written ones for the
        third."""
        numbers = {kind: self.both(name, change) for kind, (name, change) in sources.items()}
        exact, written = copy.deepcopy(module), copy.deepcopy(module)
        for kind, (one, other) in numbers.items():
            shape = module.get_parameter(kind).shape
            setattr(exact, kind, torch.nn.Parameter(one.view(shape), requires_grad=False))
            setattr(written, kind, torch.nn.Parameter(other.view(shape), requires_grad=False))

        def forward(x: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
            cut = len(x) // 3 * 2
            return torch.cat([exact(x[:cut], *more, **named), written(x[cut:], *more, **named)])

        return forward

    def both(self, name: str, change: Change) -> tuple[torch.Tensor, torch.Tensor]:
        """A vector in float32: its exact numbers, and those that are written."""
        exact = Blocks(change).sum(0, change.source.shape[0])[0]
        return exact.view(-1), exact.to(self.tensors[name].torch_dtype).float().view(-1)


class _Scratch(threading.local):
    """Memory of one thread that is used again for block after block: fresh pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def take(self, purpose: str, dtype: torch.dtype, rows: int, columns: int) -> torch.Tensor:
        """(rows, columns), with the numbers of an earlier block."""
        kept = self.kept.get((purpose, dtype))
        if kept is None or len(kept) < rows * columns:
            kept = self.kept[purpose, dtype] = torch.empty(rows * columns, dtype=dtype)
        return kept[: rows * columns].view(rows, columns)


class _Linear:
    """x @ W^T of three thirds of x, block by block of W's rows, which are written meanwhile (unless W is another's)."""

    def __init__(self, sweep: _Sweep, name: str, change: Change, bias: Any, is_own: bool) -> None:
        self.sweep, self.change, self.bias, self.is_own = sweep, change, bias, is_own
        self.tensor = sweep.tensors[name]
        self.is_changed = name in sweep.folding.changes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        fold = Fold(self.tensor, self.change)
        flat = x.reshape(-1, x.shape[-1])
        third = len(flat) // 3
        low = None if fold.blocks.right is None else flat[:third] @ fold.blocks.right.T  # (B T, ranks)
        todo = [
            self.sweep.pool.submit(self._block, fold, flat, low, first, end) for first, end in row_blocks(self.tensor)
        ]
        self._read_ahead()
        try:
            parts, rounded = zip(*(one.result() for one in todo), strict=True)
        finally:
            for one in todo:
                one.cancel()
        if self.is_own:
            self._note(fold, rounded)
        if not self.sweep.files.keep:
            let_go(self.change.source.path, self.change.source.start, self.change.source.nbytes)
        y = torch.cat(parts, -1)
        if self.bias is not None:
            exact, written = self.bias
            y[: 2 * third] += exact
            y[2 * third :] += written
        return y.view(*x.shape[:-1], -1)

    def _block(
        self, fold: Fold, x: torch.Tensor, low: torch.Tensor | None, first: int, end: int
    ) -> tuple[torch.Tensor, Rounding | None]:
        blocks, third = fold.blocks, len(x) // 3
        source, shape, scratch = fold.change.source, (end - first, x.shape[1]), self.sweep.scratch
        raw = read_rows(source, first, end, scratch.take("raw", source.torch_dtype, *shape))
        stored = scratch.take("stored", torch.float32, *shape).copy_(raw)  # (rows, columns)
        if not self.is_changed:
            if self.is_own:
                self._put(raw, first)
            return x @ stored.T, None
        before = x[: 2 * third] @ stored.T
        place = scratch.take("rounded", self.tensor.torch_dtype, *shape)
        exact, rounded, measured = fold.block(first, end, stored, place)
        if blocks.magnitude is not None:
            before[:third] = x[:third] @ exact.T
        elif low is not None and blocks.left is not None:
            before[:third] += low @ blocks.left[first:end].T
        if self.is_own:
            self._put(rounded, first)
        after = x[2 * third :] @ exact.copy_(rounded).T
        return torch.cat([before, after]), measured

    def _put(self, rows: torch.Tensor, first: int) -> None:
        self.sweep.files.put(self.tensor.name, first * rows[0].nbytes, as_piece(rows))

    def _note(self, fold: Fold, measured: Sequence[Rounding | None]) -> None:
        self.sweep.written.add(self.tensor.name)
        if self.is_changed:
            whole = Rounding()
            for one in measured:
                if one is not None:
                    whole.add(one)
            self.sweep.folding.rounded[self.tensor.name] = whole.of_all(fold.numbers)

    def _read_ahead(self) -> None:
        at = self.sweep.linears.index(self) + 1
        if at < len(self.sweep.linears):
            source = self.sweep.linears[at].change.source
            read_ahead(source.path, source.start, source.nbytes)


class _Embedding:
    """The rows of the tokens that occur: exact, the base's, and as they are written."""

    def __init__(self, change: Change, dtype: torch.dtype) -> None:
        self.change, self.dtype = change, dtype

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        blocks = Blocks(self.change)
        found = {int(i): blocks.sum(int(i), int(i) + 1) for i in ids.unique()}
        thirds = []
        for third, part in enumerate(ids.chunk(3)):
            rows = [self._row(*found[int(i)], third) for i in part.flatten()]
            thirds.append(torch.cat(rows).view(*part.shape, -1))
        return torch.cat(thirds)

    def _row(self, exact: torch.Tensor, added: torch.Tensor, third: int) -> torch.Tensor:
        return (exact, exact - added, exact.to(self.dtype).float())[third]
