"""What an evaluation measures with: a run, its lines on both sides of the split, and the voices learnt from them.

    material = read_material(Path("mrp.yaml"), {}, full=False)
    material.held_by["wukong"]                # his held-out lines

Everything that can be wrong with a run is told here, before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mrp.cast import Cast
from mrp.config import KEPT_RUN_FILE, RUN_FILE, Run, load_run
from mrp.data.identity import Language
from mrp.data.manifest import HELD_OUT, MANIFEST, TRAIN
from mrp.errors import InputError
from mrp.evaluate.counts import Counts
from mrp.evaluate.lines import Line, by_character
from mrp.evaluate.voice import Said, Voices
from mrp.files import read_json, sha256_file


@dataclass(frozen=True)
class Material:
    """A run that can be measured, and how much of it is. `voices`: the classifier of its training lines."""

    run: Run
    counts: Counts
    seed: int
    languages: tuple[Language, ...]  # of the questions about who somebody is
    train: list[Line]
    held: list[Line]
    voices: Voices

    @property
    def cast(self) -> Cast:
        return self.run.cast

    @property
    def ids(self) -> list[str]:
        return [c.id for c in self.run.cast]

    @property
    def held_by(self) -> dict[str, list[Line]]:
        return by_character(self.held, self.cast)

    @property
    def real(self) -> list[Said]:
        """The real held-out lines, to be judged as generated ones are."""
        return [Said(line.character, line.text, line.scene) for line in self.held]


def run_of(path: Path, flags: dict[str, str]) -> Run:
    """The run at `path`; `InputError` for a model's folder, which has no held-out lines."""
    is_run = path.is_file() or (path / KEPT_RUN_FILE).exists() or (path / RUN_FILE).exists()
    if path.is_dir() and not is_run and any(path.glob("*.safetensors")):
        what = "this is a model's folder, and an evaluation needs the held-out lines of its run"
        raise InputError(what, str(path), "name the run file, or the run folder (`mrp eval RUN`)")
    return load_run(path, flags)


def read_material(run: Run, counts: Counts, seed: int, languages: Sequence[Language]) -> Material:
    """Read and check a run's data.

    Raises `InputError` for one character alone, for data that is not built or not what was trained, and where nothing
    is held out.
    """
    from mrp.evaluate.lines import read_lines

    _check(run)
    train, held = (read_lines(run.data / name, run.cast) for name in (TRAIN, HELD_OUT))
    if not held:
        what = "no line of any character is held out, so there is nothing to measure with"
        fix = "set data.held_out: 0.1 (or add dialogues), then build and train anew: `mrp run RUN`"
        raise InputError(what, str(run.data / HELD_OUT), fix)
    return Material(run, counts, seed, tuple(languages), train, held, Voices(train, run.cast, seed))


def _check(run: Run) -> None:
    if len(run.cast.characters) < 2:
        what = "the cast has one character, and whom the model plays is told from somebody else"
        fix = "add a second character; the held-out loss of one stands in summary.json (`mrp run`)"
        raise InputError(what, str(run.cast_path), fix)
    if not (run.data / MANIFEST).is_file():
        raise InputError("no data is built here", str(run.data), f"mrp run {run.name_again}")
    trained = read_json(run.record).get("data", {}) if run.record.is_file() else {}
    for name in (TRAIN, HELD_OUT):
        if name in trained and trained[name] != sha256_file(run.data / name):
            what = f"{name} is not what the model was trained with: lines held out now may have been trained"
            raise InputError(what, str(run.data / name), f"mrp train {run.name_again} --restart")
