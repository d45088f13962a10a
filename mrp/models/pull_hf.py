"""The Hugging Face hub, through huggingface_hub: what a repository holds, and its files.

    listing = HuggingFace().look("Qwen/Qwen3-0.6B", None)     # honours HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE
    HuggingFace().fetch(listing, listing.files[0], place, tell)

Its client finds the commit and the hashes and carries token, proxy and certificates. The bytes are streamed here over
its session: its own `hf_hub_download` deletes what came when a process ends, and of 15 GB nobody likes to lose 12.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mrp.errors import SetupError
from mrp.hub_errors import first_line, refusals_told, status_of
from mrp.models.hub_files import BrokenError, Listing, RemoteFile, Tell, UnreachableError, WrongHashError

CHUNK_BYTES = 1 << 20
PIECES_IN_HAND = 3  # of so many bytes, waiting to be written and hashed
TIMEOUT_S = 30.0  # without a byte from the hub
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # statuses after which the same request may go well


class HuggingFace:
    """`Hub` of huggingface.co, or of the mirror that HF_ENDPOINT names."""

    source = "hf"
    part_ending = ".part"

    def look(self, repo: str, revision: str | None) -> Listing:
        """The repository at the commit that `revision` (default: main) is now.

        Raises `InputError` where there is no such thing, `SetupError` where it is closed to us, `UnreachableError`,
        `BrokenError`.
        """
        from huggingface_hub import HfApi

        with _told(repo, revision):
            api = HfApi(endpoint=_endpoint(), library_name="mrp-llm")
            info = api.model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
        files = [_remote_file(sibling) for sibling in info.siblings or []]
        return Listing(self.source, repo, str(info.sha), str(info.sha), _license(info), tuple(files))

    def fetch(self, listing: Listing, file: RemoteFile, place: Path, tell: Tell) -> None:
        """Have `file` at `place`, its hash checked; what an earlier call left in `place`.part is gone on with.

        Raises as `look` does, and `WrongHashError` (then the part is deleted).
        """
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(listing.repo, file.path, revision=listing.commit, endpoint=_endpoint())
        part = place.with_name(place.name + self.part_ending)
        if not part.exists() or part.stat().st_size > file.nbytes:
            part.write_bytes(b"")
        with part.open("r+b") as opened, ThreadPoolExecutor(1) as disk:
            bytes_ = _Checked(opened, file, tell, disk)
            try:
                if bytes_.count < file.nbytes:
                    with _told(listing.repo, listing.commit, file.path):
                        _stream(url, bytes_)
            finally:
                bytes_.flush()
            fault = bytes_.fault()
        if fault:
            tell(-bytes_.count)
            part.unlink()
            raise WrongHashError(fault)
        part.replace(place)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _remote_file(sibling: Any) -> RemoteFile:
    lfs = sibling.lfs
    sha256 = getattr(lfs, "sha256", None) if lfs is not None else None
    return RemoteFile(sibling.rfilename, int(sibling.size or 0), sha256, None if sha256 else sibling.blob_id)


def _license(info: Any) -> str | None:
    for tag in info.tags or []:
        if tag.startswith("license:") and tag != "license:other":
            return str(tag).removeprefix("license:")
    return str(name) if (name := (info.card_data or {}).get("license_name")) else None


class _Checked:
    """A file whose other thread writes and hashes what comes; begun with what is there already."""

    def __init__(self, opened: IO[bytes], file: RemoteFile, tell: Tell, disk: ThreadPoolExecutor) -> None:
        self.opened, self.file, self.tell, self.disk = opened, file, tell, disk
        self.in_hand: deque[Future[None]] = deque()
        self.is_broken = False  # a piece could not be written, so none after it may be
        self._begin()
        while chunk := opened.read(CHUNK_BYTES):
            self.digest.update(chunk)
            self.count += len(chunk)

    def _begin(self) -> None:
        self._wait()
        self.count = self.waiting_bytes = 0
        self.waiting: list[bytes] = []  # chunks that came, few and small enough to be lost by a kill
        self.digest = hashlib.sha256()
        if self.file.sha256 is None:  # what is not in large file storage is known by git's hash alone
            self.digest = hashlib.sha1(b"blob %d\0" % self.file.nbytes, usedforsecurity=False)

    def _keep(self, chunks: list[bytes]) -> None:
        """In the other thread, beside which the next chunks come: neither writing nor hashing holds Python's lock."""
        if self.is_broken:
            return
        self.is_broken = True
        piece = b"".join(chunks)
        self.opened.write(piece)
        self.digest.update(piece)
        self.is_broken = False

    def _wait(self, left: int = 0) -> None:
        """Until the other thread has at most `left` pieces in hand, so memory stays bounded. Raises what it raised."""
        while len(self.in_hand) > left:
            self.in_hand.popleft().result()

    def write(self, chunk: bytes) -> None:
        self.waiting.append(chunk)
        self.waiting_bytes += len(chunk)
        self.count += len(chunk)
        if self.waiting_bytes >= CHUNK_BYTES:  # chunks are of 64 kB: for each, the threads would wait for each other
            self._hand_over()
        self.tell(len(chunk))

    def _hand_over(self) -> None:
        self._wait(PIECES_IN_HAND - 1)
        self.in_hand.append(self.disk.submit(self._keep, self.waiting))
        self.waiting, self.waiting_bytes = [], 0

    def flush(self) -> None:
        """Have everything written and hashed; to be called before the file is closed."""
        self._hand_over()
        self._wait()

    def begin_again(self) -> None:
        """For a server that cannot go on in the middle."""
        self.flush()
        self.tell(-self.count)
        self.opened.seek(0)
        self.opened.truncate()
        self._begin()

    def fault(self) -> str | None:
        """What is wrong with the whole, if anything."""
        self._wait()
        expected, found = self.file.sha256 or self.file.git_sha1, self.digest.hexdigest()
        if self.count != self.file.nbytes:
            return f"{self.count:,} bytes instead of {self.file.nbytes:,}"
        if expected not in (None, found):
            return f"{self.digest.name} {found[:12]}..., expected {str(expected)[:12]}..."
        return None


