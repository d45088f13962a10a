"""Dialogues into samples: `train.jsonl`, `held-out.jsonl`, `rejected.jsonl` and `manifest.json` in a run's data folder.

    manifest = build_data(load_run(Path("mrp.yaml")))
    manifest["totals"]["lines"], manifest["characters"]["wukong"]["train"]["samples"]

Same inputs, same bytes: no date, no absolute path. Chunks of the files become parts (`gather.py`), it is decided what
is used (`decide.py`), and lines are put together (`assemble.py`). The whole set is written beside and moved into place
at once. The caller holds the run folder's lock (`files.folder_lock`).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrp.config import Run, keep_run
from mrp.data.finish import finish
from mrp.data.gather import gather, part_name
from mrp.data.manifest import BUILD_VERSION, MANIFEST
from mrp.data.part import PartMaker
from mrp.data.sources import BASE_REPLIES, DialogueFile, dialogue_files, fetch_datasets, scan
from mrp.errors import InputError, MrpError, raise_all
from mrp.files import fingerprint, folder_lock, need_space, read_json, replacing_folder, sha256_file, write_json
from mrp.report import SILENT, Reporter

PARTS = ".parts"
SHARDS, SHARD = "shards", "shard.json"
SPACE = 3.0  # parts and results, for each byte read


def build_command(run: Run, shard: str | None, report: Reporter) -> dict[str, Any]:
    """`mrp data build`: all of it, or the shard "I/N"."""
    if shard is None:
        with folder_lock(run.folder):
            manifest = build_data(run, report)
            keep_run(run)
        return manifest
    number, mark, count = shard.partition("/")
    if not (mark and number.isdecimal() and count.isdecimal()):
        raise InputError(f"a shard is I/N, not {shard!r}", "--shard", "the second of eight is --shard 2/8")
    return build_shard(run, int(number), int(count), report)  # no lock: shards are built side by side


def merge_command(run: Run, report: Reporter) -> dict[str, Any]:
    """`mrp data merge`."""
    with folder_lock(run.folder):
        manifest = merge_shards(run, report)
        keep_run(run)
    return manifest


def build_data(run: Run, report: Reporter = SILENT) -> dict[str, Any]:
    """Build the data of a run and give back its manifest; without work if nothing that matters has changed.

    Raises `InputError` for files that cannot be read, and naming each character without a usable line; the data built
    before stays as it was.
    """
    files = _files(run, report)
    scanned = scan(files, report)
    mark = _fingerprint(run, files, scanned.hashes)
    manifest = _intact_manifest(run.data, mark)
    if manifest is not None:
        return manifest
    need_space(run.data, int(scanned.size_bytes * SPACE), "building the data")
    maker = PartMaker(files, run.cast, run.config.data, run.config.seed)
    with replacing_folder(run.data) as folder:
        parts = gather(maker, scanned, range(len(scanned.chunks)), folder / PARTS, report)
        manifest = finish(run, maker, scanned, parts, folder, mark, report)
        shutil.rmtree(folder / PARTS)
    return manifest


def build_shard(run: Run, number: int, count: int, report: Reporter = SILENT) -> dict[str, Any]:
    """Read shard `number` (from 1) of `count`: every count-th chunk of the files, into `shards/` of the run folder.

    Any machine that sees the same files may do it; `merge_shards` makes of all shards what `build_data` makes alone.
    """
    if not 1 <= number <= count:
        raise InputError(f"there is no shard {number} of {count}", "--shard", "write I/N, I from 1 to N: --shard 2/8")
    files = _files(run, report)
    scanned = scan(files, report)
    chosen = range(number - 1, len(scanned.chunks), count)
    maker = PartMaker(files, run.cast, run.config.data, run.config.seed)
    about = {
        "shard": number,
        "of": count,
        "chunks": list(chosen),
        "fingerprint": _fingerprint(run, files, scanned.hashes),
    }
    with replacing_folder(shard_folder(run, number, count)) as folder:
        gather(maker, scanned, chosen, folder, report)
        write_json(folder / SHARD, about)
    report.line(f"shard {number} of {count}: {len(chosen)} of {len(scanned.chunks)} chunks read")
    return about | {"folder": str(shard_folder(run, number, count))}


def merge_shards(run: Run, report: Reporter = SILENT) -> dict[str, Any]:
    """Put the shards in the run folder together; gives back the manifest, the same as that of one build.

    Raises `InputError` naming every shard that is missing, or was made of other files or options.
    """
    files = _files(run, report)
    scanned = scan(files, report)
    mark = _fingerprint(run, files, scanned.hashes)
    parts = _parts_of_shards(run, mark)
    maker = PartMaker(files, run.cast, run.config.data, run.config.seed)
    with replacing_folder(run.data) as folder:
        (folder / PARTS).mkdir()
        manifest = finish(run, maker, scanned, parts, folder, mark, report)
        shutil.rmtree(folder / PARTS)
    shutil.rmtree(run.folder / SHARDS, ignore_errors=True)
    return manifest


def shard_folder(run: Run, number: int, count: int) -> Path:
    return run.folder / SHARDS / f"{number}-of-{count}"


def _parts_of_shards(run: Run, mark: str) -> list[Path]:
    """The folders of all parts in the order of the chunks."""
    again = f"make it: `mrp data build {run.path} --shard I/N`"
    found = {path.parent: read_json(path) for path in sorted((run.folder / SHARDS).glob(f"*/{SHARD}"))}
    counts = sorted({about["of"] for about in found.values()})
    if len(counts) != 1:
        what = f"shards of {' and of '.join(map(str, counts))} lie here" if counts else "no shard was built yet"
        raise InputError(what, str(run.folder / SHARDS), "build all shards of one number, and delete others")
    faults: list[MrpError] = []
    for number in range(1, counts[0] + 1):
        place = shard_folder(run, number, counts[0])
        if place not in found:
            faults.append(InputError(f"shard {number} of {counts[0]} is missing", str(place), again))
        elif found[place]["fingerprint"] != mark:
            what = f"shard {number} of {counts[0]} was made of other files, options or cast"
            faults.append(InputError(what, str(place), again))
    raise_all("shards", faults)
    places = {number: place for place, about in found.items() for number in about["chunks"]}
    return [places[number] / part_name(number) for number in sorted(places)]


def is_built(run: Run) -> bool:
    """True if the data in the run folder is what `build_data` would make: it would only give back the manifest."""
    try:
        return _intact_manifest(run.data, data_fingerprint(run)) is not None
    except InputError:  # a file is not there (yet): `build_data` fetches what can be fetched, and says what is missing
        return False


def _files(run: Run, report: Reporter) -> list[DialogueFile]:
    """The files of a run, once all are there: datasets of the hub, and the base's own answers to plain prompts."""
    fetch_datasets(run, report)
    files = dialogue_files(run)
    if any(file.name == BASE_REPLIES for file in files):
        from mrp.data.mix import write_base_replies
        from mrp.models.bases import cache_folder, find_base

        base = find_base(run.config.base, run.path.parent)
        path = run.folder / BASE_REPLIES
        write_base_replies(base, run.cast.language, cache_folder() / "own-replies", path, report)
    return files


def data_fingerprint(run: Run) -> str:
    """A hash of everything that the samples depend on, without building them: file contents, names, options, seed.

    Where the files lie does not count: a run file and the copy kept in its run folder have one fingerprint.
    """
    files = dialogue_files(run)
    return _fingerprint(run, files, scan(files).hashes)


def _fingerprint(run: Run, files: Sequence[DialogueFile], hashes: Sequence[str]) -> str:
    options = run.config.data.model_dump(exclude={"mix_files"})
    return fingerprint(
        {
            "build": BUILD_VERSION,
            "seed": run.config.seed,
            "options": options,
            "characters": [[*c.names, run.cast.persona(c.id)] for c in run.cast],
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
