"""`mrp chat`: a chat in the terminal, streaming, with the characters of a cast.

    TerminalChat(player, "auto", None, None, report, router=open_router(run, run.cast, player), folder=...).run()

With `--as auto` the router chooses who answers each line, else one character does until /as. What else a person can do
stands in `chat_commands.py`. Everything said is kept in a file while it is said (`transcript.py`).
"""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mrp.cast import OTHER, PLAIN, Cast, fill_user
from mrp.errors import InputError, MrpError, nearest
from mrp.play.chat_commands import run_command
from mrp.play.conversation import Conversation
from mrp.play.engine import Sampling
from mrp.play.lore import LORE_TOKENS
from mrp.play.memory import MEMORY_TOKENS
from mrp.play.recall import Recall
from mrp.play.reply import NOT_TEXT, Player
from mrp.play.route import Route, Router
from mrp.play.transcript import Transcript, scene_row, speaker_name
from mrp.report import ConsoleReporter, Reporter

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
AUTO = "auto"


class TerminalChat:
    """A person and characters at a terminal (or a pipe: one line in, one reply out).

    `as_` None: the first character answers. `folder`: where the chat is kept (None: nowhere). `memory` and `lore`: the
    most tokens of each in a prompt.
    """

    def __init__(
        self,
        player: Player,
        as_: str | None,
        me: str | None,
        seed: int | None,
        report: Reporter,
        *,
        router: Router | None = None,
        folder: Path | None = None,
        scenario: str = "",
        memory: int = MEMORY_TOKENS,
        lore: int = LORE_TOKENS,
    ) -> None:
        self.player, self.seed = player, seed
        self.longest_context = player.options.context_tokens
        self.out = report if isinstance(report, ConsoleReporter) else ConsoleReporter()
        self.router = router or (Router(player.cast, None, player) if player.cast else None)
        self.auto = as_ == AUTO and player.cast is not None and len(player.cast.characters) > 1
        named = None if as_ == AUTO else as_
        self.person = self._person(me, self.find(named) if named is not None else "")
        self.character = self.find(named) if named is not None else self._first()
        self.recall = Recall(player.cast, lore, memory, seed)
        self.chat = Conversation(player, [self.character], self.person, scenario.strip(), self.recall)
        self.kept = Transcript(folder) if folder else None
        self.route: Route | None = None  # why the last line was answered by whom
        self.replies = 0
        self.greeting = 0  # which of the character's greetings was said

    def run(self) -> dict[str, Any]:
        """Talk until /quit or the end of input; returns the chat as a scene."""
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # bytes that are no UTF-8 are no reason to stop
        self.out.line(f"You talk with {self._who_answers()}. /help lists the commands.")
        self.greet()
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
        if self.kept and self.kept.path:
            self.kept.close()
            self.note(f"kept in {self.kept.path}; /load goes on with it")
        return scene_row(self.chat.scene("chat"))

    # -- a line -------------------------------------------------------------------------------------------------------

    def _ask(self) -> str:
        """The next line: with a prompt where a person types it, without one from a pipe."""
        if not sys.stdin.isatty():
            return input()
        out = self.out.out
        out.print()
        prompt = f"{self.name(self.person)}> " if self.person != OTHER else "> "
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
        """Do what the line says; no error and no Ctrl-C ends the chat."""
        try:
            if line.startswith("/"):
                run_command(self, line)
            else:
                self.say(line)
        except KeyboardInterrupt:
            self.out.out.print(" ...")
        except (MrpError, OSError) as error:
            self.out.err.print(f"error: {error}")
        except Exception as error:  # an engine that dies: what was said stays
            what = f"the reply failed: {type(error).__name__}: {error}"
            self.out.err.print(f"error: {MrpError(what, 'the engine', '/retry asks again; all that was said is kept')}")
        finally:
            self.keep()

    def say(self, line: str) -> None:
        """A line of the person, and the reply to it. A line that the model cannot be asked with is taken back."""
        if self.auto:
            self._check_call(line)
        self.chat.say(line)
        if self.chat.turns[-1].text != NOT_TEXT.sub("", line).strip():
            self.note("your line began like somebody else's turn, so its colon became a comma")
        if not self.chat.turns[-1].text:
            self.chat.turns.pop()
            raise InputError("nothing is left of this line without control characters", "your line", "write a text")
        self.keep()
        try:
            self.choose()
            self.reply()
        except InputError:
            self.chat.take_back(self.person)
            raise

    def choose(self) -> None:
        """With `auto`: let the router choose who answers the person's last line."""
        at = self.chat.last_said(self.person)
        if not self.auto or self.router is None or at is None or self.player.cast is None:
            return
        allowed = [c.id for c in self.player.cast if c.id != self.person]
        self.route = self.router.route(self.chat.turns[at].text, self.character, allowed)
        self.character = self.route.character
        self.chat.join(self.character)

    def reply(self) -> None:
        """The next line of whoever answers, shown as it comes."""
        sampling = Sampling.of(self.player.options)
        if self.seed is not None:
            sampling = replace(sampling, seed=self.seed + self.replies)
        self.replies += 1
        self.keep()  # who came in to answer, before anything of the answer
        out, before, folded = self.out.out, len(self.chat.turns), self.chat.memory(self.character).dropped
        stream = self.chat.reply(self.character, sampling)
        self.print_name(self.character)
        try:
            for piece in stream:
                out.print(piece, end="")
                out.file.flush()
                if self.kept:
                    self.kept.piece(self.character, piece)
        except KeyboardInterrupt:
            out.print(" ...", end="")
        finally:
            stream.close()
            out.print()
        if self.chat.cut:
            self.note(f"cut off after {sampling.max_new_tokens} tokens; chat.max_new_tokens allows more")
        elif len(self.chat.turns) == before:
            self.note("said nothing; /retry asks again")
        if self.chat.dropped > folded:
            is_folded = self.recall.memory_tokens and self.chat.memory(self.character).dropped > folded
            more = f"; /memory {self.character} shows what is remembered of them" if is_folded else ""
            self.note(f"the {self.chat.dropped} oldest messages no longer fit into the context{more}")
            if is_folded and self.recall.fault:
                self.note(f"what is remembered is what it was: {self.recall.fault}")

    def keep(self) -> None:
        """Bring the file of the chat up to date. A disk that does not take it is told once; the chat goes on."""
        if self.kept is None:
            return
        try:
            self.kept.sync(self.chat, self.character)
        except MrpError as error:
            self.kept = None
            self.out.warn(f"this chat is no longer kept: {error.what}")

    # -- who ----------------------------------------------------------------------------------------------------------

    def find(self, name: str, where: str = "--as") -> str:
        """The id of a character; raises `InputError` with the nearest name."""
        if self.player.cast is None:
            raise InputError("this model has no cast, so it answers as itself", where, "add --cast cast.yaml")
        return self.player.cast.find(name, where).id

    def _first(self) -> str:
        """Who answers where nobody is named: the first character that is not the person."""
        if self.player.cast is None:
            return PLAIN
        left = [c.id for c in self.player.cast if c.id != self.person]
        if not left:
            raise InputError("nobody is left to answer you", "--me", "be somebody else than the only character")
        return left[0]

    def _person(self, me: str | None, answers: str) -> str:
        if me is None:
            return OTHER
        if not me.strip() or not me.isprintable():
            raise InputError(f"{me!r} is no name", "--me", "write a name on one line")
        me = me.strip()
        found = self.player.cast.get(me) if self.player.cast else None
        speaker = found.id if found else me
        if speaker in (answers, PLAIN):
            raise InputError(f"{me!r} cannot be you and the one who answers", "--me", "choose another --as or --me")
        return speaker

    def _who_answers(self) -> str:
        if self.player.cast is None:
            return "the plain model (no cast was given)"
        if not self.auto:
            return self.name(self.character)
        names = [c.name for c in self.player.cast if c.id != self.person]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        return f"{shown}; whoever you call answers"

    def _check_call(self, line: str) -> None:
        """A line that begins with @somebody who is not there: the nearest name."""
        from mrp.play.route_names import addressed, call_names

        cast = self.player.cast
        if cast is None or not line.startswith("@") or len(line) < 2 or not line[1].isalpha():
            return
        allowed = [c.id for c in cast if c.id != self.person]
        if addressed(line, cast, allowed) is None:
            called = line[1:].split()[0].rstrip(",.:;!?，。：；！？")
            raise InputError(f"nobody here is called {called!r}", "@", nearest(called, call_names(cast, allowed)))

    def name(self, speaker: str) -> str:
        return speaker_name(self.player.cast, speaker)

    # -- on the screen ------------------------------------------------------------------------------------------------

    def greetings(self) -> list[str]:
        """What the character may say first, with the person's name where it is asked for."""
        if self.player.cast is None:
            return []
        character = self.player.cast[self.character]
        texts = (character.greeting, *character.alternate_greetings)
        return [fill_user(text, self.name(self.person)).strip() for text in texts if text.strip()]

    def greet(self, number: int = 0) -> None:
        """The character's greeting, as its first line."""
        greetings = self.greetings()
        if not greetings:
            return
        self.chat.say(greetings[number], self.character)
        self.greeting = number
        self.print_name(self.character)
        self.out.out.print(self.chat.turns[-1].text)

    def note(self, text: str) -> None:
        if not self.out.quiet:
            self.out.out.print(f"({text})", style="dim")

    def print_name(self, speaker: str) -> None:
        self.out.out.print(f"{self.name(speaker)}: ", style=f"bold {_colour(self.player.cast, speaker)}", end="")


def _colour(cast: Cast | None, speaker: str) -> str:
    ids = [c.id for c in cast] if cast else []
    return COLOURS[ids.index(speaker) % len(COLOURS)] if speaker in ids else "cyan"
