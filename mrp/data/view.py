"""A scene from one character's side: THE place where speakers become system, user and assistant.

    view(sample.turns, sample.loss, sample.participants, "wukong", cast, sample.scenario)
    [Message("system", "You are Sun Wukong, ..."), Message("user", "Who are you?"), Message("assistant", "Ha!", True)]

Training and play both come through `_messages`, so what play shows before a reply is what training saw before it.
The model itself (`cast.PLAIN`, whose replies general chat data are) has no persona, and no setting of the cast: its
view has a system message only where the scene brings a scenario, which is then the whole of it.
`render.py` turns messages into token ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mrp.cast import OPENING, PLAIN, Cast
from mrp.dialogue import Turn

Role = Literal["system", "user", "assistant"]
SYSTEM: Role = "system"
USER: Role = "user"
ASSISTANT: Role = "assistant"

NAMES_FROM = 3  # participants declared so far from which the lines of others carry names
NAME_MARK = {"en": ": ", "zh": "："}


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat; `loss` says whether training learns it (assistant messages only)."""

    role: Role
    text: str
    loss: bool = False


def view(
    turns: Sequence[Turn],
    loss: Sequence[bool],
    participants: Iterable[str],
    character: str,
    cast: Cast,
    scenario: str = "",
    identity: str = "",
) -> list[Message]:
    """The training view: the system message, then everything up to the character's last own line.

    `loss[i]` belongs to `turns[i]`. Own lines that follow one another are one message, learnt only if all of them
    are. Without an own line there is the system message alone. With `identity` the system message tells the model that
    it is that character instead, and nothing else changes (`mrp.train.contrast`).
    """
    messages = _messages(turns, loss, participants, character, cast, scenario, identity)
    while messages and messages[-1].role == USER:
        messages.pop()
    return messages


def view_for_reply(
    turns: Sequence[Turn],
    participants: Iterable[str],
    character: str,
    cast: Cast,
    scenario: str = "",
    since: int = 0,
) -> list[Message]:
    """The view for play: the messages after which `character` speaks next. Own lines are marked as `view` marks them
    where nothing is masked.

    It ends with the system message if nothing was said yet (the character opens), and with an assistant message if
    the last line is the character's own (what it says next belongs to the same turn). For the first k turns of a
    scene whose turn k begins an own turn, it equals the beginning of the training view message by message.

    Nothing is shown of the turns before number `since`, for want of room; who came and went in them still counts.
    """
    own = [turn.speaker == character for turn in turns]
    return _messages(turns, own, participants, character, cast, scenario, since=since)


def with_notes(messages: Sequence[Message], earlier: str = "", known: str = "", dropped: int = 0) -> list[Message]:
    """What play adds to a view, and training never has: where old messages were dropped, and what was looked up.

    `messages[head:head + dropped]` are left out. In their place stands `earlier` (a summary of them), at the head of
    the first user message that is left, where it stays as long as they are dropped; `known` (lore) comes last, behind
    what was said, so that all before it is the same in the next prompt. Notes in brackets in a user's message, since
    many templates refuse a system message after the first.
    """
    head = 1 if messages and messages[0].role == SYSTEM else 0
    kept = list(messages[head + dropped :])
    if earlier:
        if kept and kept[0].role == USER:
            kept[0] = Message(USER, f"[{earlier}]\n\n{kept[0].text}")
        else:
            kept.insert(0, Message(USER, f"[{earlier}]"))
    if known:
        if kept and kept[-1].role == USER:
            kept[-1] = Message(USER, f"{kept[-1].text}\n\n[{known}]")
        elif not kept:  # where the character goes on with an own line, there is no place that disturbs nothing
            kept.append(Message(USER, f"[{known}]"))
    return [*messages[:head], *kept]


def system_text(cast: Cast, character: str, scenario: str = "") -> str:
    """The system message: the identity block, then (after an empty line) the scene's scenario, else the cast's.

    Of `PLAIN`: the scene's scenario alone; "" stands for no system message.
    """
    if character == PLAIN:
        return scenario.strip()
    setting = _setting(cast, scenario)
    identity = cast.persona(character)
    return f"{identity}\n\n{setting}" if setting else identity


def opening_text(cast: Cast, scenario: str = "", character: str = "") -> str:
    """What stands as the first user message where a template does not let the character open the scene.

    "" for `PLAIN`: the renderer then takes a word of its own.
    """
    return "" if character == PLAIN else _setting(cast, scenario) or OPENING[cast.language]


def _setting(cast: Cast, scenario: str) -> str:
    return scenario.strip() or cast.scenario.strip()


def _messages(
    turns: Sequence[Turn],
    loss: Sequence[bool],
    participants: Iterable[str],
    character: str,
    cast: Cast,
    scenario: str,
    identity: str = "",
    since: int = 0,
) -> list[Message]:
    """Every line as (part of) a message. A line is shown by what came before it, never by what comes after.

    Presence: what is said before the character is there (in `participants`, entered, or speaking itself) and from
    when it leaves until it comes back is not shown to it.
    """
    system = system_text(cast, identity or character, scenario)
    messages = [Message(SYSTEM, system)] if system else []
    known = set(participants)  # everybody declared so far; whoever leaves still counts, so that names stay
    here = character in known
    before: tuple[str, bool] | None = None  # the speaker of the line before, and whether it carried a name
    for number, (turn, learnt) in enumerate(zip(turns, loss, strict=True)):
        own = turn.speaker == character
        if turn.enters:
            known.add(turn.speaker)
        if own:
            before = before if here else None  # what was said meanwhile is not known: names come anew
            here = not turn.leaves
        if not here or not turn.is_line or number < since:
            continue
        named = not own and len(known) >= NAMES_FROM
        text = turn.text
        if named and before != (turn.speaker, True):
            text = f"{cast.display_name(turn.speaker)}{NAME_MARK[cast.language]}{text}"
        before = (turn.speaker, named)
        role = ASSISTANT if own else USER
        last = messages[-1] if messages else None
        if last and last.role == role:
            messages[-1] = Message(role, f"{last.text}\n{text}", last.loss and own and learnt)
        else:
            messages.append(Message(role, text, own and learnt))
    return messages
