"""A client's messages as a conversation: who said what, so that the renderer sees what it sees in a chat.

    asked = read_request(player, room, request.messages)
    asked.chat.turns, asked.scenario

The client's roles say only who is the person and who answers; `name` says who speaks. System messages are the
scenario, after the cast's own. In `auto` and `scene:` one client sees several characters, so their lines begin with
their names, in replies and in what the client sends back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mrp.cast import OTHER, PLAIN, Cast, Character
from mrp.data.view import NAME_MARK
from mrp.errors import nearest
from mrp.play.conversation import Conversation
from mrp.play.reply import NOT_TEXT, Player
from mrp.serve.errors import ApiError
from mrp.serve.schemas import ChatMessage

AUTO, SCENE = "auto", "scene:"


@dataclass(frozen=True)
class Room:
    """What a model id stands for: the characters in it, and how it is decided who speaks."""

    characters: tuple[str, ...]
    kind: str  # "one", "auto" or "scene"

    @property
    def shows_names(self) -> bool:
        return self.kind != "one"


@dataclass(frozen=True)
class Asked:
    """A conversation, and the client's scenario."""

    chat: Conversation
    scenario: str
    asker: str | None  # who says the last line, if that is a user's

    def last_of(self, characters: Sequence[str]) -> str | None:
        """Who of `characters` spoke last."""
        return next((t.speaker for t in reversed(self.chat.turns) if t.speaker in characters), None)


def find_room(cast: Cast | None, model: str) -> Room:
    """The room of a model id; `ApiError` 404 with the nearest name."""
    if cast is None:
        if model != PLAIN:
            raise ApiError(404, f"no model {model!r}; this model has no cast: {PLAIN!r}", "model", "model_not_found")
        return Room((PLAIN,), "one")
    if model == AUTO:
        return Room(tuple(c.id for c in cast), "auto")
    if model.startswith(SCENE):
        names = [name for name in model.removeprefix(SCENE).split(",") if name.strip()]
        found = list(dict.fromkeys(_character(cast, name).id for name in names))
        if len(found) < 2:
            raise ApiError(404, "a scene needs two characters or more: scene:ID,ID", "model", "model_not_found")
        return Room(tuple(found), "scene")
    return Room((_character(cast, model).id,), "one")


def _character(cast: Cast, name: str) -> Character:
    found = cast.get(name)
    if found is None:
        hint = nearest(name, [c.id for c in cast])
        raise ApiError(404, f"no character {name!r}; {hint}", "model", "model_not_found")
    return found


def read_request(player: Player, room: Room, messages: Sequence[ChatMessage]) -> Asked:
    """The conversation of a client's messages. Raises `ApiError` naming the message."""
    said = [(k, m) for k, m in enumerate(messages) if m.role in ("user", "assistant")]
    speakers = _speakers(player.cast, room, said)
    names = [name for _, name, _ in speakers if name not in room.characters]
    persons = list(dict.fromkeys(n for n in names if player.cast is None or player.cast.get(n) is None))
    person = OTHER if OTHER in persons or not persons else persons[-1]
    # In `auto` only those are there who spoke: whoever talks with one character alone finds it as in a chat of two.
    there = [] if room.kind == "auto" else room.characters
    chat = Conversation(player, there, person)
    for _, name, _ in speakers:
        chat.join(name)
    for k, name, text in speakers:
        chat.say(text, name)
        if not chat.turns[-1].text:
            chat.turns.pop()
            if messages[k].role == "user":
                raise ApiError(400, f"messages.{k} is empty; write something, or leave it out", f"messages.{k}.content")
    asker = speakers[-1][1] if speakers and messages[speakers[-1][0]].role == "user" else None
    return Asked(chat, _scenario(messages), asker)


def _speakers(cast: Cast | None, room: Room, said: Sequence[tuple[int, ChatMessage]]) -> list[tuple[int, str, str]]:
    """Of each line: the number of its message, its speaker, and its text."""
    lines = []
    last = room.characters[0]  # whom a reply without a name belongs to
    for k, message in said:
        text = message.text
        found = cast.get(message.name) or _sent_name(cast, message.name) if cast and message.name else None
        if message.role == "user":
            speaker = found.id if found else (message.name or OTHER).strip() or OTHER
            if room.characters == (speaker,):
                what = f"messages.{k}.name is the character who answers; a user cannot speak for it"
                raise ApiError(400, what, f"messages.{k}.name")
            if not speaker.isprintable():
                raise ApiError(400, f"messages.{k}.name is no name: write it on one line", f"messages.{k}.name")
        else:
            if message.name and not found and cast:
                hint = nearest(message.name, [c.id for c in cast])
                what = f"messages.{k}.name: no character {message.name!r} in the cast; {hint}"
                raise ApiError(400, what, f"messages.{k}.name")
            if room.shows_names and cast:
                shown, text = _shown_name(cast, text)
                found = found or shown
            last = speaker = found.id if found else last
        lines.append((k, speaker, text))
    return lines


def _sent_name(cast: Cast, name: str) -> Character | None:
    """Some clients (SillyTavern) send names with "_" for every letter that OpenAI's own `name` may not hold."""
    return next((c for c in cast if any(re.sub(r"[^a-zA-Z0-9_-]", "_", n) == name for n in c.names if n)), None)


def _shown_name(cast: Cast, text: str) -> tuple[Character | None, str]:
    """Whose name a line begins with, as `shown` puts it there; and the line without it."""
    for character in cast:
        for mark in NAME_MARK.values():
            prefix = f"{character.name}{mark}"
            if text.startswith(prefix):
                return character, text.removeprefix(prefix)
    return None, text


def shown(cast: Cast, character: str) -> str:
    """What stands before a line of `character` where a client sees several."""
    return f"{cast[character].name}{NAME_MARK[cast.language]}"


def _scenario(messages: Sequence[ChatMessage]) -> str:
    """The client's system messages, in order; where one has a name (as example lines have), it goes before it."""
    texts = [(m.name, NOT_TEXT.sub("", m.text).strip()) for m in messages if m.role in ("system", "developer")]
    return "\n\n".join(f"{name}: {text}" if name else text for name, text in texts if text)
