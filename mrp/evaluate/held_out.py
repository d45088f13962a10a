"""Held-out loss: how well a model predicts each character's lines that it never saw.

losses = character_losses(model, items, max_tokens, on)          # {"wukong": Mean(3.1, 812), ...}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mrp.cast import PLAIN
from mrp.data.pack import pack
from mrp.models.load import Hardware

if TYPE_CHECKING:
    from mrp.train.processes import Processes
    from mrp.train.steps import Item


@dataclass(frozen=True)
class Mean:
    """A mean loss in nats a token, over so many labelled tokens."""

    loss: float
    tokens: int


def character_losses(
    model: Any,
    items: Sequence[Item],
    max_tokens: int,
    on: Hardware,
    processes: Processes | None = None,
    tick: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    packed: bool = True,
    speaking: Callable[[list[str | None]], AbstractContextManager[None]] | None = None,
) -> dict[str, Mean]:
    """The mean loss of each character's labelled tokens; `tick` is told the tokens of each pass.

    As soon as `stop` says so it ends without the rest: the caller then throws the result away. `packed` False gives
    each sample a row of its own, for a model that does not keep samples apart. With `speaking` (of a `VoiceBank`)
    each character is measured with its voice.
    """
    import torch

    from mrp.models.loss import make_batch, token_losses

    rank, world = (processes.rank, processes.world) if processes else (0, 1)
    names = sorted({item.sample.character for item in items})
    sums = torch.zeros(len(names), 2, dtype=torch.float64)
    rows = _rows(items, max_tokens, packed, by_character=speaking is not None)
    was_training = model.training
    model.eval()
    with torch.no_grad(), on.autocast_context():
        for row in rows[rank::world]:
            chosen = [items[i] for i in row]
            batch = make_batch([[item.rendered for item in chosen]]).to(on.device)
            with speaking([chosen[0].sample.character]) if speaking else nullcontext():
                losses = token_losses(model, batch).double().cpu()
            who = torch.tensor([names.index(item.sample.character) for item in chosen])[batch.sample.cpu()]
            sums.index_add_(0, who, torch.stack([losses, torch.ones_like(losses)], 1))
            if tick:
                tick(batch.tokens)
            if stop and stop():
                break
    model.train(was_training)
    if processes:
        sums = processes.sum(sums)
    return {name: Mean(float(s[0] / s[1]), int(s[1])) for name, s in zip(names, sums, strict=True) if s[1] > 0}


def _rows(items: Sequence[Item], max_tokens: int, packed: bool, by_character: bool) -> list[list[int]]:
    """Rows of item numbers; `by_character`: each with one character's only."""
    if not packed:
        return [[index] for index in range(len(items))]
    sets: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        sets.setdefault(item.sample.character if by_character else "", []).append(index)
    lengths = [len(item.rendered.input_ids) for item in items]
    return [
        [numbers[k] for k in row]
        for numbers in sets.values()
        for row in pack([lengths[n] for n in numbers], max_tokens)
    ]


def overall(losses: dict[str, Mean]) -> float:
    """The mean over characters (each counts the same, however much it says); nan for none.

    General chat data is no character's: its loss, under "plain", says what the model forgets.
    """
    counted = [mean.loss for name, mean in losses.items() if name != PLAIN]
    return sum(counted) / len(counted) if counted else float("nan")
