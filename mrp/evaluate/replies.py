"""One question put to every character, to the base with the persona prompt and to the tuned model.

ask_everybody(player, "Who are you?", seed=0)      # {"wukong": "Ha! ...", ...}
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mrp.play.conversation import Conversation
from mrp.play.engine import Sampling
from mrp.play.reply import Player


def ask_everybody(player: Player, question: str, seed: int, tick: Callable[[], None] | None = None) -> dict[str, str]:
    """Each character's reply to `question` in a fresh conversation, sampled with `seed`; `tick` hears of each."""
    assert player.cast is not None
    sampling = replace(Sampling.of(player.options), seed=seed)
    replies = {}
    for character in player.cast:
        chat = Conversation(player, [character.id])
        chat.say(question)
        replies[character.id] = "".join(chat.reply(character.id, sampling))
        if tick:
            tick()
    return replies


def tokens_asked(player: Player, question: str, replies: dict[str, str]) -> int:
    """Tokens that passed through the model for these replies: prompts and what was answered."""
    total = 0
    for character, reply in replies.items():
        chat = Conversation(player, [character])
        chat.say(question)
        total += len(chat.prompt(character)) + len(player.template.plain.ids(reply))
    return total
