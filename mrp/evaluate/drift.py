"""Does a character stay itself? Ten or twenty questions in one conversation, and then who it is.

    talks = hold_talks(cast, characters, questions, turns=20, seed=0, answer=answer)
    drift_figures(talks, voices, cast, seed=0)

The questions are held-out ones of the whole cast, the same for everybody; each reply stays in the history. All
conversations go on together, a turn at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mrp.cast import OTHER, Cast
from mrp.data.identity import QUESTIONS
from mrp.dialogue import Turn
from mrp.evaluate.asking import Answer, Ask, ask_turns
from mrp.evaluate.intervals import difference, estimate
from mrp.evaluate.questions import Checked, Probe, check
from mrp.evaluate.voice import Voices
from mrp.play.reply import Player

PART = 5  # turns at the beginning, and at the end, that are compared


@dataclass
class Talk:
    """A conversation with one character: its replies in order, and what it says of itself in the end."""

    character: str
    turns: list[Turn] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    probe: Probe | None = None
    last: str = ""


def hold_talks(
    player: Player,
    characters: Sequence[str],
    questions: Sequence[str],
    turns: int,
    seed: int,
    answer: Callable[[Sequence[Ask]], list[Answer]],
) -> list[Talk]:
    """The conversations of `characters`, each of so many turns; `answer` gives the replies to many asks at once."""
    assert player.cast is not None and questions
    talks = [Talk(who) for who in characters]
    for number in range(turns + 1):
        last = number == turns
        asks = []
        for talk in talks:
            text = questions[number % len(questions)]
            if last:
                text = QUESTIONS[player.cast.language]["who"]["probe"][0]
                talk.probe = Probe(talk.character, "who", text)
            talk.turns.append(Turn(OTHER, text))
            asks.append(ask_turns(player, talk.character, talk.turns, f"drift-{number}", seed))
        for talk, said in zip(talks, answer(asks), strict=True):
            if said.text:
                talk.turns.append(Turn(talk.character, said.text))
            if last:
                talk.last = said.text
            else:
                talk.replies.append(said.text)
    return talks


def drift_figures(talks: Sequence[Talk], voices: Voices, cast: Cast, seed: int) -> dict[str, Any] | None:
    """How often a reply sounds like its character in the first and the last `PART` turns, the paired difference, by
    turn; and the share that still says who it is. None for no talks."""
    if not talks:
        return None
    turns = len(talks[0].replies)
    part = min(PART, turns)
    right = []
    for talk in talks:
        verdict = voices.judge(talk.replies, "as is")
        right.append(
            [float(p == talk.character and bool(t)) for p, t in zip(verdict.picked, talk.replies, strict=True)]
        )
    units = [talk.character for talk in talks]
    first, last = ([sum(row[where]) / part for row in right] for where in (slice(part), slice(-part, None)))
    checked: list[Checked] = [check(cast, talk.probe, talk.last) for talk in talks if talk.probe]
    found: dict[str, Any] = {
        "turns": turns,
        "by_turn": [round(sum(row[k] for row in right) / len(right), 6) for k in range(turns)],
    }
    knows = [float(c.passed) for c in checked]
    for name, values, is_rate in (
        ("early", first, True),
        ("late", last, True),
        ("change", difference(last, first), False),
        ("still_knows", knows, True),
    ):
        figure = estimate(values, units, seed, is_rate=is_rate)
        found[name] = figure.as_json() if figure else None
    return found
