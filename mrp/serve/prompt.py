"""What the engine is asked for a line of a conversation on the server: the same ids as in a chat.

prompt = prompt_of(asked.chat, "wukong", scenario="At the inn.", max_new_tokens=128)
prompt.ids, prompt.dropped
"""

from __future__ import annotations

from dataclasses import replace

from mrp.data.view import ASSISTANT, SYSTEM, USER, Message, opening_text, view_for_reply
from mrp.errors import InputError
from mrp.play.conversation import Conversation
from mrp.play.reply import Prompt
from mrp.serve.errors import ApiError


def prompt_of(
    chat: Conversation, character: str, scenario: str, max_new_tokens: int, replaces_persona: bool = False
) -> Prompt:
    """The prompt that asks for the next line of `character`.

    `scenario` comes after the cast's own; with `replaces_persona` it is the whole system message.
    Raises `ApiError` 400 where persona and last message leave no room.
    """
    player = chat.player
    cast, template = player.cast, player.template
    if cast is None:
        messages = [Message(USER if t.speaker == chat.person else ASSISTANT, t.text) for t in chat.turns]
        messages = [Message(SYSTEM, scenario), *messages] if scenario else messages
        opening = ""
    else:
        whole = "\n\n".join(text for text in (cast.scenario.strip(), scenario) if text)
        messages = view_for_reply(chat.turns, chat.participants, character, cast, whole)
        opening = opening_text(cast, whole)
        if replaces_persona and scenario:
            messages[0] = replace(messages[0], text=scenario)
    budget = player.options.context_tokens - max_new_tokens
    try:
        ids, dropped = template.prompt_within(messages, budget, opening)
    except InputError as error:
        what = (
            f"{error.what}: the context is {player.options.context_tokens} tokens, less max_tokens ({max_new_tokens})"
        )
        raise ApiError(400, what, "messages", "context_length_exceeded") from None
    head = 1 if messages and messages[0].role == SYSTEM else 0
    kept = [*messages[:head], *messages[head + dropped :]]
    return Prompt(ids, template.adapted(kept, opening), dropped)
