"""ModelScope, through modelscope-hub: what a repository holds, and its files.

    listing = ModelScope().look("Shanghai_AI_Laboratory/internlm2-chat-7b", None)      # honours MODELSCOPE_ENDPOINT

Its client downloads: it keeps what came of a broken file, goes on there, waits as long as it is told, and checks the
SHA-256 that ModelScope lists for every file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mrp.errors import InputError, SetupError, need_extra
from mrp.models.hub_files import Listing, RemoteFile, Tell, UnreachableError, WrongHashError

DEFAULT_REVISION = "master"


class ModelScope:
    """`Hub` of modelscope.cn, or of what MODELSCOPE_ENDPOINT names."""

    source = "modelscope"
    part_ending = ".incomplete"

    def __init__(self) -> None:
        try:
            from modelscope_hub import HubApi, HubConfig  # type: ignore[import-not-found]
        except ImportError:
            raise need_extra("modelscope", "modelscope-hub") from None
        logging.getLogger("modelscope_hub").setLevel(logging.ERROR)  # its tries are told by ours
        _silence_bars()
        self.api: Any = HubApi(HubConfig())

    def look(self, repo: str, revision: str | None) -> Listing:
        """The repository as `revision` (default: master) is now; its commit is the newest that a file carries.

        Raises `InputError` where there is no such thing, `SetupError` where it is closed to us, `UnreachableError`.
        """
        revision = revision or DEFAULT_REVISION
        with self._told(repo, revision):
            info = self.api.get_repo(repo, "model")
            entries = self.api.legacy.list_repo_files(repo, "model", revision=revision)
        entries = [entry for entry in entries if entry.get("Type", "blob") != "tree"]
        newest: Any = max(entries, key=lambda entry: (entry.get("CommittedDate") or 0, entry["Path"]), default={})
        files = [
            RemoteFile(e["Path"], int(e.get("Size") or 0), (e.get("Sha256") or "").lower() or None) for e in entries
        ]
        commit = str(newest.get("Revision") or revision)
        return Listing(self.source, repo, revision, commit, info.license or None, tuple(files))

    def fetch(self, listing: Listing, file: RemoteFile, place: Path, tell: Tell) -> None:
        """Have `file` at `place`, its hash checked; what an earlier call left beside it is gone on with.

        Raises as `look` does (but `SetupError` for a network that fails), and `WrongHashError`.
        """
        part = place.with_name(place.name + self.part_ending)
        here = part.stat().st_size if part.exists() else 0
        with self._told(listing.repo, listing.revision, file.path):
            self.api.downloader.download_file(
                listing.repo,
                "model",
                file.path,
                revision=listing.revision,
                cache_dir=place.parent.parent,  # for its locks
                local_dir=place.parent,
                expected_sha256=file.sha256,
                file_size=file.nbytes,
                progress_callbacks=[_callback(tell, here)],
            )

    @contextmanager
    def _told(self, repo: str, revision: str, file: str = "") -> Iterator[None]:
        """What the client raises, in our words."""
        from modelscope_hub import errors

        where = f"ms:{repo}@{revision}" + (f"/{file}" if file else "")
        page = f"{self.api.legacy.endpoint}/models/{repo}"
        try:
            yield
        except errors.FileIntegrityError as error:
            raise WrongHashError(_first_line(error)) from None
        except errors.NotExistError as error:
            fix = f"check the spelling, and {page} for its revisions"
            raise InputError(f"no {file or f'model {repo}'} at {revision!r} on ModelScope", where, fix) from error
        except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
            fix = f"accept its terms at {page}, then `ms-hub login`, or set MODELSCOPE_API_TOKEN"
            what = (
                f"ModelScope does not let us read {repo} ({error.status_code}): it is private, or must be applied for"
            )
            raise SetupError(what, where, fix) from None
        except errors.RateLimitError:
            raise SetupError(
                "ModelScope asks to wait: too many requests (429)",
                where,
                "wait some minutes, then run the command again: it goes on from there",
            ) from None
        except errors.NetworkError as error:
            if not file:
                raise UnreachableError(_first_line(error)) from None
            fix = "run the command again when the network is back: it goes on from there"
            raise SetupError(f"the download of {file} stopped: {_first_line(error)}", where, fix) from None
        except errors.HubError as error:
            fix = "try again later: it goes on from there"
            raise SetupError(f"ModelScope: {_first_line(error)}", where, fix) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _callback(tell: Tell, here: int) -> type:
    """A class as the client wants it for progress; it also counts what was there before, which we do not."""
    from modelscope_hub import ProgressCallback

    class Callback(ProgressCallback):  # type: ignore[misc]
        before = here

        def update(self, size: int) -> None:
            known = min(self.before, max(size, 0))
            self.before -= known
            tell(size - known)

        def end(self) -> None:
            pass

    return Callback


def _silence_bars() -> None:
    """The client's own bars, one a file, would cross ours, and it has no switch for them."""
    from modelscope_hub import _download as client

    client.tqdm = _NoBar


class _NoBar(nullcontext[Any]):
    """What the client asks of a bar."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__(self)

    def update(self, n: float) -> None:
        pass
