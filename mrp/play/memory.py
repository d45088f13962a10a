"""The memory of a long chat, of one character: which old messages its prompt no longer has, and a summary of them.

    memory = Memory()
    prompt = fit(player, messages, memory, max_tokens=1900)      # prompt.ids, prompt.dropped
    summary, wrong = summarise(player, memory.summary, messages_between, name="Sun Wukong", max_tokens=128)

When the window is full, old messages go in one large block (half of the room), so that the prompt's beginning then
stays the same for many turns, and an engine's cache of it stays of use. The summary is written by the same model, as
itself (a plain prompt, no persona, no voice), greedily.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mrp.data.view import SYSTEM, USER, Message, with_notes
from mrp.errors import InputError
from mrp.play.engine import Sampling
from mrp.play.reply import Player, Prompt, Reply

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
    turns: int = 0  # of a chat, the first ones, of which these messages are made; 0 where none is ever taken back

    def note(self, language: str) -> str:
        return f"{EARLIER[language]}{self.summary}" if self.summary else ""


def of_first_turns(memories: Mapping[str, Sequence[Memory]], turns: int) -> dict[str, list[Memory]]:
    """Those that stay where all but the first `turns` turns of a chat are taken back."""
    return {who: [memory for memory in known if memory.turns <= turns] for who, known in memories.items()}


def fit(
    player: Player, messages: Sequence[Message], memory: Memory, max_tokens: int, known: str = "", opening: str = ""
) -> Prompt:
    """The prompt within `max_tokens`; `dropped` counts the messages after the system message that it leaves out.

    What is gone already (`memory.dropped`) stays gone; where more must go, it goes in one block. `known` is lore, put
    last.
    Raises `ContextTooSmall`, with what to cut, if not even the last message fits.
    """
    note = memory.note(player.cast.language if player.cast else "en")
    head = _head(messages)
    said = len(messages) - head
    before = min(memory.dropped, max(said - 1, 0))

    def from_message(dropped: int) -> Prompt:
        kept, template = with_notes(messages, note, known, dropped), player.template
        return Prompt(template.prompt(kept, opening), template.adapted(kept, opening), dropped)

    prompt = from_message(before)
    if len(prompt.ids) <= max_tokens:
        return prompt
    fixed = len(player.template.prompt(with_notes(messages[:head], note, known), opening))
    target = fixed + max(max_tokens - fixed, 0) // 2
    starts = [k for k in range(before + 1, said) if messages[head + k].role == USER]
    for limit in (target, max_tokens):
        for k in starts:
            if len((prompt := from_message(k)).ids) <= limit:
                return prompt
    raise _too_small(player, messages, note, known, max_tokens)


def newest(player: Player, messages: Sequence[Message], max_tokens: int, known: str = "", opening: str = "") -> Prompt:
    """As `fit`, where nothing is remembered: the oldest messages are left out, one by one, until the others fit."""
    noted = with_notes(messages, known=known)
    try:
        ids, dropped = player.template.prompt_within(noted, max_tokens, opening)
    except InputError:
        raise _too_small(player, messages, "", known, max_tokens) from None
    head = _head(noted)
    kept = [*noted[:head], *noted[head + dropped :]]
    return Prompt(ids, player.template.adapted(kept, opening), dropped)


def without_first_lines(
    view: Callable[[int], list[Message]], turns: int, ask: Callable[[list[Message]], Prompt]
) -> Prompt:
    """What `ask` makes of the last message alone, less as many of its oldest turns as have no room.

    All that others said since a character's last line is one message, and whoever was silent for long has a long one.
    Its last turn is never cut: then `ask` raises `ContextTooSmall`. `view(k)` shows nothing before turn k of `turns`.
    """

    def said(first: int) -> int:
        return len(view(first)) - _head(view(first))

    def fits(first: int) -> bool:
        try:
            ask(view(first))
        except ContextTooSmall:
            return False
        return True

    last = bisect.bisect_left(range(turns), True, key=lambda k: said(k) == 0) - 1
    begin = bisect.bisect_left(range(last), True, key=lambda k: said(k) <= 1)
    first = begin + bisect.bisect_left(range(begin, last), True, key=fits)
    prompt = ask(view(first))
    return replace(prompt, dropped=prompt.dropped + first - begin)


class ContextTooSmall(InputError):
    """Not even persona, notes and the last message have room."""


def _too_small(player: Player, messages: Sequence[Message], note: str, known: str, max_tokens: int) -> ContextTooSmall:
    """Which of the parts that are never dropped take how much, and which to cut first."""
    last = messages[-1].text if messages and messages[-1].role == USER else ""
    parts = {
        "the persona": messages[0].text if _head(messages) else "",
        "the memory": note,
        "the lore": known,
        "the last message": last,
    }
    counts = {what: len(player.template.plain.ids(text)) for what, text in parts.items() if text.strip()}
    told = ", ".join(f"{what} {count:,}" for what, count in counts.items())
    needed = f"{told}: {sum(counts.values()):,} tokens and the template's" if counts else "the template alone"
    first = f"cut {max(counts, key=counts.__getitem__)}; or " if counts else ""
    return ContextTooSmall(
        f"the context is too small for what they need: {needed}, and only {max_tokens:,} are allowed",
        "chat.context_tokens less chat.max_new_tokens",
        f"{first}raise chat.context_tokens, or lower chat.max_new_tokens",
    )


def _head(messages: Sequence[Message]) -> int:
    return 1 if messages and messages[0].role == SYSTEM else 0


def summarise(
    player: Player, summary: str, folded: Sequence[Message], name: str, max_tokens: int = MEMORY_TOKENS
) -> tuple[str, str]:
    """The summary with `folded` in it, and what went wrong ("" mostly; then the old summary is what is kept).

    What the model cannot read for want of context is left out from the front; a summary that is cut off ends with
    its last whole sentence.
    """
    language = player.cast.language if player.cast else "en"
    room = player.options.context_tokens - max_tokens
    texts = [m.text if m.role == USER else f"{name}: {m.text}" for m in folded]
    lines = [line for text in texts for line in text.split("\n")]
    while lines:
        asked = _asked(summary, lines, name, max_tokens, language)
        if len(ids := player.template.prompt(asked)) <= room:
            break
        lines.pop(0)
    if not lines:
        return summary, "what was dropped is too long to be summed up"
    sampling = Sampling(temperature=0, max_new_tokens=max_tokens, seed=0)
    reply = Reply(player, "", ids, sampling, messages=asked)
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
