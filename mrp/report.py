"""How long work tells what it is doing: a `Reporter` is handed to it by the command line.

The library stays silent by default (`Reporter`); `ConsoleReporter` prints to the terminal: a live bar where there is
one, else a plain line every few seconds, with rate, time left and the memory of this process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Timer
from typing import Any, Protocol


class Progress(Protocol):
    """What `Reporter.progress` yields: call it with the total done so far, and values worth showing beside it."""

    def __call__(self, done: float, **shown: object) -> None: ...


class Reporter:
    """Says nothing. The base of all reporters, and the default of every library function."""

    flags: Sequence[str] = ()  # of --json, --debug and -q, those that the command which reports was given

    def line(self, text: object = "") -> None:
        """One line for people (or a rich text)."""

    def result(self, text: object = "") -> None:
        """One line of what the command was asked for."""
        self.line(text)

    def warn(self, text: str) -> None:
        """One line that a person should not miss."""

    def error(self, text: object) -> None:
        """What the command ends with, where it is told beside a result."""

    def waiting(self, text: str) -> AbstractContextManager[object]:
        """A stretch of work whose length nobody knows."""
        del text
        return nullcontext()

    @contextmanager
    def progress(self, label: str, total: float, unit: str) -> Iterator[Progress]:
        """A stretch of work of `total` units (`unit` "B" is shown as bytes)."""
        del label, total, unit

        def update(done: float, **shown: object) -> None:
            del done, shown

        yield update


SILENT = Reporter()


class ConsoleReporter(Reporter):
    """Lines to `stream` (standard output), progress and warnings to standard error."""

    def __init__(self, stream: Any = None, quiet: bool = False, seconds_between_lines: float = 10.0) -> None:
        from rich.console import Console

        self.quiet = quiet
        self.out = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True, emoji=False, markup=False)
        self.err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, markup=False)
        self.seconds_between_lines = seconds_between_lines

    def line(self, text: object = "") -> None:
        if not self.quiet:
            self.out.print(text)

    def result(self, text: object = "") -> None:
        self.out.print(text)

    def warn(self, text: str) -> None:
        self.err.print(f"warning: {text}", style="yellow")

    def error(self, text: object) -> None:
        self.err.print(f"error: {text}")

    def waiting(self, text: str) -> AbstractContextManager[object]:
        return self.err.status(text) if self.err.is_terminal and not self.quiet else nullcontext()

    @contextmanager
    def progress(self, label: str, total: float, unit: str) -> Iterator[Progress]:
        if self.quiet:
            with super().progress(label, total, unit) as update:
                yield update
        elif self.err.is_terminal:
            with self._live(label, total, unit) as update:
                yield update
        else:
            lines = _Lines(self, label, total, unit)
            first = Timer(max(self.seconds_between_lines, 1), lines.tell_start)
            first.daemon = True
            first.start()
            try:
                yield lines
            finally:
                first.cancel()

    @contextmanager
    def _live(self, label: str, total: float, unit: str) -> Iterator[Progress]:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        bar_width = 24 if self.err.width >= 110 else 8
        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width),
            TextColumn("{task.fields[amount]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
        ]
        with RichProgress(*columns, console=self.err, transient=True) as bar:
            task = bar.add_task(label, total=total, amount="", shown="")
            start = time.monotonic()

            def update(done: float, **shown: object) -> None:
                amount = _amount_text(done, total, unit, time.monotonic() - start)
                # what is left after the time to go (7 wide) and four blanks; more would squeeze bar and time to nothing
                room = self.err.width - len(label) - bar_width - len(amount) - 11
                bar.update(task, completed=done, amount=amount, shown=_shown_text(shown, room))

            yield update


class _Lines:
    """Progress as plain lines, for logs: the first after `seconds_between_lines`, though nothing be done by then."""

    def __init__(self, reporter: ConsoleReporter, label: str, total: float, unit: str) -> None:
        self.reporter, self.label, self.total, self.unit = reporter, label, total, unit
        self.start = self.last = time.monotonic()

    def tell_start(self) -> None:
        if self.last == self.start:
            self.reporter.err.print(f"{self.label}: {_amount_text(0, self.total, self.unit, 0)}")

    def __call__(self, done: float, **shown: object) -> None:
        now = time.monotonic()
        if now - self.last < self.reporter.seconds_between_lines:
            return
        self.last = now
        seconds = now - self.start
        left = seconds * (self.total - done) / done if done else 0
        amount = _amount_text(done, self.total, self.unit, seconds)
        self.reporter.err.print(f"{self.label}: {amount}, {duration_text(left)} left  {_shown_text(shown)}".rstrip())


def _amount_text(done: float, total: float, unit: str, seconds: float) -> str:
    from mrp.files import size_text

    rate = done / seconds if seconds > 0 else 0
    if unit == "B":
        return f"{size_text(done)} of {size_text(total)}, {size_text(rate)}/s"
    return f"{done:,.0f}/{total:,.0f} {unit}, {rate:,.4g}/s"


def _shown_text(shown: dict[str, object], room: int | None = None) -> str:
    """The values behind their names; the last ones are left out where `room` (columns) is short."""
    text = ""
    for key, value in shown.items():
        more = f"{'  ' if text else ''}{key.replace('_', ' ')} {value}"
        if room is not None and len(text) + len(more) > room:
            break
        text += more
    return text


def duration_text(seconds: float) -> str:
    """Seconds for people: 42s, 3m 05s, 2h 10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def resident_gib() -> float:
    """Memory of this process in GiB (resident set)."""
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**30
