"""The arithmetic of a merge: W + sum of weight * scale * B @ A in float32, rounded once, block of rows by block.

    folding = Folding(plan.changes)
    for piece in folding.pieces(tensor): ...        # the new bytes of a tensor, at most `PIECE_BYTES` at once
    folding.rounding()                              # what rounding took of the adapter's change

DoRA (Liu et al. 2024, arXiv 2402.09353) then stretches each row of the sum to its trained length, which a block of
rows can do for itself. Blocks are computed side by side, each by one thread: torch's own threads meet after every
operation, which for blocks that fit a cache costs more than it saves (beside other work, many times more).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mrp.errors import InputError, MrpError
from mrp.models.merge_plan import Change
from mrp.models.shards import Piece, StoredTensor, as_piece, columns_of, raw_pieces, read_matrix, read_rows, row_blocks

MEASURED_WHOLE = 2**22  # numbers: what rounding takes of a larger weight is measured on a sample of its rows
SAMPLE_STEP = 8  # each eighth row: measuring all of them took half the time of a merge
MAX_WORKERS = 8  # each holds some 20 MiB

RowBlock = tuple[int, int]  # (first row, end)


@dataclass
class Rounding:
    """What rounding did to the numbers of one weight, or of several."""

    count: int = 0
    measured: int = 0
    change_squared: float = 0.0
    error_squared: float = 0.0
    change_sum: float = 0.0  # of absolute values, as the next one
    error_sum: float = 0.0
    largest_change: float = 0.0
    largest_error: float = 0.0

    def add(self, other: Rounding) -> None:
        for name in ("count", "measured", "change_squared", "error_squared", "change_sum", "error_sum"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.largest_change = max(self.largest_change, other.largest_change)
        self.largest_error = max(self.largest_error, other.largest_error)

    def of_all(self, count: int) -> Rounding:
        """The sums of `count` numbers, of which these are a sample."""
        more = count / max(self.count, 1)
        return replace(
            self,
            count=count,
            change_squared=more * self.change_squared,
            error_squared=more * self.error_squared,
            change_sum=more * self.change_sum,
            error_sum=more * self.error_sum,
        )

    @property
    def lost(self) -> float:
        """Norm of the rounding error / norm of the change."""
        return (self.error_squared / self.change_squared) ** 0.5 if self.change_squared else 0.0


def measure_rounding(change: torch.Tensor, error: torch.Tensor) -> Rounding:
    """Of a block, whose tensors are overwritten."""
    squared = [float(torch.linalg.vector_norm(x, 2)) ** 2 for x in (change, error)]
    change.abs_()
    error.abs_()
    sums, largest = [float(x.sum()) for x in (change, error)], [float(x.max()) for x in (change, error)]
    return Rounding(error.numel(), error.numel(), *squared, *sums, *largest)


@dataclass
class Folding:
    """New bytes for each tensor, and how much of the change was lost when they were rounded."""

    changes: dict[str, Change]  # by name of the weight
    rounded: dict[str, Rounding] = field(default_factory=dict)

    def pieces(self, tensor: StoredTensor) -> Iterator[Piece]:
        """The bytes of `tensor`, a weight as it is to be written."""
        if tensor.name not in self.changes:
            yield from raw_pieces(tensor)
            return
        fold, seen = Fold(tensor, self.changes[tensor.name]), Rounding()
        for rounded, measured in in_order(lambda rows: fold.block(*rows)[1:], row_blocks(tensor)):
            seen.add(measured)
            yield as_piece(rounded)
        self.rounded[tensor.name] = seen.of_all(fold.numbers)

    def scales(self) -> float | dict[str, float] | None:
        """What B @ A is multiplied by (the adapter's weight included): one number that all layers share, or each one's
        (of several adapters, their list); None where nothing is added."""
        scales: dict[str, Any] = {}
        for name, change in self.changes.items():
            found = [weight * pair.scale for weight, pair in change.addends]
            if found:
                scales[name] = found[0] if len(found) == 1 else found
        if not scales:
            return None
        first = next(iter(scales.values()))
        return first if all(scale == first for scale in scales.values()) else scales

    def rounding(self) -> dict[str, Any]:
        """How much of the change was lost by rounding: as a share of its norm, and in absolute numbers."""
        whole = Rounding()
        for one in self.rounded.values():
            whole.add(one)
        largest = max(self.rounded, key=lambda name: self.rounded[name].lost)
        count = max(whole.count, 1)
        return {
            "measured_share": whole.measured / count,  # of the changed numbers; the rest of this is their estimate
            "lost": whole.lost,
            "mean": sum(one.lost for one in self.rounded.values()) / len(self.rounded),
            "largest": self.rounded[largest].lost,
            "largest_in": largest,
            "change_norm": whole.change_squared**0.5,
            "largest_difference": whole.largest_error,
            "mean_difference": whole.error_sum / count,
            "largest_change": whole.largest_change,
            "mean_change": whole.change_sum / count,
        }


class Fold:
    """One changed weight as it is to be written, block by block of its rows."""

    def __init__(self, tensor: StoredTensor, change: Change) -> None:
        self.tensor, self.change, self.blocks = tensor, change, Blocks(change)
        self.numbers = tensor.shape[0] * columns_of(tensor)
        self.step = 1 if self.numbers <= MEASURED_WHOLE else SAMPLE_STEP

    def block(
        self, first: int, end: int, stored: torch.Tensor | None = None, into: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, Rounding]:
        """(the exact numbers, the rounded ones, what rounding did); `stored`, the rows in float32 where they have been
        read already, is overwritten; `into` is a place for the rounded. Raises `InputError` for what is not finite."""
        stored = self.blocks.stored(first, end) if stored is None else stored
        exact, added = self.blocks.add(stored, first, end, self.step)
        if self.change.before:
            added = _beyond(exact, self.change.before, first)[:: self.step]
        rounded = exact.to(self.tensor.torch_dtype) if into is None else into.copy_(exact)
        # Rounding keeps order, so if the outermost numbers are finite, all are (aminmax hands on NaN).
        if not torch.isfinite(torch.stack(torch.aminmax(rounded))).all():
            raise _not_finite(self.tensor, self.change.source, first, end)
        return exact, rounded, measure_rounding(added, exact[:: self.step] - rounded[:: self.step])


class Blocks:
    """The exact numbers of one changed weight, by blocks of rows."""

    def __init__(self, change: Change) -> None:
        self.source = change.source
        factors = [(weight, *pair.addends()) for weight, pair in change.addends]
        # Adapters side by side are one product: [w1 * B1, w2 * B2] @ [A1; A2].
        self.left = torch.cat([left * weight for weight, left, _ in factors], 1) if factors else None  # (rows, ranks)
        self.right = torch.cat([right for _, _, right in factors]) if factors else None  # (ranks, columns)
        magnitudes = [pair.magnitude for _, pair in change.addends if pair.magnitude]
        self.magnitude = read_matrix(magnitudes[0]) if magnitudes else None  # (rows, 1)

    def stored(self, first: int, end: int) -> torch.Tensor:
        """(rows, columns) of the source in float32."""
        return read_rows(self.source, first, end).float()

    def sum(self, first: int, end: int, step: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, columns) in float32: the sum itself, and of each `step`-th row what was added to the source."""
        return self.add(self.stored(first, end), first, end, step)

    def add(self, stored: torch.Tensor, first: int, end: int, step: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of rows in hand, which are overwritten."""
        if self.left is None or self.right is None:
            return stored, torch.zeros_like(stored[::step])
        if self.magnitude is None:
            return stored.addmm_(self.left[first:end], self.right), self.left[first:end:step] @ self.right
        before = stored[::step].clone()
        exact = stored.addmm_(self.left[first:end], self.right)
        exact *= self.magnitude[first:end] / torch.linalg.vector_norm(exact, dim=1, keepdim=True)
        return exact, exact[::step] - before


def in_order(
    work: Callable[[RowBlock], tuple[torch.Tensor, Rounding]], items: Iterable[RowBlock]
) -> Iterator[tuple[torch.Tensor, Rounding]]:
    """`work` of each item, in their order: computed by as many threads as torch has, each of them alone with its block.

    A few items are in work ahead of the one that is waited for, so little lies in memory.
    """
    threads = torch.get_num_threads()
    workers = min(threads, MAX_WORKERS)
    waiting: deque[Future[tuple[torch.Tensor, Rounding]]] = deque()
    torch.set_num_threads(1)  # which new threads take over
    try:
        with ThreadPoolExecutor(workers) as pool:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > workers + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads)


def _beyond(exact: torch.Tensor, before: StoredTensor, first: int) -> torch.Tensor:
    """What sets the rows from `first` on apart from the base's own; rows that the base has not are all change."""
    end = min(first + len(exact), before.shape[0])
    change = exact.clone()
    if first < end:
        change[: end - first] -= read_rows(before, first, end)
    return change


def _not_finite(tensor: StoredTensor, source: StoredTensor, first: int, end: int) -> MrpError:
    if not torch.isfinite(read_rows(source, first, end)).all():
        return InputError(f"{tensor.name} of the base holds NaN or infinity", source.where, "copy the base model anew")
    what = f"{tensor.name} with the adapter is too large for {tensor.dtype}"
    return InputError(what, source.where, "train again, with a lower train.learning_rate")
