"""A base model from a hub into the cache: what to take, enough space, all files at once, made ready, recorded.

    folder = pull_from_hub(parse_wanted("internlm2-chat-7b"), HuggingFace(), None, report)

Between `pull.py`, which knows what a name means, and the clients of the hubs. A download lies under the hash of its
content until all is there, so that nothing is fetched twice; the base folder then appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrp.errors import SetupError, need_extra
from mrp.files import disk_error, folder_lock, need_space, read_json, settle_folder, size_text
from mrp.models.bases import cache_folder, is_internlm2, whole_record
from mrp.models.hub_bases import Wanted
from mrp.models.hub_files import (
    BrokenError,
    Chosen,
    Hub,
    Listing,
    RemoteFile,
    WrongHashError,
    choose_files,
    shards_of,
)
from mrp.models.pull_ready import assemble
from mrp.report import Reporter

WORKERS = 4  # files at once
WAITS_S = (1.0, 3.0, 10.0, 30.0)  # before each new try after a broken connection; progress starts the row anew
TOLD_FROM_S = 3.0  # shorter waits are not worth a line
LONGEST_WAIT_S = 300.0  # a hub that asks for more is left alone
SPARE_BYTES = 1 << 26  # configs, records, file systems' own needs
CONVERSIONS = {"bin": ("torch",), "gguf": ("torch", "transformers", "accelerate", "gguf"), "internlm2": ("torch",)}


def pull_from_hub(wanted: Wanted, hub: Hub, revision: str | None, report: Reporter) -> Path:
    """The base folder of `wanted`, fetched from `hub` unless this very commit is there.

    Raises `InputError` for what the hub does not have or what is no base model, `SetupError` for network, disk and
    permissions, `UnreachableError` where the hub cannot be reached; then the cache holds what it held before, and
    downloads to go on with.
    """
    folder = cache_folder() / "bases" / wanted.folder_name
    repo = wanted.repos[hub.source]
    with report.waiting(f"asking {hub.source} for {repo}"):
        listing = patiently(lambda: hub.look(repo, revision), wanted.name, report)
    record = whole_record(folder)
    if record and (record.get("source"), record.get("repo")) == (hub.source, listing.repo):
        if record.get("commit") == listing.commit:
            report.line(f"{wanted.name}: {listing.where} is here already")
            return folder
        report.line(f"{wanted.name}: commit {str(record.get('commit'))[:12]} is here, fetching {listing.commit[:12]}")
    downloads = cache_folder() / "downloads" / wanted.folder_name
    with folder_lock(downloads):
        settle_folder(folder)
        download = Download(hub, listing, downloads, report)
        chosen = download.run(wanted)
        assemble(listing, chosen, download.places(chosen.files), folder, downloads, wanted, report)
        _empty(downloads)
    return folder


def _empty(downloads: Path) -> None:
    """Take away what the finished base no longer needs (not the lock, which is held)."""
    for path in downloads.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def patiently(call: Any, what: str, report: Reporter) -> Any:
    """`call()`, again after a while where the hub is busy or the connection breaks; `SetupError` if it stays so."""
    for wait in (*WAITS_S, None):
        try:
            return call()
        except BrokenError as error:
            time.sleep(_wait_of(error, wait, f"no answer about {what}", what, report))
    raise AssertionError("the last turn returns or raises")


def _wait_of(error: BrokenError, wait: float | None, what: str, where: str, report: Reporter) -> float:
    """How long to wait before another try: as long as the hub says, within reason; `SetupError` after the last."""
    if wait is None or (error.wait_s or 0.0) > LONGEST_WAIT_S:
        asked = f" and asks to wait {error.wait_s:.0f} s" if error.wait_s else ""
        fix = "run the command again later: it goes on from there"
        raise SetupError(f"{what}: {error}{asked}", where, fix) from error
    chosen = wait if error.wait_s is None else error.wait_s
    if chosen >= TOLD_FROM_S:
        report.line(f"{what}: {error}; trying again in {chosen:.0f} s")
    return chosen


class _StopError(BaseException):
    """Ends a worker between two pieces, past everything that would try again."""


@dataclass
class Download:
    """The files of one listing into `downloads`, several at once."""

    hub: Hub
    listing: Listing
    downloads: Path
    report: Reporter
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, wanted: Wanted) -> Chosen:
        """Everything of a base model: the small files, which say what else is needed, then the weights."""
        chosen = choose_files(self.listing, wanted.file)
        self._say(wanted, chosen)
        self._need_space(chosen, twice=chosen.kind != "safetensors")
        self._need_packages(chosen.kind)
        self.fetch(chosen.small, "downloading configs")
        if chosen.index:
            index = next(file for file in chosen.small if file.path == chosen.index)
            weights = shards_of(chosen, read_json(self.place(index)), self.listing)
            chosen = Chosen(chosen.kind, chosen.small, weights, chosen.index)
        if any(file.path == "config.json" and is_internlm2(self.place(file).parent) for file in chosen.small):
            self._need_packages("internlm2")
            self._need_space(chosen, twice=True)
        self.fetch(chosen.weights, f"downloading {wanted.folder_name}")
        return chosen

    def _say(self, wanted: Wanted, chosen: Chosen) -> None:
        total = sum(file.nbytes for file in chosen.files)
        report, listing, base = self.report, self.listing, wanted.base
        if base:
            report.line(f"{base.name}: {base.about}")
        report.line(f"{listing.where}: {len(chosen.files)} of {len(listing.files)} files, {size_text(total)}")
        licence = base.license if base else listing.license
        gate = "; on Hugging Face it must be accepted first" if base and base.is_gated else ""
        report.line(f"licence: {licence or 'not stated by the hub; see README.md of the model'}{gate}")
        if any(file.sha256 is None and file.git_sha1 is None for file in chosen.weights):
            report.warn("the hub lists no hash of the weights: only their length can be checked")

    def _need_space(self, chosen: Chosen, twice: bool) -> None:
        """Weights that are converted are there twice for a while; packed ones grow to four times."""
        weights = sum(file.nbytes for file in chosen.weights)
        grown = weights * (4 if chosen.kind == "gguf" else 1) if twice else 0
        needed = sum(file.nbytes - self._here(file) for file in chosen.files) + grown + SPARE_BYTES
        need_space(self.downloads, needed, f"pulling {self.listing.repo}")

    def _need_packages(self, kind: str) -> None:
        for package in CONVERSIONS.get(kind, ()):
            if importlib.util.find_spec(package) is None:
                raise need_extra("train", package)

    # -- files ---------------------------------------------------------------------------------------------------

    def place(self, file: RemoteFile) -> Path:
        """Where a file lies once it is whole and its hash was checked."""
        return self.downloads / file.key(self.listing.commit)[:40] / file.path

    def places(self, files: Sequence[RemoteFile]) -> dict[str, Path]:
        return {file.path: self.place(file) for file in files}

    def _is_here(self, file: RemoteFile) -> bool:
        place = self.place(file)
        return place.is_file() and place.stat().st_size == file.nbytes

    def _here(self, file: RemoteFile) -> int:
        """How many bytes of it are here."""
        place = self.place(file)
        part = place.with_name(place.name + self.hub.part_ending)
        return max((path.stat().st_size for path in (place, part) if path.is_file()), default=0)

    def fetch(self, files: Sequence[RemoteFile], label: str) -> None:
        """Have all of `files` in their places. The first that fails stops the others; what came of them is kept."""
        missing = sorted((file for file in files if not self._is_here(file)), key=lambda file: -file.nbytes)
        if not missing:
            return
        here = sum(self._here(file) for file in missing)
        total, done = sum(file.nbytes for file in missing) - here, 0
        label += f" ({size_text(here)} already here)" if here else ""
        with self.report.progress(label, total, "B") as show:

            def tell(nbytes: int) -> None:
                nonlocal done
                if self.stop.is_set():
                    raise _StopError
                with self.lock:
                    done += nbytes
                    show(max(done, 0))

            self._all_at_once(missing, tell)

    def _all_at_once(self, files: Sequence[RemoteFile], tell: Any) -> None:
        pool = ThreadPoolExecutor(min(WORKERS, len(files)))
        try:
            for future in as_completed([pool.submit(self._fetch, file, tell) for file in files]):
                future.result()
        except BaseException:
            self.stop.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, file: RemoteFile, tell: Any) -> None:
        place = self.place(file)
        where = f"{self.listing.where}: {file.path}"
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            for chances in (1, 0):
                try:
                    return self._fetch_on(file, place, where, tell)
                except WrongHashError as error:
                    self._forget(place)
                    if not chances:
                        fix = (
                            "try again later, or from another source; if it stays so, a proxy on the way changes files"
                        )
                        raise SetupError(
                            f"{file.path} is not the file that the hub lists: {error}", where, fix
                        ) from None
                    self.report.warn(f"{file.path} came with a wrong hash ({error}); fetching it anew")
        except OSError as error:
            raise disk_error(error, place) from error

    def _fetch_on(self, file: RemoteFile, place: Path, where: str, tell: Any) -> None:
        """`hub.fetch` with as many tries as `WAITS_S` allows without progress."""
        waits, most = list(WAITS_S), self._here(file)
        while True:
            try:
                return self.hub.fetch(self.listing, file, place, tell)
            except BrokenError as error:
                if self._here(file) > most:
                    waits, most = list(WAITS_S), self._here(file)
                here = f"{size_text(self._here(file))} of {size_text(file.nbytes)}"
                wait = waits.pop(0) if waits else None
                what = f"the download of {file.path} stopped at {here}"
                if self.stop.wait(_wait_of(error, wait, what, where, self.report)):
                    raise _StopError from None

    def _forget(self, place: Path) -> None:
        for path in (place, place.with_name(place.name + self.hub.part_ending)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
