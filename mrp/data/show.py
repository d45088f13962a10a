"""Samples for the eye: what training learns stands out from what it only reads.

    for text in show_samples(samples, rendered, colour=console.is_terminal):
        console.print(text)

`rendered` comes from the renderer, so what is shown is what training gets, template and all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

from rich.text import Text

from mrp.data.samples import Sample

SUPERVISED_STYLE = "bold green"
UNSUPERVISED_STYLE = "bright_black"
LEFT, RIGHT = "⟦", "⟧"  # around supervised text where there is no colour


def show_samples(
    samples: Iterable[Sample], rendered: Callable[[Sample], list[tuple[str, bool]]], colour: bool = True
) -> Iterator[Text]:
    """One `Text` for each sample: a line about it, then its rendered text with the loss mask.

    `rendered` gives the pieces of a sample's text with whether training learns them. With `colour` the learnt text is
    bold green and the rest grey; without, it stands in ⟦...⟧.
    """
    for sample in samples:
        text = Text()
        text.append(f"{sample.id}  character {sample.character}  from {sample.source}\n", "bold" if colour else "")
        for supervised, pieces in groupby(rendered(sample), key=lambda piece: piece[1]):
            part = "".join(piece for piece, _ in pieces)
            if colour:
                text.append(part, SUPERVISED_STYLE if supervised else UNSUPERVISED_STYLE)
            else:
                text.append(f"{LEFT}{part}{RIGHT}" if supervised else part)
        yield text
