"""Dialogues into samples: `train.jsonl`, `held-out.jsonl`, `rejected.jsonl` and `manifest.json` in a run's data folder.

    manifest = build_data(load_run(Path("mrp.yaml")))
    manifest["totals"]["lines"], manifest["characters"]["wukong"]["train"]["samples"]

Same inputs, same bytes: no date, no absolute path. The whole set is written beside and moved into place at once. The
caller holds the run folder's lock (`files.folder_lock`).
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mrp
from mrp.config import Run
from mrp.data.collect import Collected, DialogueFile, collect, dialogue_files
from mrp.data.samples import Sample, in_order
from mrp.data.split import MIN_SCENES, held_out_scenes
from mrp.dialogue import Scene
from mrp.errors import InputError, MrpError, raise_all
from mrp.files import fingerprint, read_json, replacing_folder, sha256_file, write_json, write_jsonl
from mrp.report import SILENT, Reporter

TRAIN, HELD_OUT, REJECTED, MANIFEST = "train.jsonl", "held-out.jsonl", "rejected.jsonl", "manifest.json"
SHOWN_REJECTED = 5  # of the rejected lines, as many are named; all are in rejected.jsonl
BUILD_VERSION = 2  # one more whenever the same inputs give other samples


def build_data(run: Run, report: Reporter = SILENT) -> dict[str, Any]:
    """Build the data of a run and give back its manifest; without work if nothing that matters has changed.

    Raises `InputError` for files that cannot be read, and naming each character without a usable line; the data built
    before stays as it was.
    """
    files = dialogue_files(run)
    hashes = _hashes(files)
    mark = _fingerprint(run, files, hashes)
    manifest = _intact_manifest(run.data, mark)
    if manifest is not None:
        return manifest
    found = collect(files, run.cast)
    raise_all(f"{run.cast_path.name}: dialogue files", found.faults)
    raise_all(run.cast_path.name, silent_characters(run, found.scenes))
    samples = [sample_of(scene, c.id) for c in run.cast for scene in found.scenes if c.id in scene.speakers()]
    held = _held_out(run, found.scenes)
    sides = {"train": [s for s in samples if s.scene not in held], "held_out": [s for s in samples if s.scene in held]}
    order, seed = run.config.data.order, run.config.seed
    with replacing_folder(run.data) as folder:
        write_jsonl(folder / TRAIN, (s.as_json() for s in in_order(sides["train"], order, seed, 0)))
        write_jsonl(folder / HELD_OUT, (s.as_json() for s in in_order(sides["held_out"], order, seed, 0)))
        write_jsonl(folder / REJECTED, (r.as_json() for r in found.rejected))
        manifest = _manifest(run, files, hashes, found, sides)
        manifest["outputs"] = {name: {"sha256": sha256_file(folder / name)} for name in (TRAIN, HELD_OUT, REJECTED)}
        manifest["fingerprint"] = mark
        write_json(folder / MANIFEST, manifest)
    _tell(run, manifest, found, report)
    return manifest


def is_built(run: Run) -> bool:
    """True if the data in the run folder is what `build_data` would make: it would only give back the manifest."""
    return _intact_manifest(run.data, data_fingerprint(run)) is not None


def data_fingerprint(run: Run) -> str:
    """A hash of everything that the samples depend on, without building them: file contents, names, options, seed.

    Where the files lie does not count: a run file and the copy kept in its run folder have one fingerprint.
    """
    files = dialogue_files(run)
    return _fingerprint(run, files, _hashes(files))


def sample_of(scene: Scene, character: str) -> Sample:
    """The scene as `character`'s sample: up to its last own line, its own lines learnt."""
    own = [turn.speaker == character and not turn.enters for turn in scene.turns]
    length = len(own) - own[::-1].index(True)
    return Sample(
        id=f"{scene.id}@{character}",
        character=character,
        scene=scene.id,
        participants=scene.participants,
        turns=scene.turns[:length],
        loss=tuple(own[:length]),
        source=scene.source,
        scenario=scene.scenario,
    )


def silent_characters(run: Run, scenes: Iterable[Scene]) -> list[MrpError]:
    """A fault for each character of the cast who says nothing in any of the scenes."""
    heard = {speaker for scene in scenes for speaker in scene.speakers()}
    fix = "list files with its lines under `dialogues:` (`mrp data check` shows what was rejected), or take it out"
    return [
        InputError(f"the character {c.id!r} has no usable line", f"{run.cast_path}, {c.id}", fix)
        for c in run.cast
        if c.id not in heard
    ]


def _hashes(files: Sequence[DialogueFile]) -> list[str]:
    """The SHA-256 of each file; `InputError` naming every file that cannot be read."""
    hashes: list[str] = []
    faults: list[MrpError] = []
    for file in files:
        try:
            hashes.append(sha256_file(file.path))
        except FileNotFoundError:
            faults.append(InputError(f"no such file: {file.name}", str(file.path), "check the path in `dialogues:`"))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            faults.append(InputError(f"cannot read {file.name}: {reason}", str(file.path), "name a readable file"))
    raise_all("dialogue files", faults)
    return hashes


