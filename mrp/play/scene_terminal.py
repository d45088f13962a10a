"""A scene at a terminal: lines as they are spoken, a person's turn where one plays, and a few commands.

SceneTerminal(stage, report).run()       # until the scene is over, or Ctrl-C; gives back what was played
"""

from __future__ import annotations

import io
import sys
from typing import Any

from mrp.dialogue import Turn
from mrp.errors import InputError, MrpError, Stopped, nearest
from mrp.play.reply import NOT_TEXT
from mrp.play.scene import Stage
from mrp.play.scene_steps import due, perform
from mrp.report import ConsoleReporter, Reporter

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
COMMANDS = {
    "/skip": "/skip              say nothing this time",
    "/as": "/as NAME           somebody else speaks instead",
    "/enter": "/enter NAME        a character comes in",
    "/leave": "/leave NAME        somebody leaves, and hears no more",
    "/memory": "/memory NAME TEXT  what a character remembers of what it no longer sees; TEXT replaces it",
    "/lore": "/lore NAME         the lore in a character's next prompt, and why; without NAME: in the last prompt",
    "/end": "/end               end the scene",
    "/help": "/help              this list",
}
PAUSED = "go on with `--resume FILE`, if you gave `--out FILE`"


class SceneTerminal:
    """Plays a stage to its end."""

    def __init__(self, stage: Stage, report: Reporter) -> None:
        self.stage = stage
        self.out = report if isinstance(report, ConsoleReporter) else ConsoleReporter()

    def run(self) -> dict[str, Any]:
        """Play until the scene is over. Raises `Stopped` on Ctrl-C; the end of input ends the scene."""
        stage = self.stage
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        for turn in stage.turns:
            self._show(turn)
        try:
            while not (reason := stage.over()):
                self._go_on()
        except KeyboardInterrupt:
            self.out.out.print()
            raise Stopped("the scene was stopped; every whole line is kept", "", PAUSED) from None
        if not stage.ended:
            stage.end(reason)
        self._note(f"the end: {stage.ended}")
        turns = [turn.row() for turn in stage.turns]
        return {"participants": stage.plan.participants, "turns": turns, "end": stage.ended, **stage.stats()}

    def _go_on(self) -> None:
        """One step of the script, or one turn."""
        found = due(self.stage)
        if not found.is_fixed:
            self._turn(found.who, found.more)
        elif turn := perform(self.stage, found):
            self._show(turn)

    def _turn(self, speaker: str, more: dict[str, int]) -> None:
        if not speaker:
            self._take("", self._ask("who speaks? "), more)
        elif speaker in self.stage.plan.persons:
            self._take(speaker, self._ask(f"{self.stage.cast.display_name(speaker)}> "), more)
        else:
            self._reply(speaker, more)

    def _reply(self, character: str, more: dict[str, int]) -> None:
        out, stage = self.out.out, self.stage
        folded = stage.memory(character).dropped
        self._name(character)
        try:
            for piece in stage.reply(character, **more):
                out.print(piece, end="")
                out.file.flush()
        finally:
            out.print()
        if stage.last_speaker == character and stage.silences:
            self._note("says nothing")
        memory = stage.memory(character)
        if memory.dropped > folded:
            self._note(f"{memory.dropped} old messages no longer fit; /memory {character} shows what it remembers")
            if stage.recall.fault:
                self._note(f"what it remembers is what it was: {stage.recall.fault}")

    # -- a person -------------------------------------------------------------------------------------------------

    def _ask(self, prompt: str) -> str:
        """A line from the person; the end of input is /end."""
        try:
            if not sys.stdin.isatty():
                return input().strip()
            self.out.out.print(prompt, end="")
            self.out.out.file.flush()
            return input().strip()
        except EOFError:
            return "/end"

    def _take(self, speaker: str, line: str, more: dict[str, int]) -> None:
        """What the person whose turn it is typed ("" as speaker: the person who directs)."""
        stage = self.stage
        try:
            if line.startswith("/"):
                name, _, argument = line.partition(" ")
                self._command(name, argument.strip(), speaker, more)
            elif not line:
                return  # asked again
            elif speaker:
                stage.say(speaker, line, **more)
                if stage.turns[-1].text != NOT_TEXT.sub("", line).strip():
                    self._note("your line began like somebody else's turn, so its colon became a comma")
            else:
                self._speak(line, more)
        except MrpError as error:
            if not isinstance(error, InputError):
                raise
            self.out.err.print(f"error: {error}")

    def _speak(self, name: str, more: dict[str, int]) -> None:
        """Whoever the person names speaks: the model for a character, the person for a person."""
        speaker = self._who(name, there=True)
        self._turn(speaker, more)

    def _command(self, name: str, argument: str, speaker: str, more: dict[str, int]) -> None:
        stage = self.stage
        if name == "/help":
            for text in COMMANDS.values():
                self.out.line(text)
        elif name == "/end":
            stage.end("a person ended it")
        elif name == "/skip" and speaker:
            stage.skip(speaker, **more)
        elif name == "/as":
            self._speak(argument, more)
        elif name in ("/enter", "/leave"):
            who = self._who(argument, there=name == "/leave")
            (stage.enter if name == "/enter" else stage.leave)(who)
            self._show(stage.turns[-1])
        elif name == "/lore":
            self._lore(argument)
        elif name == "/memory":
            self._memory(argument)
        else:
            raise InputError(f"unknown command {name!r}", "the scene", nearest(name, COMMANDS))

    def _lore(self, name: str) -> None:
        found = self.stage.lore(self._who(name)) if name else self.stage.recall.used
        for used in found:
            self.out.line(f"{used.place} ({used.why}): {used.entry.text}")
        if not found:
            self.out.line("none")

    def _memory(self, argument: str) -> None:
        name, _, text = argument.partition(" ")
        who = self._who(name)
        if text.strip():
            self.stage.remember(who, text)
        memory = self.stage.memory(who)
        self.out.line(f"({memory.dropped} messages dropped) {memory.summary or 'nothing'}")

    def _who(self, name: str, there: bool = False) -> str:
        """Somebody of the cast, or a person, by name; `there`: who is on the stage."""
        stage = self.stage
        found = stage.cast.get(name)
        speaker = found.id if found else name.strip()
        known = stage.present if there else [*(c.id for c in stage.cast), *stage.plan.persons]
        if speaker not in known:
            raise InputError(f"{name!r} is not there" if there else f"who is {name!r}?", "", nearest(name, known))
        return speaker

    # -- what is seen ---------------------------------------------------------------------------------------------

    def _show(self, turn: Turn) -> None:
        if turn.is_line:
            self._name(turn.speaker)
            self.out.out.print(turn.text)
        else:
            self._note(f"{self.stage.cast.display_name(turn.speaker)} {'comes in' if turn.enters else 'leaves'}")

    def _name(self, speaker: str) -> None:
        ids = [c.id for c in self.stage.cast]
        colour = COLOURS[ids.index(speaker) % len(COLOURS)] if speaker in ids else "white"
        self.out.out.print(f"{self.stage.cast.display_name(speaker)}: ", style=f"bold {colour}", end="")

    def _note(self, text: str) -> None:
        if not self.out.quiet:
            self.out.out.print(f"({text})", style="dim")
