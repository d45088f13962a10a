"""What a person can do in `mrp chat` besides talking: one short function for each command that begins with "/".

    run_command(terminal_chat, "/as Pigsy")

`COMMANDS` is the list that /help shows. A command that fails raises `MrpError` and changes nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pydantic

from mrp.cast import OTHER
from mrp.config import ChatOptions
from mrp.dialogue import Turn
from mrp.errors import InputError, nearest
from mrp.files import replacing, write_jsonl
from mrp.play.transcript import latest_chat, load_chat, markdown, scene_row
from mrp.yamlfile import parse_yaml

if TYPE_CHECKING:
    from mrp.play.terminal import TerminalChat

SHOWN_LINES = 4  # of a chat that was loaded


def run_command(chat: TerminalChat, line: str) -> None:
    """Do what a line with a command says; raises `InputError` for an unknown one, with the nearest."""
    name, _, argument = line.partition(" ")
    if name not in COMMANDS:
        raise InputError(f"unknown command {name!r}", "the chat", nearest(name, COMMANDS))
    COMMANDS[name][1](chat, argument.strip())


def show_help(chat: TerminalChat, _: str) -> None:
    screen = chat.out.out
    for text, _function in COMMANDS.values():  # a narrow terminal would cut words in two
        narrow = screen.is_terminal and screen.width < len(text)
        chat.out.line(textwrap.fill(text, max(screen.width, 30), subsequent_indent=" " * 13) if narrow else text)


def switch(chat: TerminalChat, name: str) -> None:
    cast = chat.player.cast
    if not name:
        known = ", ".join(["auto (the one you call)", *(f"{c.name} (/as {c.id})" for c in cast)] if cast else [])
        raise InputError("who should answer?", "/as", f"one of: {known}" if known else "this model has no cast")
    if name == "auto" and cast is not None:
        chat.auto = True
        chat.out.line("Now whoever you call answers.")
        return
    chosen = chat.find(name, "/as")
    if chosen == chat.person:
        raise InputError(f"{chat.name(chosen)} is you", "/as", "choose somebody else")
    chat.character, chat.auto, chat.route = chosen, False, None
    chat.chat.join(chosen)
    chat.out.line(f"Now {chat.name(chosen)} answers.")


def retry(chat: TerminalChat, _: str) -> None:
    """Another reply to the person's last line, by whoever answers now."""
    at = _last_own(chat, "/retry", "reply to")
    _again(chat, chat.chat.turns[: at + 1])


def edit(chat: TerminalChat, text: str) -> None:
    """Another text for the person's last line, and a reply to it."""
    at = _last_own(chat, "/edit", "change")
    if not text:
        raise InputError("a text is missing", "/edit", "write your last line anew behind /edit")
    before = list(chat.chat.turns)
    chat.chat.turns[at:] = []
    try:
        chat.say(text)
    except InputError:
        chat.chat.turns[:] = before
        raise


def undo(chat: TerminalChat, _: str) -> None:
    """Take back the person's last line and what followed."""
    at = _last_own(chat, "/undo", "take back")
    gone = chat.chat.turns[at:]
    chat.chat.turns[at:] = []
    chat.out.line(f"taken back: {_shorten(gone[0].text)}" + (f" (and {len(gone) - 1} after it)" if gone[1:] else ""))


def greeting(chat: TerminalChat, number: str) -> None:
    """Another of the character's greetings, as long as nothing else was said."""
    texts = chat.greetings()
    if not number:
        for place, text in enumerate(texts, 1):
            chat.out.line(f"{place}. {text}")
        if not texts:
            chat.out.line(f"{chat.name(chat.character)} has no greeting.")
        return
    if not number.isdecimal() or not 1 <= int(number) <= len(texts):
        raise InputError(
            f"there is no greeting {number!r}", "/greeting", f"{len(texts)} are there; /greeting lists them"
        )
    if chat.chat.last_said(chat.person) is not None:
        raise InputError("the chat has begun already", "/greeting", "choose a greeting before your first line")
    chat.chat.turns.clear()
    chat.greet(int(number) - 1)


