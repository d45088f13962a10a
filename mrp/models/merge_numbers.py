"""The arithmetic of a merge: W + sum of weight * scale * B @ A in float32, rounded once, block of rows by block.

    folding = Folding(plan.changes)
    for piece in folding.pieces(tensor): ...        # the new bytes of a tensor, at most `PIECE_BYTES` at once
    folding.rounding()                              # what rounding took of the adapter's change

DoRA (Liu et al. 2024, arXiv 2402.09353) then stretches each row of the sum to its trained length, which a block of
rows can do for itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from mrp.errors import InputError, MrpError
from mrp.models.merge_plan import Change
from mrp.models.shards import Piece, StoredTensor, as_piece, raw_pieces, read_matrix, read_rows, row_blocks


@dataclass
class Rounding:
    """What rounding did to the numbers of one weight, or of several."""

    count: int = 0
    change_squared: float = 0.0
    error_squared: float = 0.0
    change_sum: float = 0.0  # of absolute values, as the next one
    error_sum: float = 0.0
    largest_change: float = 0.0
    largest_error: float = 0.0

    def add(self, change: torch.Tensor, error: torch.Tensor) -> None:
        """Count a block; NaN in it makes `error_sum` NaN."""
        self.count += error.numel()
        self.change_squared += _norm(change, 2) ** 2
        self.error_squared += _norm(error, 2) ** 2
        self.change_sum += _norm(change, 1)
        self.error_sum += _norm(error, 1)
        self.largest_change = max(self.largest_change, _largest(change))
        self.largest_error = max(self.largest_error, _largest(error))

    def join(self, other: Rounding) -> None:
        for name in ("count", "change_squared", "error_squared", "change_sum", "error_sum"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.largest_change = max(self.largest_change, other.largest_change)
        self.largest_error = max(self.largest_error, other.largest_error)

    @property
    def lost(self) -> float:
        """Norm of the rounding error / norm of the change."""
        return (self.error_squared / self.change_squared) ** 0.5 if self.change_squared else 0.0


def _norm(values: torch.Tensor, order: float) -> float:
    return float(torch.linalg.vector_norm(values, order))


def _largest(values: torch.Tensor) -> float:
    smallest, largest = torch.aminmax(values)  # seven times as fast as the norm of order infinity
    return max(-float(smallest), float(largest))


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
        seen = Rounding()
        change = self.changes[tensor.name]
        blocks = Blocks(change)
        for first, end in row_blocks(tensor):
            exact, added = blocks.sum(first, end)
            if change.before:
                added = _beyond(exact, change.before, first)
            rounded = exact.to(tensor.torch_dtype)
            # In place where it can be: `rounded` is `exact` itself where the file holds float32.
            seen.add(added, exact - rounded if rounded is exact else exact.sub_(rounded))
            if not math.isfinite(seen.error_sum):
                raise _not_finite(tensor, change.source, first, end)
            yield as_piece(rounded)
        self.rounded[tensor.name] = seen

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
            whole.join(one)
        largest = max(self.rounded, key=lambda name: self.rounded[name].lost)
        count = max(whole.count, 1)
        return {
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

    def sum(self, first: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, columns) in float32: the sum itself, and what was added to the source."""
        stored = read_rows(self.source, first, end).float()
        if self.left is None or self.right is None:
            return stored, torch.zeros_like(stored)
        added = self.left[first:end] @ self.right
        if self.magnitude is None:
            return stored.add_(added), added
        exact = stored + added
        exact *= self.magnitude[first:end] / torch.linalg.vector_norm(exact, dim=1, keepdim=True)
        return exact, exact - stored


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
