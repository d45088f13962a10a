"""`mrp chat`: a chat in the terminal, streaming, with one character at a time.

/as NAME   another character answers        /retry      another reply to your last line
/save F    write the chat (scene JSONL)     /help       this list
/quit      end (also Ctrl-D)                Ctrl-C      stops a reply, not the chat
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mrp.cast import OTHER, Cast
from mrp.errors import InputError, MrpError, nearest
from mrp.files import replacing
from mrp.play.conversation import PLAIN, Conversation, Player
from mrp.play.engine import Sampling
from mrp.report import ConsoleReporter, Reporter

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
COMMANDS = {
    "/as": "/as NAME     another character answers",
    "/retry": "/retry       another reply to your last line",
    "/save": "/save FILE   write the chat as scene JSONL",
    "/help": "/help        this list",
    "/quit": "/quit        end (also Ctrl-D); Ctrl-C stops a reply, not the chat",
}


class TerminalChat:
    """A person and characters at a terminal (or a pipe: one line in, one reply out)."""

    def __init__(self, player: Player, as_: str | None, me: str | None, seed: int | None, report: Reporter) -> None:
        self.player, self.seed = player, seed
        self.out = report if isinstance(report, ConsoleReporter) else ConsoleReporter()
        self.character = self._character(as_)
        self.person = self._person(me)
        self.chat = Conversation(player, [self.character], self.person)
        self.replies = 0

    def run(self) -> dict[str, Any]:
        """Talk until /quit or the end of input; returns the chat as a scene."""
        who = self._name(self.character)
        self.out.line(f"You talk with {who}. /help lists the commands.")
        greeting = self._greeting(self.character)
        if greeting:
            self.chat.say(greeting, self.character)
            self._print_name(self.character)
            self.out.out.print(greeting)
        while True:
            try:
                line = self.out.out.input("> ").strip()
            except EOFError:
                break
            except KeyboardInterrupt:
                self.out.out.print("\n(/quit or Ctrl-D ends the chat)")
                continue
            if line == "/quit":
                break
            if line:
                self._take(line)
        return self._row()

    def _take(self, line: str) -> None:
        try:
            if line.startswith("/"):
                name, _, argument = line.partition(" ")
                self._command(name, argument.strip())
            else:
                self.chat.say(line)
                self._reply()
        except MrpError as error:
            if not line.startswith("/"):
                self.chat.take_back(self.person)
            self.out.err.print(f"error: {error}")

    def _command(self, name: str, argument: str) -> None:
        if name == "/help":
            for text in COMMANDS.values():
                self.out.line(text)
        elif name == "/as":
            self._switch(argument)
        elif name == "/retry":
            if not self.chat.take_back(self.character):
                raise InputError("there is no reply to take back", "/retry", "say something first")
            if not self.chat.turns:
                raise InputError("that was the greeting", "/retry", "say something first")
            self._reply()
        elif name == "/save":
            self._save(argument)
        else:
            raise InputError(f"unknown command {name!r}", "the chat", nearest(name, COMMANDS))

    def _switch(self, name: str) -> None:
        self.character = self._character(name or None)
        self.chat.enter(self.character)
        self.out.line(f"Now {self._name(self.character)} answers.")

    def _reply(self) -> None:
        sampling = Sampling.of(self.player.options)
        if self.seed is not None:
            sampling = replace(sampling, seed=self.seed + self.replies)
        self.replies += 1
        stream = self.chat.reply(self.character, sampling)
        self._print_name(self.character)
        try:
            for piece in stream:
                self.out.out.print(piece, end="")
                self.out.out.file.flush()
        except KeyboardInterrupt:
            stream.close()
            self.out.out.print(" ...", end="")
        self.out.out.print()
        if self.chat.dropped:
            self.out.line(f"(the {self.chat.dropped} oldest messages no longer fit into the context)")

    def _save(self, argument: str) -> None:
        if not argument:
            raise InputError("a file is missing", "/save", "for example /save chat.jsonl")
        path = Path(argument).expanduser()
        if path.exists():
            raise InputError("this file exists already", str(path), "choose another name")
        with replacing(path) as file:
            file.write(json.dumps(self._row(), ensure_ascii=False) + "\n")
        self.out.line(f"saved {path}")

    def _row(self) -> dict[str, Any]:
        scene = self.chat.scene("chat")
        turns = [{"enter": t.speaker} if t.enters else {"speaker": t.speaker, "text": t.text} for t in scene.turns]
        return {"participants": list(scene.participants), "turns": turns}

    # -- names ----------------------------------------------------------------------------------------------------

    def _character(self, name: str | None) -> str:
        cast = self.player.cast
        if cast is None:
            if name is not None:
                raise InputError("this model has no cast, so it answers as itself", "--as", "add --cast cast.yaml")
            return PLAIN
        return cast.find(name, "--as").id if name is not None else cast.characters[0].id

    def _person(self, me: str | None) -> str:
        if me is None:
            return OTHER
        found = self.player.cast.get(me) if self.player.cast else None
        speaker = found.id if found else me
        if speaker == self.character:
            raise InputError(f"{me!r} cannot be you and the one who answers", "--me", "choose another --as or --me")
        return speaker

    def _name(self, speaker: str) -> str:
        return self.player.cast.display_name(speaker) if self.player.cast else speaker

    def _greeting(self, speaker: str) -> str:
        return self.player.cast[speaker].greeting.strip() if self.player.cast else ""

    def _print_name(self, speaker: str) -> None:
        self.out.out.print(f"{self._name(speaker)}: ", style=f"bold {_colour(self.player.cast, speaker)}", end="")


def _colour(cast: Cast | None, speaker: str) -> str:
    ids = [c.id for c in cast] if cast else []
    return COLOURS[ids.index(speaker) % len(COLOURS)] if speaker in ids else "cyan"
