"""The steps of the voices: each character's own packed rows, several characters side by side.

    groups of at most 2, an epoch of each;  a row is one packed row of that character

    group 1   step  wukong  bajie        group 2   step  tang
              0     row 0   row 0                  0     row 0
              1     row 1   row 1                  1     row 1
              2     row 2     .   (bajie waits for the next epoch, with nothing changed)

A voice sees the rows, in the order, with the rates that it would have alone, so it does not matter who learns beside
it, nor how large a group is: that only bounds memory (`train.voice_rows`). With `train.voice_contrast` each row also
has a twin, the same lines under the persona and the voice of another; then all voices are one group, and learn from
one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from mrp.cast import PLAIN
from mrp.config import Run
from mrp.data.pack import pack
from mrp.data.samples import Sample, in_order

if TYPE_CHECKING:
    from mrp.render import ChatTemplate
    from mrp.train.steps import Item, Step

Row = tuple["Item", ...]


def plan_voices(
    samples: Sequence[Sample], items: dict[str, list[Item]], run: Run, template: ChatTemplate, packed: bool = True
) -> list[Step]:
    """The steps of all groups, one group after the other. `samples` are those that the adapter was trained on."""
    from mrp.train.contrast import Twins
    from mrp.train.steps import Step

    options = run.config.train
    rows = {c.id: _rows_by_epoch(c.id, samples, items, run, packed) for c in run.cast}
    counts = {who: sum(map(len, epochs)) for who, epochs in rows.items()}
    # those with about as many rows learn together, so that few wait for others
    voiced = sorted((who for who in counts if counts[who]), key=lambda who: -counts[who])
    twins = Twins(run, template, voiced) if options.voice_contrast else None
    size = len(voiced) if twins else options.voice_rows
    steps = []
    groups = [voiced[at : at + size] for at in range(0, len(voiced), size)]
    for stage, group in enumerate(groups, start=1):
        done = dict.fromkeys(group, 0)
        for epoch in range(options.voice_epochs):
            at = options.epochs + (stage - 1) * options.voice_epochs + epoch
            sets = list(zip_longest(*(rows[who][epoch] for who in group)))
            for number, side_by_side in enumerate(sets):
                speaking = [who for who, row in zip(group, side_by_side, strict=True) if row is not None]
                places = {who: (done[who], counts[who]) for who in speaking}
                done |= {who: done[who] + 1 for who in speaking}
                found = tuple(row for row in side_by_side if row is not None)
                if twins:
                    found = tuple(tuple(twins.beside_row(row, items, at, number)) for row in found)
                steps.append(Step(at, found, number + 1 == len(sets), stage, places))
    return steps


def _rows_by_epoch(
    who: str, samples: Sequence[Sample], items: dict[str, list[Item]], run: Run, packed: bool
) -> list[list[Row]]:
    """A character's rows in each epoch of the voices, whose orders follow on those of the adapter's."""
    assert who != PLAIN
    options, found = run.config.train, []
    own = [sample for sample in samples if sample.character == who]
    for epoch in range(options.epochs, options.epochs + options.voice_epochs):
        flat = [item for sample in in_order(own, run, epoch) for item in items[sample.id]]
        lengths = [len(item.rendered.input_ids) for item in flat]
        numbers = pack(lengths, options.max_tokens) if packed else [[index] for index in range(len(flat))]
        found.append([tuple(flat[i] for i in row) for row in numbers])
    return found
