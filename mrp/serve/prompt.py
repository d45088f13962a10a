"""What the engine is asked for a line of a conversation on the server: the same ids as in a chat, lore included.

prompt, lore = prompt_of(asked.chat, "wukong", scenario="At the inn.", max_new_tokens=128)
prompt.ids, prompt.dropped
"""

from __future__ import annotations

from dataclasses import replace

from mrp.data.view import SYSTEM, Message, opening_text, view_for_reply
from mrp.errors import InputError
from mrp.play.conversation import Conversation
from mrp.play.lore import Used
from mrp.play.recall import Recall
from mrp.play.reply import Prompt
from mrp.serve.errors import ApiError


def prompt_of(
    chat: Conversation,
    character: str,
    scenario: str,
    max_new_tokens: int,
    replaces_persona: bool = False,
    seed: int | None = None,
) -> tuple[Prompt, list[Used]]:
    """The prompt that asks for the next line of `character`, and the lore in it (by lot where it has a probability).

    `scenario` comes after the chat's own; with `replaces_persona` it is the whole system message. Clients send the
    whole history each time, so nothing is remembered: the oldest messages are left out.
    Raises `ApiError` 400 where persona, lore and last message leave no room.
    """
    cast, context = chat.player.cast, chat.player.options.context_tokens
    own = chat.scenario.strip() or (cast.scenario.strip() if cast else "")
    whole = "\n\n".join(text for text in (own, scenario) if text)

    def view(since: int) -> list[Message]:
        if cast is None:
            messages = chat.messages(character, since)
            return [Message(SYSTEM, scenario), *messages] if scenario else messages
        messages = view_for_reply(chat.turns, chat.participants, character, cast, whole, since)
        if replaces_persona and scenario:
            messages[0] = replace(messages[0], text=scenario)
        return messages

    options = chat.player.options.model_copy(update={"max_new_tokens": max_new_tokens})
    opening = opening_text(cast, whole) if cast else ""
    recall = Recall(cast, memory_tokens=None, seed=seed)
    try:
        player = replace(chat.player, options=options)
        prompt = recall.prompt(player, character, view, len(chat.turns), opening, lambda *_: None)
    except InputError as error:
        what = f"{error.what}: the context is {context} tokens, less max_tokens ({max_new_tokens})"
        raise ApiError(400, what, "messages", "context_length_exceeded") from None
    return prompt, recall.used