def _stream(url: str, into: _Checked) -> None:
    """One request: what is missing is appended to `into`. `BrokenError` if the connection ends early."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    headers = build_hf_headers(library_name="mrp-llm") | {"Accept-Encoding": "identity"}  # ranges count stored bytes
    if into.count:
        headers["Range"] = f"bytes={into.count}-"
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as answer:
        if answer.status_code == 416:
            into.begin_again()
            raise BrokenError("the hub cannot go on in the middle of the file")
        hf_raise_for_status(answer)
        goes_on = answer.headers.get("Content-Range", "").startswith(f"bytes {into.count}-")
        if into.count and not (answer.status_code == 206 and goes_on):
            into.begin_again()
            if answer.status_code == 206:
                raise BrokenError("the hub goes on at another place than it was asked for")
        for chunk in answer.iter_bytes():  # as they come: a break loses nothing
            into.write(chunk)
            if into.count > into.file.nbytes:
                return  # not this file: its hash will say so
    if into.count < into.file.nbytes:
        raise BrokenError("the connection ended early")


@contextmanager
def _told(repo: str, revision: str | None, file: str = "") -> Iterator[None]:
    """What the hub's client raises, in our words."""
    from huggingface_hub import errors

    # Its client has changed its own HTTP library before; whatever it is, this is that library's base of all errors.
    transport_error: type[Exception] = errors.HTTPError
    where = f"hf:{repo}" + (f"@{revision}" if revision else "") + (f"/{file}" if file else "")
    try:
        with refusals_told("model", repo, revision, where, f"{_endpoint() or 'https://huggingface.co'}/{repo}", file):
            yield
    except errors.HfHubHTTPError as error:
        raise _http_error(error, where) from None
    except (transport_error, errors.OfflineModeIsEnabled, ConnectionError, TimeoutError) as error:
        if file:
            raise BrokenError(first_line(error)) from None
        raise UnreachableError(first_line(error)) from None


def _http_error(error: Any, where: str) -> Exception:
    status = status_of(error)
    if status in AGAIN:
        said = error.response.headers.get("Retry-After", "")
        return BrokenError(f"the hub answers {status}", float(said) if said.isdecimal() else None)
    return SetupError(f"the hub answers {status}: {first_line(error)}", where, "try again later")
