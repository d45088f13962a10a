"""Many replies at once: what is asked of whom, and the answers, kept so that nothing is asked twice.

    answers = answer_all(player, "MODEL", asks, kept, threads=8)     # an Answer for each Ask, in their order

Every reply goes the way that chat goes (`play/reply.py`): same prompt ids, same guard. Each has a seed of its own, so
it does not matter in which order they come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from typing import Any

from mrp.cast import OTHER
from mrp.data.view import Message, opening_text, view_for_reply
from mrp.dialogue import Turn
from mrp.evaluate.kept import Kept
from mrp.evaluate.lines import Line
from mrp.files import fingerprint
from mrp.play.engine import Sampling
from mrp.play.guard import RULES
from mrp.play.reply import Player, Reply, names_of_others


@dataclass(frozen=True)
class Ask:
    """A reply to be given by somebody told to be `character`; `unit`: the scene or question it belongs to."""

    character: str
    messages: tuple[Message, ...]
    others: tuple[str, ...]  # at whose names the reply ends
    opening: str
    unit: str
    seed: int


@dataclass(frozen=True)
class Answer:
    """What was said, in so many tokens. `cut`: it was too long; `guarded`: it ended at another speaker's name."""

    text: str
    tokens: int
    cut: bool
    guarded: bool


def ask_line(player: Player, line: Line, told: str, seed: int, number: int = 0) -> Ask:
    """The place of a held-out reply, asked for again under the identity of `told`."""
    cast = player.cast
    assert cast is not None
    s = line.sample
    others = tuple(names_of_others(cast, s.participants, told))
    opening = opening_text(cast, s.scenario, line.character)
    own_seed = seed_of(seed, line.id, told, number)
    return Ask(told, tuple(line.asked(cast, told)), others, opening, line.scene, own_seed)


def ask_turns(player: Player, character: str, turns: Sequence[Turn], unit: str, seed: int) -> Ask:
    """The next reply in a dialogue of two, of somebody unknown with `character`."""
    cast = player.cast
    assert cast is not None
    present = (character, OTHER)
    messages = tuple(view_for_reply(turns, present, character, cast))
    others = tuple(names_of_others(cast, present, character))
    said = [turn.text for turn in turns]
    return Ask(character, messages, others, opening_text(cast), unit, seed_of(seed, unit, character, *said))


def answer_all(
    player: Player,
    model: str,
    asks: Sequence[Ask],
    kept: Kept,
    threads: int,
    told: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """The answers in the order of `asks`; `told` hears of each new one. `model` is the model's whole identity."""
    keys = [_key(player, model, ask) for ask in asks]
    due = {key: ask for key, ask in zip(keys, asks, strict=True) if key not in kept}
    with ThreadPoolExecutor(max(1, threads)) as pool:
        futures = [pool.submit(_answer, player, ask, key, kept) for key, ask in due.items()]
        try:
            for future in as_completed(futures):
                future.result()
                told()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [Answer(**kept[key]) for key in keys]


def to_answer(player: Player, model: str, asks: Sequence[Ask], kept: Kept) -> int:
    """How many of `asks` the model has not answered yet."""
    return len({key for ask in asks if (key := _key(player, model, ask)) not in kept})


def seed_of(*parts: object) -> int:
    """A seed made of all of `parts`."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _ids(player: Player, ask: Ask) -> list[int]:
    options = player.options
    budget = options.context_tokens - options.max_new_tokens
    return player.template.prompt_within(ask.messages, budget, ask.opening)[0]


def _sampling(player: Player, ask: Ask) -> Sampling:
    return replace(Sampling.of(player.options), seed=ask.seed)


def _key(player: Player, model: str, ask: Ask) -> str:
    made_of: dict[str, Any] = {"model": model, "character": ask.character, "ids": _ids(player, ask)}
    made_of |= {"sampling": asdict(_sampling(player, ask)), "others": sorted(ask.others), "stops": player.stop_ids}
    made_of |= {"guard": RULES}
    return fingerprint(made_of)


def _answer(player: Player, ask: Ask, key: str, kept: Kept) -> None:
    """Let the model answer, and keep it at once: what runs when others are stopped is not lost."""
    reply = Reply(player, ask.character, _ids(player, ask), _sampling(player, ask), ask.others, ask.messages)
    for _ in reply:
        pass
    kept.add(key, asdict(Answer(reply.text, len(reply.tokens), reply.cut, reply.guarded)))
