"""Every fault of dialogue files in one pass, with file and line; nothing is written.

report = check_data([Path("wukong.jsonl")], cast)
report.ok, report.counts, [str(fault.as_error()) for fault in report.faults]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrp.cast import Cast
from mrp.config import load_run
from mrp.data.build import silent_characters
from mrp.data.collect import DialogueFile, collect, dialogue_files
from mrp.data.record import Rejected
from mrp.dialogue import Scene
from mrp.errors import MrpError


@dataclass(slots=True)
class CheckReport:
    """What a check found. `lines` is `kept` plus all of `counts`; `problems` concern whole files or characters."""

    lines: int = 0
    kept: int = 0
    counts: Counter[str] = field(default_factory=Counter)  # rejected lines by reason
    dropped: Counter[str] = field(default_factory=Counter)  # lines of dialogue left out of kept lines, by kind
    formats: Counter[str] = field(default_factory=Counter)  # what the lines were understood as
    faults: list[Rejected] = field(default_factory=list)
    problems: list[MrpError] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faults and not self.problems

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "lines": self.lines,
            "kept": self.kept,
            "rejected": dict(sorted(self.counts.items())),
            "dropped_turns": dict(sorted(self.dropped.items())),
            "formats": dict(sorted(self.formats.items())),
            "faults": [fault.as_json() for fault in self.faults],
            "problems": [problem.as_json() for problem in self.problems],
        }


def check_data(paths: Sequence[Path], cast: Cast | None = None) -> CheckReport:
    """Check JSONL files, and all files of any run (run file or folder) among `paths`.

    The files of a run are checked against its cast, others against `cast`; without one, the speakers named in the
    data are taken as they are. Raises only for a run file or cast that cannot be read.
    """
    report = CheckReport()
    files = []
    for path in paths:
        if path.is_dir() or path.suffix in (".yaml", ".yml"):
            run = load_run(path)
            scenes = _add(report, dialogue_files(run), run.cast)
            report.problems += silent_characters(run, scenes)
        else:
            files.append(DialogueFile(str(path), path))
    _add(report, files, cast)
    return report


def _add(report: CheckReport, files: Sequence[DialogueFile], cast: Cast | None) -> list[Scene]:
    found = collect(files, cast)
    total = found.total()
    report.lines += total.lines
    report.kept += total.kept
    report.counts += total.rejected
    report.dropped += total.dropped
    report.formats += total.formats
    report.faults += found.rejected
    report.problems += found.faults
    return found.scenes
