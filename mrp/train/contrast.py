"""The contrast: a reply must be likelier under its own identity than under another character's.

    twins = Twins(run, template)
    items = twins.beside(items, epoch=0)             # each with the same lines under another identity
    row = twins.beside_row(row, pieces, epoch, 0)    # a voice's row, all of it under one other identity
    term = contrast(own, items, other)               # one number a reply, in nats

A twin is the same sample through the same view and renderer; only the system message tells of somebody else. For a
reply of n tokens, G is the sum of what its tokens cost more under the other identity, and the term softplus(-G), the
logistic loss of telling the two apart; what was tried is in docs/experiments.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812

from mrp.cast import PLAIN
from mrp.config import Run
from mrp.data.samples import Sample
from mrp.errors import InputError
from mrp.render import ChatTemplate, Rendered, render_sample
from mrp.train.steps import Item, Twin


class Twins:
    """Renders samples under other identities, those of `among` (or of the whole cast); each pair once."""

    def __init__(self, run: Run, template: ChatTemplate, among: Sequence[str] = ()) -> None:
        self.run, self.template = run, template
        self.among = [c.id for c in run.cast if not among or c.id in among]
        self._known: dict[tuple[str, str], list[Rendered]] = {}
        if len(self.among) < 2:
            key = "train.voice_contrast" if among else "train.contrast"
            what = f"a contrast needs two characters, and {'lines of' if among else 'the cast has'} one"
            raise InputError(f"{what} are there" if among else what, key, f"set {key}: 0, or add a character")

    def beside(self, items: Sequence[Item], epoch: int) -> list[Item]:
        """The pieces of one sample, each with its twin.

        Without: general chat data, and a sample longer than a row that is cut elsewhere under a longer persona.
        """
        if not items or items[0].sample.character == PLAIN:
            return list(items)
        return self._beside(items, self.other(items[0].sample, epoch))

    def beside_row(self, row: Sequence[Item], pieces: Mapping[str, list[Item]], epoch: int, number: int) -> list[Item]:
        """A row of one character, each item with its twin: all under one other identity, since a row has one voice.

        `pieces` are all of each sample; `number` is the row's place in the epoch. The other is drawn by seed, epoch,
        number and character alone.
        """
        other = self._drawn(row[0].sample.character, f"{epoch} row {number} {row[0].sample.character}")
        found = []
        for item in row:
            own = pieces[item.sample.id]
            found.append(self._beside(own, other)[own.index(item)])
        return found

    def other(self, sample: Sample, epoch: int) -> str:
        """Another character, drawn by seed, epoch and sample alone."""
        return self._drawn(sample.character, f"{epoch} {sample.id}")

    def _drawn(self, character: str, what: str) -> str:
        others = [who for who in self.among if who != character]
        text = f"contrast {self.run.config.seed} {what}".encode()
        return others[int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") % len(others)]

    def _beside(self, items: Sequence[Item], other: str) -> list[Item]:
        pieces = self._rendered(items[0].sample, other)
        if [_learnt(item.rendered) for item in items] != [_learnt(piece) for piece in pieces]:
            return list(items)
        return [dataclasses.replace(i, twin=Twin(other, p)) for i, p in zip(items, pieces, strict=True)]

    def _rendered(self, sample: Sample, other: str) -> list[Rendered]:
        if (sample.id, other) not in self._known:
            limit = self.run.config.train.max_tokens
            pieces, _ = render_sample(self.template, self.run.cast, sample, limit, identity=other)
            self._known[sample.id, other] = pieces
        return self._known[sample.id, other]


def _learnt(rendered: Rendered) -> list[int]:
    return [token for token, labelled in zip(rendered.input_ids, rendered.loss, strict=True) if labelled]


def contrast(own: torch.Tensor, items: Sequence[Item], other: torch.Tensor) -> torch.Tensor:
    """(R,) the term of each reply that has a twin, in nats.

    `own` (N,) are the losses of the labelled tokens of `items`, `other` (M,) those of their twins, both in order.
    """
    reply = reply_numbers(items)
    paired = (reply >= 0).nonzero()[:, 0]  # here, on the CPU, so that a GPU need not be waited for
    more = torch.zeros(sum(item.rendered.replies for item in items if item.twin), dtype=own.dtype, device=own.device)
    gain = other - own[paired.to(own.device)]
    return F.softplus(-more.index_add(0, reply[paired].to(own.device), gain))


def reply_numbers(items: Sequence[Item]) -> torch.Tensor:
    """(N,) of each labelled token of `items` the number of its reply among those that have a twin; -1 without."""
    found, number = [], -1
    for item in items:
        before = False
        for labelled in item.rendered.loss:
            if labelled:
                number += item.twin is not None and not before
                found.append(number if item.twin else -1)
            before = labelled
    return torch.tensor(found, dtype=torch.long)