def save(chat: TerminalChat, name: str) -> None:
    if not name:
        raise InputError("a file is missing", "/save", "for example /save chat.jsonl, or /save chat.md")
    scene = chat.chat.scene("chat")
    if not scene.turns:
        raise InputError("nothing was said yet", "/save", "say something first")
    path = Path(name).expanduser()
    if path.exists():
        raise InputError("this file exists already", str(path), "choose another name")
    if path.suffix.lower() in (".md", ".markdown"):
        with replacing(path) as file:
            file.write(markdown(scene, chat.player.cast))
    else:
        write_jsonl(path, [scene_row(scene)])
    chat.out.line(f"saved {path}")


def load(chat: TerminalChat, name: str) -> None:
    """Go on with a chat that was saved, or (without a name) with the one kept last."""
    if name:
        path: Path | None = Path(name).expanduser()
        if not Path(name).expanduser().exists():
            raise InputError("no such file", name, "name a file that /save wrote, or /load alone for the one kept last")
    else:
        path = latest_chat(chat.kept.folder, chat.kept.path) if chat.kept else None
    if path is None:
        raise InputError("no chat was kept here yet", "/load", "name a file that /save wrote")
    cast, kept = chat.player.cast, load_chat(path, chat.player.cast)
    if cast is not None and cast.get(kept.character) is None:
        raise InputError("nobody of this cast answers in that chat", str(path), "load a chat with these characters")
    chat.chat.turns[:], chat.chat.participants[:] = kept.turns, kept.participants
    chat.person = chat.chat.person = kept.person
    chat.character, chat.chat.scenario, chat.route = kept.character, kept.scenario, None
    chat.recall.restore(kept.turns, kept.memories)
    chat.out.line(f"loaded {path}: {len(kept.turns)} lines" + (":" if kept.turns else ""))
    for turn in kept.turns[-SHOWN_LINES:]:
        _print_turn(chat, turn)


def show_lore(chat: TerminalChat, name: str) -> None:
    """What the next prompt of whoever answers now (or of NAME) would hold, and why."""
    character = chat.find(name, "/lore") if name else chat.character
    used = chat.chat.lore(character)
    for entry in used:
        chat.out.line(f"{entry.place} ({entry.why}): {entry.entry.text}")
    if not used:
        chat.out.line(f"{chat.name(character)} is told nothing beside the persona now.")
    if left_out := chat.recall.lore(character).left_out:
        most = chat.recall.lore_budget(chat.player)
        chat.out.line(f"left out, as {most} tokens at most are told (--lore): {', '.join(left_out)}")


def memory(chat: TerminalChat, argument: str) -> None:
    """What a character remembers of what it no longer sees; a text behind the name takes its place."""
    character, text = _named(chat, argument)
    if text:
        chat.chat.remember(character, text)
    found = chat.chat.memory(character)
    chat.out.line(f"({found.dropped} messages dropped) {found.summary or 'nothing'}")


def why(chat: TerminalChat, _: str) -> None:
    """Who answered the last line, and why."""
    if chat.route is None:
        how = "nothing was routed yet" if chat.auto else "you chose, with --as or /as; /as auto lets the router choose"
        chat.out.line(f"{chat.name(chat.character)} answers: {how}.")
        return
    chat.out.line(f"{chat.name(chat.route.character)} ({chat.route.confidence:.0%}): {chat.route.reason}")
    for who, share in sorted(chat.route.scores.items(), key=lambda item: -item[1]):
        chat.out.line(f"  {share:6.1%}  {chat.name(who)}")


