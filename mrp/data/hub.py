"""Datasets of the Hugging Face hub as dialogue files: `hf:owner/name`, `hf:owner/name@revision/path-or-glob`.

    for name, path in fetch_dataset("hf:Neph0s/CoSER@main/full/*.json", report):
        name, path                       # "hf:Neph0s/CoSER@8f1c.../full/Othello.json", a file in the hub's own cache

First in the flow, before `detect.py`. The hub's own client downloads (it honours HF_ENDPOINT, HF_HOME and HF_TOKEN),
pinned to the commit that the revision is now. What a name stood for is written down in our cache, so it works offline
later.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mrp.data.detect import ending
from mrp.errors import InputError, MrpError, SetupError
from mrp.files import fingerprint, read_json, size_text, write_json
from mrp.hub_errors import first_line, refusals_told, status_of
from mrp.report import SILENT, Reporter

PREFIX = "hf:"
ENDINGS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")  # of several kinds in a set, the first is read
NO_DATA = ("dataset_infos.json", "dataset_info.json", "state.json", "config.json", "package.json")
HELD_BACK = {"test", "tests", "valid", "validation", "val", "dev", "eval", "evaluation"}

_SPEC = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<pattern>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Spec:
    """What `hf:...` names."""

    text: str
    repo: str
    revision: str | None
    pattern: str | None

    @property
    def is_pinned(self) -> bool:
        return bool(self.revision and _COMMIT.fullmatch(self.revision))


def local_files(names: Sequence[str | Path], report: Reporter = SILENT) -> list[tuple[str, Path]]:
    """(name, path) of every file that `names` are: paths as they are, datasets of the hub fetched."""
    found: list[tuple[str, Path]] = []
    for name in names:
        found += fetch_dataset(str(name), report) if str(name).startswith(PREFIX) else [(str(name), Path(name))]
    return found


def parse_spec(text: str) -> Spec:
    """Raises `InputError` for what is no `hf:owner/name`, with an optional `@revision` and `/path-or-glob`."""
    found = _SPEC.fullmatch(text)
    if not found:
        raise InputError(
            f"{text!r} is no dataset of the hub", text, "write hf:owner/name or hf:owner/name@revision/path"
        )
    revision = unquote(found["revision"]) if found["revision"] else None
    return Spec(text, found["repo"], revision, found["pattern"])


def known_files(text: str) -> list[tuple[str, Path]]:
    """The files that `fetch_dataset` gave last, without a look at the network; [] if it was never called for this."""
    return _known(parse_spec(text)) or []


def fetch_dataset(text: str, report: Reporter = SILENT) -> list[tuple[str, Path]]:
    """The data files that `text` names, downloaded; each with a name that tells the commit.

    Raises `InputError` where there is no such dataset, revision or file, `SetupError` where the hub cannot be reached
    or does not let us in.
    """
    spec = parse_spec(text)
    known = _known(spec)
    if known and spec.is_pinned:
        return known
    try:
        return _fetch(spec, report)
    except _OfflineError as error:
        if known:
            report.warn(f"{spec.text}: the hub cannot be reached; taking the files of the last download")
            return known
        fix = "connect to the network (or set HF_ENDPOINT to a mirror), or download its files and name them"
        raise SetupError(f"the hub cannot be reached: {error}", spec.text, fix) from None


def choose_files(names: Sequence[str], pattern: str | None = None) -> list[str]:
    """Which files of a dataset hold its dialogues: those that `pattern` names (a path, a folder or a glob); else those
    of one kind, and of the split `train` where splits are named."""
    data = [name for name in sorted(names) if _is_data(name)]
    if pattern:
        folder = pattern.rstrip("/") + "/"
        return [n for n in sorted(names) if n == pattern] or [
            name for name in data if name.startswith(folder) or fnmatch.fnmatchcase(name, pattern)
        ]
    for kind in ENDINGS:
        of_kind = [name for name in data if ending(Path(name)) == kind]
        train = [name for name in of_kind if "train" in _words(name)]
        if chosen := train or [name for name in of_kind if not _words(name) & HELD_BACK] or of_kind:
            return chosen
    return []


def _is_data(name: str) -> bool:
    path = Path(name)
    is_hidden = any(part.startswith(".") for part in path.parts)
    return ending(path) in ENDINGS and path.name not in NO_DATA and not is_hidden


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.lower()))


# --- Talking with the hub ---------------------------------------------------------------------------------------------


class _OfflineError(Exception):
    """The hub cannot be reached; never leaves this module."""


def _fetch(spec: Spec, report: Reporter) -> list[tuple[str, Path]]:
    from huggingface_hub import HfApi, hf_hub_download

    endpoint = os.environ.get("HF_ENDPOINT") or None
    with _told(spec):
        info = HfApi(endpoint=endpoint).dataset_info(spec.repo, revision=spec.revision, files_metadata=True)
    lengths = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    chosen = choose_files(list(lengths), spec.pattern)
    commit = str(info.sha)
    if not chosen:
        what = f"no file of {spec.repo} matches {spec.pattern!r}" if spec.pattern else f"{spec.repo} has no data files"
        shown = ", ".join(sorted(lengths)[:10]) or "nothing"
        raise InputError(what, spec.text, f"name one of its files (hf:{spec.repo}/PATH); there are: {shown}")
    total = sum(lengths[name] for name in chosen)
    report.line(f"{spec.repo}@{commit[:12]}: {len(chosen)} of {len(lengths)} files, {size_text(total)}")
    found: list[tuple[str, Path]] = []
    done = 0.0
    with report.progress(f"downloading {spec.repo}", total, "B") as update:
        for name in chosen:
            with _told(spec):
                path = hf_hub_download(
                    spec.repo,
                    name,
                    repo_type="dataset",
                    revision=commit,
                    endpoint=endpoint,
                    tqdm_class=_bar(lambda part, before=done: update(before + part)),
                )
            done += lengths[name]
            update(done)
            found.append((f"{PREFIX}{spec.repo}@{commit}/{name}", Path(path)))
    _remember(spec, found)
    return found


def _bar(update: Any) -> Any:
    """A progress bar for the hub's client that shows nothing itself."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options["disable"] = True
            options.pop("name", None)
            super().__init__(*arguments, **options)
            self._done = float(options.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            self._done += n or 0
            update(self._done)

    return Bar


@contextmanager
def _told(spec: Spec) -> Iterator[None]:
    """What the hub's client raises, in our words."""
    from huggingface_hub import errors

    # Its client has changed its own HTTP library before; whatever it is, this is that library's base of all errors.
    transport_error: type[Exception] = errors.HTTPError
    try:
        page = f"https://huggingface.co/datasets/{spec.repo}"
        with refusals_told("dataset", spec.repo, spec.revision, spec.text, page):
            yield
    except errors.HfHubHTTPError as error:
        raise _http_error(error, spec) from None
    except (errors.LocalEntryNotFoundError, transport_error, ConnectionError, TimeoutError) as error:
        raise _OfflineError(first_line(error)) from None


def _http_error(error: Any, spec: Spec) -> MrpError:
    if status_of(error) == 429:
        fix = "wait some minutes; with a token (`hf auth login`) more requests are allowed"
        return SetupError("the hub asks to wait: too many requests (429)", spec.text, fix)
    return SetupError(f"the hub answers {status_of(error)}: {first_line(error)}", spec.text, "try again later")


# --- What was downloaded before ---------------------------------------------------------------------------------------


def _record_path(spec: Spec) -> Path:
    from mrp.models.bases import cache_folder

    key = fingerprint([os.environ.get("HF_ENDPOINT") or "", spec.repo, spec.revision, spec.pattern])
    return cache_folder() / "datasets" / f"{key[:24]}.json"


def _known(spec: Spec) -> list[tuple[str, Path]]:
    """The files of the last download of this name, if all are still there."""
    try:
        found = [(str(name), Path(path)) for name, path in read_json(_record_path(spec))["files"]]
    except (MrpError, OSError, KeyError, TypeError, ValueError):
        return []
    return found if all(path.is_file() for _, path in found) else []


def _remember(spec: Spec, found: Sequence[tuple[str, Path]]) -> None:
    write_json(_record_path(spec), {"spec": spec.text, "files": [[name, str(path)] for name, path in found]})
