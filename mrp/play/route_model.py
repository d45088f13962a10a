"""The model itself as router: how much likelier a message makes each name as the answer to "who answers?".

    scores = NameScorer(player).probabilities("Any buns left?", ["wukong", "bajie"])    # {"wukong": 0.2, "bajie": 0.8}

One prompt for all (who is there, the message, the question), the names as its only possible answers, no sampling:
`engine.score` reads them in one batch. A name's score is the log-probability of its tokens and the end of turn behind
it, less the same without a message (so that a name that the model likes anyway gains nothing), divided by the number
of tokens (so that a long name is not more certain than a short one). A softmax over the scores gives shares.
The scheme is "PMI scoring" of answers: Holtzman et al. 2021, arXiv 2104.08315. Used by `route.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mrp.cast import Cast
from mrp.data.view import ASSISTANT, SYSTEM, USER, Message
from mrp.play.reply import Player

QUESTION = {
    "en": ("These characters are here:\n{people}", 'Somebody says: "{message}"\nWhich of them answers? Name: '),
    "zh": ("这里有这些人物：\n{people}", "有人说：“{message}”\n他们中谁来回答？名字："),
}
MAX_PERSONA = 200  # characters of each persona that are told
MAX_MESSAGE = 600  # characters of the message, its last ones
NO_MESSAGE = "..."


class NameScorer:
    """Scores the names of characters by the model of `player`; remembers what names are worth without a message."""

    def __init__(self, player: Player) -> None:
        if player.cast is None:
            raise ValueError("a router needs a cast")
        self.player, self.cast = player, player.cast
        self.tokens = 0  # read by the model so far, prompts and names
        self._without: dict[tuple[str, ...], list[float]] = {}

    def probabilities(self, text: str, candidates: Sequence[str]) -> dict[str, float]:
        """The share of each candidate (ids of the cast); they sum to 1. Raises what the engine's `score` raises."""
        people = tuple(candidates)
        if people not in self._without:
            self._without[people] = self._log_probabilities(NO_MESSAGE, people)
        scores = [
            (said - without) / length
            for said, without, length in zip(
                self._log_probabilities(text, people), self._without[people], self._lengths(people), strict=True
            )
        ]
        shares = [math.exp(score - max(scores)) for score in scores]
        return {name: share / sum(shares) for name, share in zip(people, shares, strict=True)}

    def messages(self, text: str, candidates: Sequence[str]) -> list[Message]:
        """The prompt: who is there, and what was said."""
        head, question = QUESTION[self.cast.language]
        system = head.format(people="\n".join(_line(self.cast, who) for who in candidates))
        return [Message(SYSTEM, system), Message(USER, question.format(message=text.strip()[-MAX_MESSAGE:]))]

    def _log_probabilities(self, text: str, candidates: Sequence[str]) -> list[float]:
        prompt, names = self._ids(text, candidates)
        self.tokens += len(prompt) + sum(map(len, names))
        return [sum(found) for found in self.player.engine.score(prompt, names)]

    def _lengths(self, candidates: Sequence[str]) -> list[int]:
        return [len(name) for name in self._ids(NO_MESSAGE, candidates)[1]]

    def _ids(self, text: str, candidates: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """The prompt's ids, and those of each name as the renderer ends a reply with them."""
        messages = self.messages(text, candidates)
        prompt = self.player.template.prompt(messages)
        names = []
        for who in candidates:
            (whole,) = self.player.template.sample([*messages, Message(ASSISTANT, self.cast[who].name, loss=True)])
            names.append([token for token, learnt in zip(whole.input_ids, whole.loss, strict=True) if learnt])
        return prompt, names


def _line(cast: Cast, who: str) -> str:
    persona = " ".join(cast.persona(who).split())
    return f"- {cast[who].name}: {persona[:MAX_PERSONA]}"
