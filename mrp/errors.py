"""The errors of mRP-LLM: each says what is wrong, where, and how to fix it.

The library raises; only `cli.py` prints and turns an error into an exit code. One tree, so that a caller can catch
`MrpError` and know that the text is fit for a person.

    >>> print(InputError("turn 3 has no text", "wukong.jsonl:128", "add the text or delete the line"))
    turn 3 has no text
      where: wukong.jsonl:128
      fix:   add the text or delete the line
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

LOST = 75  # the exit code of a process of a training that ended because another one did
SHOWN_FAULTS = 20  # of many faults found in one pass, as many are printed; the rest is counted


class MrpError(Exception):
    """Something that stops the work: `what` happened, `where` (file:line, key, flag), and how to `fix` it."""

    exit_code = 1  # our fault, unless a subclass says that the user can fix it
    shared = False  # True: every process of a training ends by it, and the first one tells it

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, object]:
        return {"what": self.what, "where": self.where, "fix": self.fix}


class InputError(MrpError):
    """The user's files or options are wrong."""

    exit_code = 2


class SetupError(MrpError):
    """The machine lacks something: a package, disk space, the network, or the folder is in use."""

    exit_code = 2


class LostError(MrpError):
    """Another process of the training has ended, so this one cannot go on; that one tells why."""

    exit_code = LOST


class Stopped(MrpError):
    """The user stopped the work (Ctrl-C, SIGTERM); everything so far is saved and `fix` resumes it."""

    exit_code = 130


class ManyFaults(InputError):
    """Every fault found in one pass over some input, the first `SHOWN_FAULTS` printed.

    Where there are too many to be held, `faults` are those to print (all of them are), and `total` counts all.
    """

    def __init__(self, what: str, faults: Sequence[MrpError], total: int | None = None) -> None:
        self.faults = list(faults)
        self.total = len(self.faults) if total is None else total
        self.shown = self.faults[:SHOWN_FAULTS] if total is None else self.faults
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        for fault in self.shown:
            lines.append("- " + str(fault).replace("\n", "\n  "))
        if self.total > len(self.shown):
            lines.append(f"... and {self.total - len(self.shown):,} more")
        return "\n".join(lines)

    def as_json(self) -> dict[str, object]:
        return {"what": self.what, "total": self.total, "faults": [fault.as_json() for fault in self.faults]}


class Judgement(dict[str, Any]):
    """The result of a command that looks at something: what it found, and (`exit_code`) whether that is in order."""

    def __init__(self, found: dict[str, Any], exit_code: int) -> None:
        super().__init__(found)
        self.exit_code = exit_code


def raise_all(what: str, faults: Sequence[MrpError]) -> None:
    """Raise nothing for no fault, the fault itself for one, `ManyFaults` for several."""
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise ManyFaults(f"{what}: {len(faults)} faults", faults)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: "did you mean X?", or all known names where none is near."""
    names = sorted(known)
    lowered = {n.casefold(): n for n in names}
    close = difflib.get_close_matches(name.casefold(), list(lowered), n=1, cutoff=0.6)
    if close:
        return f"did you mean {lowered[close[0]]!r}?"
    return "known: " + (", ".join(names) if names else "none")


def need_extra(extra: str, package: str) -> SetupError:
    """The error for an optional package that is not installed."""
    return SetupError(
        f"this needs the package {package!r}, which is not installed",
        "the Python environment",
        f"pip install 'mrp-llm[{extra}]'",
    )
