"""`mrp chat`: a chat in the terminal, streaming, with one character at a time.

/as NAME   another character answers        /retry      another reply to your last line
/save F    write the chat (scene JSONL)     /help       this list
/quit      end (also Ctrl-D)                Ctrl-C      stops a reply, not the chat
"""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mrp.cast import OTHER, Cast, fill_user
from mrp.errors import InputError, MrpError, nearest
from mrp.files import write_jsonl
from mrp.play.conversation import PLAIN, Conversation
from mrp.play.engine import Sampling
from mrp.play.reply import Player
from mrp.report import ConsoleReporter, Reporter

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
COMMANDS = {
    "/as": "/as NAME     another character answers (and comes in)",
    "/retry": "/retry       another reply to your last line, by whoever answers now",
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
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # bytes that are no UTF-8 are no reason to stop
        who = self._name(self.character) if self.player.cast else "the plain model (no cast was given)"
        self.out.line(f"You talk with {who}. /help lists the commands.")
        greeting = self._greeting(self.character)
        if greeting:
            self.chat.say(greeting, self.character)
            self._print_name(self.character)
            self.out.out.print(self.chat.turns[-1].text)
        while True:
            try:
                line = self._ask().strip()
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

    def _ask(self) -> str:
        """The next line: with a prompt where a person types it, without one from a pipe."""
        if not sys.stdin.isatty():
            return input()
        out = self.out.out
        out.print()
        prompt = f"{self._name(self.person)}> " if self.person != OTHER else "> "
        try:
            if out.file is sys.stdout and out.is_terminal:
                with contextlib.suppress(ImportError):
                    import readline  # noqa: F401  # arrow keys and history in `input`
                return input(prompt)
            out.print(prompt, end="")
            out.file.flush()
            return input()
        except EOFError:
            out.print()  # Ctrl-D leaves the cursor behind the prompt
            raise

    def _take(self, line: str) -> None:
        try:
            if line.startswith("/"):
                name, _, argument = line.partition(" ")
                self._command(name, argument.strip())
            else:
                self.chat.say(line)
                self._reply()
        except (MrpError, OSError) as error:
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
            self._retry()
        elif name == "/save":
            self._save(argument)
        else:
            raise InputError(f"unknown command {name!r}", "the chat", nearest(name, COMMANDS))

    def _switch(self, name: str) -> None:
        if not name:
            known = ", ".join(f"{c.name} (/as {c.id})" for c in self.player.cast or ())
            raise InputError("who should answer?", "/as", f"one of: {known}" if known else "this model has no cast")
        chosen = self._character(name, "/as")
        if chosen == self.person:
            raise InputError(f"{self._name(chosen)} is you", "/as", "choose somebody else")
        self.character = chosen
        self.chat.join(chosen)
        self.out.line(f"Now {self._name(chosen)} answers.")

    def _retry(self) -> None:
        """Another reply to the person's last line, by whoever answers now."""
        turns = self.chat.turns
        if all(turn.speaker != self.person for turn in turns):
            raise InputError("there is no line of yours to reply to", "/retry", "say something first")
        taken = turns.pop() if turns[-1].speaker != self.person else None
        try:
            self._reply()
        except MrpError:
            if taken:
                turns.append(taken)
            raise

    def _reply(self) -> None:
        sampling = Sampling.of(self.player.options)
        if self.seed is not None:
            sampling = replace(sampling, seed=self.seed + self.replies)
        self.replies += 1
        out, before = self.out.out, len(self.chat.turns)
        stream = self.chat.reply(self.character, sampling)
        self._print_name(self.character)
        try:
            for piece in stream:
                out.print(piece, end="")
                out.file.flush()
        except KeyboardInterrupt:
            stream.close()
            out.print(" ...", end="")
        finally:
            out.print()
        if self.chat.cut:
            self._note(f"cut off after {sampling.max_new_tokens} tokens; chat.max_new_tokens allows more")
        elif len(self.chat.turns) == before:
            self._note("said nothing; /retry asks again")
        if self.chat.dropped:
            self._note(f"the {self.chat.dropped} oldest messages no longer fit into the context")

    def _note(self, text: str) -> None:
        if not self.out.quiet:
            self.out.out.print(f"({text})", style="dim")

    def _save(self, argument: str) -> None:
        if not argument:
            raise InputError("a file is missing", "/save", "for example /save chat.jsonl")
        if not self.chat.turns:
            raise InputError("nothing was said yet", "/save", "say something first")
        path = Path(argument).expanduser()
        if path.exists():
            raise InputError("this file exists already", str(path), "choose another name")
        write_jsonl(path, [self._row()])
        self.out.line(f"saved {path}")

    def _row(self) -> dict[str, Any]:
        scene = self.chat.scene("chat")
        turns = [{"speaker": t.speaker, "text": t.text} for t in scene.turns]
        return {"participants": list(scene.participants), "turns": turns}

    # -- names ----------------------------------------------------------------------------------------------------

    def _character(self, name: str | None, where: str = "--as") -> str:
        cast = self.player.cast
        if cast is None:
            if name is not None:
                raise InputError("this model has no cast, so it answers as itself", where, "add --cast cast.yaml")
            return PLAIN
        return cast.find(name, where).id if name is not None else cast.characters[0].id

    def _person(self, me: str | None) -> str:
        if me is None:
            return OTHER
        if not me.strip() or not me.isprintable():
            raise InputError(f"{me!r} is no name", "--me", "write a name on one line")
        me = me.strip()
        found = self.player.cast.get(me) if self.player.cast else None
        speaker = found.id if found else me
        if speaker == self.character:
            raise InputError(f"{me!r} cannot be you and the one who answers", "--me", "choose another --as or --me")
        return speaker

    def _name(self, speaker: str) -> str:
        return self.player.cast.display_name(speaker) if self.player.cast else speaker

    def _greeting(self, speaker: str) -> str:
        """What the character says first, with the person's name where the greeting asks for it."""
        if not self.player.cast:
            return ""
        return fill_user(self.player.cast[speaker].greeting, self._name(self.person)).strip()

    def _print_name(self, speaker: str) -> None:
        self.out.out.print(f"{self._name(speaker)}: ", style=f"bold {_colour(self.player.cast, speaker)}", end="")


def _colour(cast: Cast | None, speaker: str) -> str:
    ids = [c.id for c in cast] if cast else []
    return COLOURS[ids.index(speaker) % len(COLOURS)] if speaker in ids else "cyan"
