"""The loss of a model on packed samples: cross-entropy of the labelled tokens only.

    batch = make_batch([[rendered_a, rendered_b], [rendered_c]])      # two rows
    losses = token_losses(model, batch)                               # one number a labelled token, in nats

Samples in a row do not see each other: no attention mask is given, and positions start at 0 in each sample, from
which transformers makes the block mask (only without mask and cache; a mask of ones would let them see each other).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from mrp.render import Rendered

# Rows are widened to a multiple of WIDTH tokens, labelled tokens filled up to a multiple of LABELS: the CPU's matmul
# library makes kernels for each new shape, and keeps them. With rows of any width a training of the 135M base grew to
# 2.5 GiB in 40 steps and went on growing; so it stays at 1.4 GiB, and the padding costs no more time than the kernels.
WIDTH, LABELS = 64, 32
AT_ONCE = 128  # labelled tokens whose logits stand in float32 at once, where there is no way back
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """B packed rows of T tokens (short rows are padded at the end with a sample of their own, never labelled)."""

    input_ids: torch.Tensor  # (B, T)
    position_ids: torch.Tensor  # (B, T), from 0 in each sample
    columns: torch.Tensor  # (C,) the columns in which some row predicts a labelled token
    row: torch.Tensor  # (N,) of each labelled token: its row,
    column: torch.Tensor  # (N,) the index in `columns` of the token before it,
    target: torch.Tensor  # (N,) its id,
    sample: torch.Tensor  # (N,) and the number of its sample in the batch

    def to(self, device: str) -> Batch:
        """The batch on `device`; without waiting, but towards the host: what is read there must have arrived."""
        waits = device == "cpu"
        return Batch(*(getattr(self, f.name).to(device, non_blocking=not waits) for f in fields(self)))

    @property
    def tokens(self) -> int:
        return int(self.input_ids.numel())


def make_batch(rows: Sequence[Sequence[Rendered]]) -> Batch:
    """Rows of samples as tensors. Padding is known by its place, never by its id (pad may equal eos)."""
    width = max(sum(len(s.input_ids) for s in row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    row_of, at, target, sample_of = [], [], [], []
    number = 0
    for r, row in enumerate(rows):
        start = 0
        for sample in row:
            length = len(sample.input_ids)
            ids[r, start : start + length] = torch.tensor(sample.input_ids)
            positions[r, start : start + length] = torch.arange(length)
            for i, labelled in enumerate(sample.loss):
                if labelled:
                    assert i > 0, "the first token of a sample cannot be predicted"
                    row_of.append(r)
                    at.append(start + i - 1)
                    target.append(sample.input_ids[i])
                    sample_of.append(number)
            start += length
            number += 1
        positions[r, start:] = torch.arange(width - start)
    columns, column = torch.unique(torch.tensor(at, dtype=torch.long), return_inverse=True)
    row_index, targets, samples = (torch.tensor(x, dtype=torch.long) for x in (row_of, target, sample_of))
    return Batch(ids, positions, columns, row_index, column, targets, samples)


def token_losses(model: Any, batch: Batch) -> torch.Tensor:
    """(N,) float32: the loss in nats of each labelled token of `batch`, with gradient where it is on.

    What stands for a model may bring its own `token_losses` (the fast path does, for measuring).
    """
    if hasattr(model, "token_losses"):
        own: torch.Tensor = model.token_losses(batch)
        return own
    count, rows = len(batch.target), len(batch.input_ids)
    wider, more = -batch.input_ids.shape[1] % WIDTH, -count % LABELS
    filling = torch.arange(wider, device=batch.position_ids.device).expand(rows, -1)  # from 0: a sample of its own
    given = {
        "input_ids": F.pad(batch.input_ids, (0, wider)),
        "position_ids": torch.cat([batch.position_ids, filling], 1),
        "use_cache": False,
    }
    columns = F.pad(batch.columns, (0, -len(batch.columns) % LABELS))
    if _keeps_columns(model):
        logits = model(**given, logits_to_keep=columns).logits  # (B, C, V)
    else:
        logits = model(**given).logits[:, columns]
    row, column = (F.pad(index, (0, more)) for index in (batch.row, batch.column))
    labelled = logits[0] if rows == 1 else logits[row, column]  # (N, V), in one row C = N
    target = F.pad(batch.target, (0, more), value=IGNORED)
    size = len(target) if torch.is_grad_enabled() else AT_ONCE  # the way back keeps them all anyway
    parts = zip(labelled.split(size), target.split(size), strict=True)
    return torch.cat([F.cross_entropy(part.float(), wanted, reduction="none") for part, wanted in parts])[:count]


def keeps_apart(model: Any) -> bool:
    """True if samples in a row do not see each other (law 6), found by trying: another neighbour, the same losses.

    Some architectures see through: in transformers 5.23 those that take no `position_ids` (Mamba, OPT, MPT, Bloom),
    carry a state along the row (Qwen3-Next, Jamba), or do not hand positions to their mask (gpt-oss). For these, put
    each sample into a row of its own.
    """
    neighbours = [Rendered(ids, [False] * 6) for ids in ([3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3])]  # in any vocabulary
    kept = Rendered([5, 6, 7, 8, 9, 10], [False] + [True] * 5)
    device = str(next(model.parameters()).device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        one, other = (token_losses(model, make_batch([[neighbour, kept]]).to(device)) for neighbour in neighbours)
    model.train(was_training)
    return bool(torch.equal(one, other))


def _keeps_columns(model: Any) -> bool:
    """True if the model can compute the logits of chosen positions only."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
