"""The memory of a long chat, of one character: which old messages its prompt no longer has, and a summary of them.

    memory = Memory()
    ids, dropped = fit(player, messages, memory, max_tokens=1900)
    summary, wrong = summarise(player, memory.summary, messages_between, name="Sun Wukong", max_tokens=128)

When the window is full, old messages go in one large block (half of the room), so that the prompt's beginning then
stays the same for many turns, and an engine's cache of it stays of use. The summary is written by the same model, as
itself (a plain prompt, no persona, no voice), greedily.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mrp.data.view import SYSTEM, USER, Message, with_notes
from mrp.errors import InputError
from mrp.play.engine import Sampling
from mrp.play.reply import Player, Reply

MEMORY_TOKENS = 128  # of a summary
EARLIER = {"en": "Earlier: ", "zh": "前情："}
ASK = {
    "en": "Sum up the notes and the conversation for {name} in at most {words} words: who did and said what, what was"
    " agreed, what is still open. Write the summary alone.",
    "zh": "请为{name}把笔记和对话概括成不超过{words}字：谁做了什么、说了什么、约定了什么、还有什么未了。只写概括。",
}
TITLES = {"en": ("Notes so far:", "Conversation:"), "zh": ("此前的笔记：", "对话：")}
WORDS_PER_TOKEN = 0.6  # asked for; the limit itself is counted in tokens
ENDS = ".!?。！？…"


@dataclass(frozen=True)
class Memory:
    """What a character remembers of what its prompt no longer shows."""

    summary: str = ""
    dropped: int = 0  # messages after the system message that are no longer shown

    def note(self, language: str) -> str:
        return f"{EARLIER[language]}{self.summary}" if self.summary else ""


def fit(
    player: Player, messages: Sequence[Message], memory: Memory, max_tokens: int, known: str = "", opening: str = ""
) -> tuple[list[int], int]:
    """The ids of the prompt within `max_tokens`, and how many messages after the system message it leaves out.

    What is gone already (`memory.dropped`) stays gone; where more must go, it goes in one block. `known` is lore, put
    last.
    Raises `InputError`, with what to cut, if not even the last message fits.
    """
    language = player.cast.language if player.cast else "en"
    head = 1 if messages and messages[0].role == SYSTEM else 0
    said = len(messages) - head
    before = min(memory.dropped, max(said - 1, 0))

    def ids_from(dropped: int) -> list[int]:
        return player.template.prompt(with_notes(messages, memory.note(language), known, dropped), opening)

    ids = ids_from(before)
    if len(ids) <= max_tokens:
        return ids, before
    fixed = len(player.template.prompt(with_notes(messages[:head], memory.note(language), known), opening))
    target = fixed + max(max_tokens - fixed, 0) // 2
    starts = [k for k in range(before + 1, said) if messages[head + k].role == USER]
    for limit in (target, max_tokens):
        for k in starts:
            if len(ids_from(k)) <= limit:
                return ids_from(k), k
    needed = len(ids_from(starts[-1])) if starts else len(ids)
    raise InputError(
        f"persona, memory, lore and the last message need {needed} tokens, and only {max_tokens} are allowed",
        "chat.context_tokens less chat.max_new_tokens",
        "raise chat.context_tokens, or shorten persona, lore, memory (/memory) or the message",
    )


def summarise(
    player: Player, summary: str, folded: Sequence[Message], name: str, max_tokens: int = MEMORY_TOKENS
) -> tuple[str, str]:
    """The summary with `folded` in it, and what went wrong ("" mostly; then the old summary is what is kept).

    What the model cannot read for want of context is left out from the front; a summary that is cut off ends with
    its last whole sentence.
    """
    language = player.cast.language if player.cast else "en"
    room = player.options.context_tokens - max_tokens
    lines = [m.text if m.role == USER else f"{name}: {m.text}" for m in folded]
    while lines and len(ids := player.template.prompt(_asked(summary, lines, name, max_tokens, language))) > room:
        lines.pop(0)
    if not lines:
        return summary, "what was dropped is too long to be summed up"
    sampling = Sampling(temperature=0, max_new_tokens=max_tokens, seed=0)
    asked = player.template.adapted(_asked(summary, lines, name, max_tokens, language), "")
    reply = Reply(player, "", ids, sampling, messages=asked)  # as messages too, for a server that takes no ids
    for _ in reply:
        pass
    text = " ".join(reply.text.split())
    if reply.cut:
        text = text[: max((text.rfind(end) for end in ENDS), default=-1) + 1]
    if not text:
        return summary, "the model wrote no whole sentence of a summary" if reply.cut else "the model wrote no summary"
    return text, ""


def _asked(summary: str, lines: Sequence[str], name: str, max_tokens: int, language: str) -> list[Message]:
    notes, talk = TITLES[language]
    parts = [f"{notes}\n{summary}"] if summary else []
    parts.append(f"{talk}\n" + "\n".join(lines))
    parts.append(ASK[language].format(name=name, words=int(max_tokens * WORDS_PER_TOKEN)))
    return [Message(USER, "\n\n".join(parts))]