def _fingerprint(run: Run, files: Sequence[DialogueFile], hashes: Sequence[str]) -> str:
    return fingerprint(
        {
            "build": BUILD_VERSION,
            "seed": run.config.seed,
            "options": run.config.data.model_dump(),
            "characters": [list(c.names) for c in run.cast],
            # the name without its folder: ids are made of it, and a moved file is still the same data
            "files": [[f.owner, f.path.name, sha] for f, sha in zip(files, hashes, strict=True)],
        }
    )


def _intact_manifest(folder: Path, mark: str) -> dict[str, Any] | None:
    """The manifest in `folder` if it has this fingerprint and the files beside it are as it says, else None."""
    try:
        manifest = read_json(folder / MANIFEST)
        if manifest["fingerprint"] != mark:
            return None
        if any(sha256_file(folder / name) != item["sha256"] for name, item in manifest["outputs"].items()):
            return None
    except (MrpError, OSError, KeyError, TypeError, AttributeError):
        return None  # no data yet, or a damaged set: built anew
    return dict(manifest)


def _held_out(run: Run, scenes: Iterable[Scene]) -> set[str]:
    ids = {c.id for c in run.cast}
    characters_of = {scene.id: [s for s in scene.speakers() if s in ids] for scene in scenes}
    return held_out_scenes(characters_of, run.config.data.held_out, run.config.seed)


def _manifest(
    run: Run, files: Sequence[DialogueFile], hashes: Sequence[str], found: Collected, sides: dict[str, list[Sample]]
) -> dict[str, Any]:
    inputs = [
        {"path": file.name, "character": file.owner, "sha256": sha, **counts.as_json()}
        for file, sha, counts in zip(files, hashes, found.counts, strict=True)
    ]
    characters = {
        c.id: {side: _sizes(s for s in samples if s.character == c.id) for side, samples in sides.items()}
        for c in run.cast
    }
    return {
        "inputs": inputs,
        "totals": found.total().as_json() | {side: _sizes(samples) for side, samples in sides.items()},
        "characters": characters,
        "options": run.config.data.model_dump(),
        "seed": run.config.seed,
        "versions": {"mrp": mrp.__version__, "python": platform.python_version(), "build": BUILD_VERSION},
    }


def _sizes(samples: Iterable[Sample]) -> dict[str, int]:
    """Counts over samples. Turns and their text are those shown; replies are the character's own, which are learnt."""
    count: Counter[str] = Counter(
        dict.fromkeys(("samples", "scenes", "turns", "replies", "turn_characters", "reply_characters"), 0)
    )
    scenes: set[str] = set()
    for sample in samples:
        count["samples"] += 1
        scenes.add(sample.scene)
        for turn, learnt in zip(sample.turns, sample.loss, strict=True):
            if not turn.enters:
                count["turns"] += 1
                count["turn_characters"] += len(turn.text)
                count["replies"] += learnt
                count["reply_characters"] += len(turn.text) * learnt
    count["scenes"] = len(scenes)
    return dict(count)


def _tell(run: Run, manifest: dict[str, Any], found: Collected, report: Reporter) -> None:
    """The result in a few lines: what was kept, what was not and why, and each character's share."""
    totals = manifest["totals"]
    report.line(f"data: {totals['kept']:,} of {totals['lines']:,} lines kept{_counts_text(totals['rejected'], '; ')}")
    for fault in found.rejected[:SHOWN_REJECTED]:
        report.warn(f"{fault.source} is left out: {fault.reason}, {fault.detail}")
    if len(found.rejected) > SHOWN_REJECTED:
        report.warn(f"... and {len(found.rejected) - SHOWN_REJECTED} more lines, all in {run.data / REJECTED}")
    report.line(f"understood as{_counts_text(totals['formats'], ': ')}")
    if totals["dropped_turns"]:
        report.line(f"left out of kept lines{_counts_text(totals['dropped_turns'], ': ')}")
    without: list[str] = []
    for character in run.cast:
        train, held = (manifest["characters"][character.id][side] for side in ("train", "held_out"))
        report.line(
            f"  {character.id}: {train['samples']:,} samples to train, {held['samples']:,} held out,"
            f" {train['replies'] + held['replies']:,} replies"
        )
        if run.config.data.held_out and not held["samples"]:
            without.append(f"{character.id} ({train['scenes']})")
    if without:
        report.warn(
            f"no scene is held out of (scenes in brackets, {MIN_SCENES} are needed): {', '.join(without)};"
            " nothing can be measured on lines of theirs that training has not seen"
        )


def _counts_text(counts: dict[str, int], before: str) -> str:
    return before + ", ".join(f"{kind} {count:,}" for kind, count in counts.items()) if counts else ""
