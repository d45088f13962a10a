"""All dialogue files of a run into scenes: read, exact duplicates taken out, ids given. Nothing is lost uncounted.

    found = collect(dialogue_files(run), run.cast)
    found.scenes, found.rejected, found.counts[0].lines       # one `FileCounts` for each file

Between reading (`read.py`) and building (`build.py`); `check.py` uses it too, so both see the same faults.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mrp.cast import Cast
from mrp.config import Run
from mrp.data.read import read_lines
from mrp.data.record import SHOWN_TEXT, Rejected
from mrp.dialogue import Scene
from mrp.errors import InputError
from mrp.files import fingerprint


@dataclass(frozen=True, slots=True)
class DialogueFile:
    """A file with dialogues: its name as the cast writes it, where it lies, and the character it is listed under."""

    name: str
    path: Path
    owner: str | None = None


@dataclass(slots=True)
class FileCounts:
    """What became of the non-blank lines of one file (or the elements of the array that it is).

    `lines` is `kept` plus all of `rejected`.
    """

    lines: int = 0
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)  # lines of dialogue left out of kept scenes, by kind
    formats: Counter[str] = field(default_factory=Counter)  # what the lines were understood as

    def as_json(self) -> dict[str, Any]:
        return {
            "lines": self.lines,
            "kept": self.kept,
            "rejected": dict(sorted(self.rejected.items())),
            "dropped_turns": dict(sorted(self.dropped.items())),
            "formats": dict(sorted(self.formats.items())),
        }


@dataclass(slots=True)
class Collected:
    """What all files hold. `counts` goes with the files; `faults` are files that cannot be used at all."""

    scenes: list[Scene] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    counts: list[FileCounts] = field(default_factory=list)
    faults: list[InputError] = field(default_factory=list)

    def total(self) -> FileCounts:
        whole = FileCounts()
        for counts in self.counts:
            whole.lines += counts.lines
            whole.kept += counts.kept
            whole.rejected += counts.rejected
            whole.dropped += counts.dropped
            whole.formats += counts.formats
        return whole


def dialogue_files(run: Run) -> list[DialogueFile]:
    """The files that a run's cast names: those of each character, then those of several characters."""
    own = [DialogueFile(name, run.dialogue_path(name), c.id) for c in run.cast for name in c.dialogues]
    return own + [DialogueFile(name, run.dialogue_path(name)) for name in run.cast.dialogues]


def collect(files: Sequence[DialogueFile], cast: Cast | None) -> Collected:
    """Every scene of the files, each once and with an id of its own, and every line that is not used.

    A scene without an id is called FILE-LINE; ids that files give go first, so that such a name never takes one.
    """
    found = Collected()
    first_with: dict[str, str] = {}  # content -> where it stood first
    given_ids: dict[str, str] = {}
    stems: list[str] = []  # of the file of each scene
    for file in files:
        counts = FileCounts()
        found.counts.append(counts)
        try:
            for line in read_lines(file.path, cast, file.owner, file.name):
                counts.lines += 1
                if line.kind:
                    counts.formats[line.kind] += 1
                result = line.result
                if isinstance(result, Scene):
                    result = _repeated(result, line.text, first_with, given_ids) or result
                if isinstance(result, Rejected):
                    counts.rejected[result.reason] += 1
                    found.rejected.append(result)
                    continue
                counts.kept += 1
                counts.dropped += line.dropped
                counts.dropped["after_last_reply"] += _unanswered(result, cast)
                found.scenes.append(result)
                stems.append(file.path.stem)
        except InputError as error:
            found.faults.append(error)
        counts.dropped += Counter()  # forget kinds that were not met
    found.scenes = _with_ids(found.scenes, stems, set(given_ids))
    return found


def _repeated(scene: Scene, text: str, first_with: dict[str, str], given_ids: dict[str, str]) -> Rejected | None:
    """Why this scene is one too many, or None; then it is remembered."""
    content = _content(scene)
    if content in first_with:
        return Rejected(scene.source, "duplicate", f"same as {first_with[content]}", text[:SHOWN_TEXT])
    if scene.id and scene.id in given_ids:
        return Rejected(
            scene.source, "duplicate-id", f"{scene.id!r} is the id of {given_ids[scene.id]}", text[:SHOWN_TEXT]
        )
    first_with[content] = scene.source
    if scene.id:
        given_ids[scene.id] = scene.source
    return None


def _content(scene: Scene) -> str:
    """A hash of all that a view of the scene shows: participants in any order, adjacent lines of a speaker as one."""
    turns: list[list[Any]] = []
    for turn in scene.turns:
        if turns and not turn.enters and turns[-1][:2] == [turn.speaker, False]:
            turns[-1][2] += "\n" + turn.text
        else:
            turns.append([turn.speaker, turn.enters, turn.text])
    return fingerprint([sorted(scene.participants), scene.scenario, turns])


def _unanswered(scene: Scene, cast: Cast | None) -> int:
    """Lines after the last one of any character: no view shows them, as there is no reply to learn after them."""
    if cast is None:
        return 0
    ids = {character.id for character in cast}
    count = 0
    for turn in reversed(scene.turns):
        if turn.speaker in ids and not turn.enters:
            break
        count += not turn.enters
    return count


def _with_ids(scenes: Sequence[Scene], stems: Sequence[str], taken: set[str]) -> list[Scene]:
    """The scenes, those without an id named FILE-LINE (FILE-LINE.2 where that is taken)."""
    named: list[Scene] = []
    for scene, stem in zip(scenes, stems, strict=True):
        if not scene.id:
            base = scene_id = f"{stem}-{scene.source.rpartition(':')[2].replace('#', '.')}"
            count = 1
            while scene_id in taken:
                count += 1
                scene_id = f"{base}.{count}"
            taken.add(scene_id)
            scene = replace(scene, id=scene_id)
        named.append(scene)
    return named
