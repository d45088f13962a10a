"""Files written whole or not at all, hashed, and locked while a command works on their folder.

Everything is UTF-8 with "\\n" line ends on every system. A file is written beside its place and renamed into it, so
a killed command leaves the earlier result as it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mrp.errors import InputError, MrpError, SetupError

LOCK_NAME = ".mrp.lock"
PART, OLD = ".mrp-", ".mrp-old-"  # how the names begin of what is being written, and of what is being replaced
ID_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")  # ids become file names, on every system
RESERVED_NAMES = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}


def is_safe_id(text: str) -> bool:
    """True if `text` can be a file name on any system: ASCII letters, digits, "_", "-" and inner dots."""
    stem = text.split(".")[0].lower()
    return bool(ID_PATTERN.fullmatch(text)) and stem not in RESERVED_NAMES and not text.endswith(".")


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """Open a text file beside `path` for writing; it takes the place of `path` only if the block ends well."""
    with _replacing(path, "w", encoding="utf-8", newline="\n") as file:
        yield file


@contextmanager
def replacing_binary(path: Path) -> Iterator[IO[bytes]]:
    """As `replacing`, for bytes."""
    with _replacing(path, "wb") as file:
        yield file


@contextmanager
def _replacing(path: Path, mode: str, **how: str) -> Iterator[IO[Any]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=PART, suffix=".part", dir=path.parent)
    except OSError as error:
        raise disk_error(error, path) from error
    try:
        with os.fdopen(handle, mode, **how) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp makes it private; results are ordinary files
        Path(name).replace(path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`; it takes the place of `path` (whole) only if the block ends well.

    A process killed between the two renames leaves no `path`: `settle_folder` puts the old one back.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{PART}{path.name}-", dir=path.parent))
    except OSError as error:
        raise disk_error(error, path) from error
    part.chmod(0o755)
    try:
        yield part
        old = _old(path)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            Path(path).replace(old)
        Path(part).replace(path)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        raise disk_error(error, path) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def settle_folder(path: Path) -> None:
    """Undo what a process killed inside `replacing_folder(path)` left. The caller holds the lock of the folder."""
    if _old(path).is_dir() and not path.exists():
        _old(path).replace(path)
    for leftover in (_old(path), *path.parent.glob(f"{PART}{path.name}-*")):
        shutil.rmtree(leftover, ignore_errors=True)


def _old(path: Path) -> Path:
    """Where the folder `path` waits while its successor moves in."""
    return path.with_name(f"{OLD}{path.name}")


def disk_error(error: Exception, path: Path) -> Exception:
    """`error` as a `SetupError` where it is about the disk (full, read-only, a limit, no permission), else itself."""
    if isinstance(error, MrpError):
        return error
    number = error.errno if isinstance(error, OSError) else None
    # torch and safetensors report a full disk by errors of their own
    if number in (errno.ENOSPC, errno.EDQUOT) or (number is None and _is_full(path.parent)):
        return SetupError(
            f"no space left on the disk while writing {path.name}",
            str(path),
            "free some space, then run the command again",
        )
    if number == errno.EFBIG:
        what = f"{path.name} is longer than a file may be here (`ulimit -f`, or the kind of the disk)"
        return SetupError(what, str(path), "raise the limit, or choose a folder on another disk")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return SetupError(
            f"cannot write {path.name}: {os.strerror(number)}", str(path), "choose a folder that you may write to"
        )
    if number in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        what = f"cannot write {path.name}: a file stands where a folder is wanted, or a folder where a file is"
        return SetupError(what, str(path), "choose another place, or move away what stands there")
    return error


def _is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < 2**20


def need_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise `SetupError` unless the disk of `folder` has `needed_bytes` free (folder may not exist yet)."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise SetupError(
            f"{what} needs {size_text(needed_bytes)}, but only {size_text(free)} are free",
            str(folder),
            "free some space or choose a folder on another disk",
        )


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with replacing(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Write one compact JSON object a line; returns the number of lines."""
    count = 0
    with replacing(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
            count += 1
    return count


def read_json(path: Path) -> Any:
    """The JSON value in `path`; `InputError` if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no such file: {path.name}", str(path), "check the path") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"not a JSON file: {error}", str(path), "restore the file, or make it anew") from error


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_sha256(path: Path, samples: int = 64, sample_bytes: int = 16 * 2**10) -> str:
    """A hash of a file that tells fine-tunes of one model apart without reading gigabytes.

    Over the length, the first MiB and `samples` places spread evenly; a small file counts whole.
    """
    length = path.stat().st_size
    digest = hashlib.sha256(str(length).encode())
    with path.open("rb") as file:
        if length <= 2**20 + samples * sample_bytes:
            digest.update(file.read())
        else:
            digest.update(file.read(2**20))
            for k in range(samples):
                file.seek(2**20 + (length - 2**20 - sample_bytes) * k // (samples - 1))
                digest.update(file.read(sample_bytes))
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """Hex SHA-256 of a JSON value, the same on every machine (keys sorted)."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone; `SetupError` if another command works in it.

    The lock is the operating system's own (released when the process ends, however it ends). What a killed command
    left half-written here is settled first.
    """
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) from error
    lock = filelock.FileLock(str(folder / LOCK_NAME), timeout=0, is_singleton=True)  # so one command may nest
    try:
        lock.acquire()
    except filelock.Timeout:
        raise SetupError(
            "another mrp command is working in this folder",
            str(folder),
            "wait until it ends, or give this run another `out:` folder",
        ) from None
    except OSError as error:
        raise disk_error(error, folder) from error
    try:
        if lock.lock_counter == 1:  # not within another block of this process, which may be writing
            _settle_all(folder)
        yield
    finally:
        lock.release()


def _settle_all(folder: Path) -> None:
    """`settle_folder` for every folder in `folder`, and half-written files taken away."""
    for old in folder.glob(f"{OLD}*"):
        settle_folder(folder / old.name.removeprefix(OLD))
    for part in folder.glob(f"{PART}*"):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def size_text(count: float) -> str:
    """A number of bytes for people: 98.4 MB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