def set_option(chat: TerminalChat, argument: str) -> None:
    """Another sampling option from the next reply on."""
    name, _, text = argument.replace("=", " ", 1).partition(" ")
    name, options = name.removeprefix("chat."), chat.player.options
    if not name:
        for key, value in {**options.model_dump(), "seed": chat.seed}.items():
            chat.out.line(f"{key} {'none' if value is None else value}")
        return
    known = [*ChatOptions.model_fields, "seed"]
    if name not in known:
        raise InputError(f"unknown option {name!r}", "/set", nearest(name, known))
    value = parse_yaml(text.strip(), "/set")
    if name == "seed":
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise InputError(f"{text.strip()!r} is no seed", "/set seed", "write a whole number, or nothing for none")
        chat.seed = value
    else:
        try:
            options = ChatOptions.model_validate({**options.model_dump(), name: value})
        except pydantic.ValidationError as error:
            what, _, fix = error.errors()[0]["msg"].removeprefix("Value error, ").partition("|")
            raise InputError(f"{name}: {what}", f"/set {name}", fix or "`mrp chat --help`, docs/options.md") from None
        if options.context_tokens > chat.longest_context:
            what = f"the context was opened with {chat.longest_context} tokens, and {options.context_tokens} are more"
            raise InputError(what, "/set context_tokens", "start with --set chat.context_tokens=...")
        chat.player = chat.chat.player = replace(chat.player, options=options)
    chat.out.line(f"{name} is {'none' if value is None else value} from now on")


COMMANDS: dict[str, tuple[str, Callable[[TerminalChat, str], None]]] = {
    "/as": ("/as NAME     another character answers (and comes in); /as auto: whoever you call", switch),
    "/why": ("/why         who answered your last line, and why", why),
    "/retry": ("/retry       another reply to your last line, by whoever answers now", retry),
    "/edit": ("/edit TEXT   your last line anew, and a reply to it", edit),
    "/undo": ("/undo        take back your last line and what followed", undo),
    "/greeting": ("/greeting N  another greeting of the character, before your first line", greeting),
    "/lore": ("/lore NAME   the lore in the next prompt (of whoever answers now), and why", show_lore),
    "/memory": ("/memory NAME what it remembers of what no longer fits; a text behind the name replaces it", memory),
    "/set": ("/set KEY X   sampling from now on, such as /set temperature 0.9; /set lists", set_option),
    "/save": ("/save FILE   write the chat: scene JSONL, or Markdown for FILE.md", save),
    "/load": ("/load FILE   go on with a saved chat; without FILE: with the one kept last", load),
    "/help": ("/help        this list", show_help),
    "/quit": ("/quit        end (also Ctrl-D); Ctrl-C stops a reply, not the chat", lambda *_: None),
}


def _again(chat: TerminalChat, turns: list[Turn]) -> None:
    """Another reply after `turns`; what was there stays if none can be asked for."""
    before = list(chat.chat.turns)
    chat.chat.turns[:] = turns
    try:
        chat.reply()
    except Exception:
        if len(chat.chat.turns) == len(turns):
            chat.chat.turns[:] = before
        raise


def _last_own(chat: TerminalChat, command: str, what: str) -> int:
    at = chat.chat.last_said(chat.person)
    if at is None:
        raise InputError(f"there is no line of yours to {what}", command, "say something first")
    return at


def _named(chat: TerminalChat, text: str) -> tuple[str, str]:
    """The character whose name `text` begins with (whoever answers now where it is empty), and the rest."""
    if not text or chat.player.cast is None:
        return chat.character, text
    names = sorted((name for c in chat.player.cast for name in c.names), key=len, reverse=True)
    for name in names:
        if text[: len(name)].casefold() == name.casefold() and not text[len(name) : len(name) + 1].strip():
            return chat.find(name), text[len(name) :].strip()
    return chat.find(text.split()[0], "/memory"), ""


def _print_turn(chat: TerminalChat, turn: Turn) -> None:
    if not turn.is_line:
        chat.note(f"{chat.name(turn.speaker)} {'comes in' if turn.enters else 'leaves'}")
    elif turn.speaker == chat.person:
        chat.out.line(f"{'' if turn.speaker == OTHER else chat.name(turn.speaker)}> {turn.text}")
    else:
        chat.print_name(turn.speaker)
        chat.out.out.print(turn.text)


def _shorten(text: str, length: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
