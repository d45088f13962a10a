"""The second loss of a pass: each reply against its twin, the same reply under another identity (`train.contrast`).

    weights, terms = second_loss(losses, fields, shape.replies)

With o and t the sums of a reply's losses under its own and under the other identity, its term is softplus(o - t). What
it asks of a single token hangs on all tokens of both, which lie in different chunks of the head; so chunks give each
token's gradient with weight 1, and afterwards it is multiplied by what the token weighs in both losses together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from mrp.train.fast.rows import Fields

ONE = 2.0**32  # of the whole numbers that are summed up: 16,384 tokens of 10,000 nats fit, rounded to 2e-10 each


def second_loss(losses: torch.Tensor, fields: Fields, replies: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) fp64 what each labelled token's loss weighs in the gradient, and (replies,) the terms, unused slots log 2.

    Sums are of whole numbers: a GPU adds in any order, and only these come out the same to the bit each time.
    """
    whole = (losses.double() * ONE).round().long()
    sums = torch.zeros(2 * (replies + 1), dtype=torch.long, device=losses.device).index_add_(0, fields.part, whole)
    own, other = (sums.double() / ONE).view(2, -1)[:, :replies]
    push = F.pad(fields.pull * torch.sigmoid(own - other), (0, 1))  # the last: tokens whose reply has no twin
    weights = fields.weight + torch.cat([push, -push])[fields.part]
    return weights, F.softplus(own - other).to(losses.dtype)
