"""Any dialogue file as a stream of bytes in bounded memory: plain, gzip or zstd, told by what it begins with.

    with open_stream(Path("wukong.jsonl.gz")) as stream:
        for batch in line_batches(stream):
            batch.first, batch.lines                     # 1, [b'{"turns": ...}', ...]

Under everything that reads dialogues (`dialogue.read_json_lines`, the readers in `mrp/data`). What is no file, holds no
text, or unpacks to a multiple of what any text would is refused here, with what it looks like.
"""

from __future__ import annotations

import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import IO, Any

from mrp.errors import InputError, need_extra

BLOCK_BYTES = 2**20
LOOKED_AT_BYTES = 2**16  # of the beginning, for what is no text
MAX_LINE_BYTES = 32 * 2**20
TOO_LONG = f"it is longer than {MAX_LINE_BYTES // 2**20} MiB"  # the fault of such a line
SHOWN_BYTES = 8000  # of a line that is too long: `record.SHOWN_TEXT` characters in any script
BOMB_BYTES, BOMB_FACTOR = 256 * 2**20, 200  # what unpacks to more than both (times its own length) is no dialogue
ZSTD_WINDOW_BYTES = 2**27  # what the zstd program allows, too
ZSTD_PIECE_BYTES = 1024  # unpacked at once: 4 bytes may become 128 KiB, so this becomes 32 MiB at most
BOM = b"\xef\xbb\xbf"
PARQUET = b"PAR1"

_GZIP, _ZSTD, _ZSTD_SKIPPED = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18"
_EXPORT = "export the dialogues as JSON Lines, CSV or Parquet"
_UNPACK = "unpack it, and name the files in it"
_KNOWN = (  # how a file begins -> what it is, and what to do
    (b"\x89PNG", "a PNG picture", "a character card goes into a cast with `mrp card import`"),
    (b"\xff\xd8\xff", "a JPEG picture", "name a file with dialogues"),
    (b"%PDF", "a PDF document", "save its text as a .txt file"),
    (b"PK\x03\x04", "a ZIP archive (or an office document)", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\xfd7zXZ", "an xz file", "unpack it (xz -d), or pack it as .gz or .zst"),
    (b"BZh", "a bzip2 file", "unpack it (bzip2 -d), or pack it as .gz or .zst"),
    (b"GGUF", "a GGUF model", "name a file with dialogues"),
    (b"SQLite format 3", "an SQLite database", _EXPORT),
    (b"ARROW1", "an Arrow file", "save it as Parquet"),
    (b"\x7fELF", "a program", "name a file with dialogues"),
)
MANY_CONTROLS = 64  # from which on what begins a file may be binary
_CONTROL = bytes({*range(32)} - {9, 10, 13})
_TEXT_MARKS = (b"\xff\xfe", b"\xfe\xff")


def unreadable(path: Path, error: OSError) -> InputError:
    """Why a file cannot be opened, in our words."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"no such file: {path.name}", str(path), "check the path in `dialogues:`")
    if isinstance(error, IsADirectoryError):
        return InputError("a folder stands where a file is wanted", str(path), "name the files in it")
    if isinstance(error, PermissionError):
        return InputError("the file may not be read", str(path), "give yourself permission to read it")
    reason = error.strerror or type(error).__name__
    return InputError(f"the file cannot be read: {reason}", str(path), "name a readable file")


class Stream:
    """The bytes of a file, unpacked. `read` gives up to `count` of them (somewhat more where they are unpacked),
    and b"" at the end; a context manager."""

    def __init__(self, path: Path, file: IO[bytes], pieces: Iterator[bytes] | None) -> None:
        self.path, self.file, self._pieces = path, file, pieces

    @property
    def is_packed(self) -> bool:
        return self._pieces is not None

    def read(self, count: int = BLOCK_BYTES) -> bytes:
        try:
            return self.file.read(count) if self._pieces is None else next(self._pieces, b"")
        except OSError as error:
            raise unreadable(self.path, error) from None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def open_stream(path: Path, start: int = 0) -> Stream:
    """Open a dialogue file, at byte `start` (of a plain file).

    Raises `InputError` for a path that leads to no plain file (nothing else is opened: a pipe would wait for its
    writer), and for a file that holds no text; while it is read also for one that is cut off, damaged or a bomb.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError
        if not stat.S_ISREG(mode):
            what = "a pipe or device stands where a file is wanted"
            raise InputError(what, str(path), "put what comes out of it into a file first")
        file = BufferedReader(FileIO(path), LOOKED_AT_BYTES)
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        head = file.peek(LOOKED_AT_BYTES)[:LOOKED_AT_BYTES]
        unpack = _unpacker(head)
        if unpack:
            return Stream(path, file, _checked(path, file, unpack))
        need_text(head, path)
        if start:
            file.seek(start)
        return Stream(path, file, None)
    except BaseException:
        file.close()
        raise


def is_packed(path: Path) -> bool:
    """True for a gzip or zstd file."""
    with open_stream(path) as stream:
        return stream.is_packed


def read_beginning(path: Path, count: int = BLOCK_BYTES) -> bytes:
    """The first `count` bytes of a file, unpacked; all of them if there are fewer. Raises as `open_stream`."""
    parts: list[bytes] = []
    length = 0
    with open_stream(path) as stream:
        while length < count and (part := stream.read(count - length)):
            parts.append(part)
            length += len(part)
    return b"".join(parts)[:count]


def need_text(head: bytes, path: Path) -> None:
    """Raise `InputError` if a file that begins with `head` is none of text (Parquet is let through)."""
    if head.startswith(PARQUET):
        return
    found = next(((what, fix) for mark, what, fix in _KNOWN if head.startswith(mark)), None)
    if head.startswith(_TEXT_MARKS):
        found = ("text in UTF-16", "save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    elif head[8:10] == b'{"' and head[5:8] == b"\0\0\0":
        found = ("a safetensors file", "name a file with dialogues")
    elif head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        found = ("a Python pickle", "it is never opened, as it may run code: " + _EXPORT)
    elif found is None and _is_binary(head):
        found = ("binary data", _EXPORT)
    if found:
        raise InputError(f"{path.name} is no text: it looks like {found[0]}", str(path), found[1])


def _is_binary(head: bytes) -> bool:
    """True for many control characters, NUL among them. (A text may have one by mistake, and loses one line for it.)"""
    if b"\0" not in head:
        return False
    found = len(head) - len(head.translate(None, _CONTROL))
    return found >= MANY_CONTROLS and found * 50 >= len(head)


# --- Lines ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """Lines that follow one another, without their "\\n". `is_too_long`: one line alone, of which only the beginning
    is here (`SHOWN_BYTES`)."""

    first: int  # number of the first line
    lines: list[bytes]
    is_too_long: bool = False


def line_batches(stream: Stream, first: int = 1, left: int | None = None) -> Iterator[Batch]:
    """All lines of a stream, a block's worth at a time, the first of them without its BOM; with `left` only those
    in as many bytes. Batches and not lines, since a generator's step for each line costs as much as reading it."""
    number = first
    begun: list[bytes] = []  # parts of a line whose end has not come yet
    begun_bytes = 0
    is_start = first == 1
    while block := stream.read(BLOCK_BYTES if left is None else min(left, BLOCK_BYTES)):
        if left is not None:
            left -= len(block)
        if is_start:
            block, is_start = block.removeprefix(BOM), False
        lines = block.split(b"\n")
        if len(lines) == 1:
            begun_bytes += len(block)
            begun = [b"".join([*begun, block])[:SHOWN_BYTES]] if begun_bytes > MAX_LINE_BYTES else [*begun, block]
            continue
        if begun_bytes + len(lines[0]) > MAX_LINE_BYTES:
            yield Batch(number, [b"".join([*begun, lines[0]])[:SHOWN_BYTES]], is_too_long=True)
            number += 1
            del lines[0]
        elif begun:
            lines[0] = b"".join([*begun, lines[0]])
        last = lines.pop()
        begun, begun_bytes = ([last], len(last)) if last else ([], 0)
        if lines:
            yield Batch(number, lines)
            number += len(lines)
    if begun:
        is_too_long = begun_bytes > MAX_LINE_BYTES
        line = b"".join(begun)
        yield Batch(number, [line[:SHOWN_BYTES] if is_too_long else line], is_too_long)


# --- Unpacking --------------------------------------------------------------------------------------------------------


def _unpacker(head: bytes) -> Any:
    if head.startswith(_GZIP):
        return _gunzip
    if head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPED and head[0] >> 4 == 5):
        return _unzstd
    return None


def _checked(path: Path, file: IO[bytes], unpack: Any) -> Iterator[bytes]:
    """What a packed file holds, as long as it is text and no bomb."""
    packed_bytes = path.stat().st_size
    total = 0
    try:
        for piece in unpack(file):
            if not total:
                if _unpacker(piece):
                    raise InputError(f"{path.name} is packed twice", str(path), "unpack it once")
                if piece.startswith(PARQUET):
                    raise InputError(f"{path.name} is packed Parquet", str(path), "unpack it: Parquet is packed inside")
                need_text(piece[:LOOKED_AT_BYTES], path)
            total += len(piece)
            if total > BOMB_BYTES and total > BOMB_FACTOR * packed_bytes:
                what = f"{path.name} unpacks to more than {BOMB_FACTOR} times its length: no dialogues do"
                raise InputError(what, str(path), "look at what is in it; if it is right, unpack it and name that file")
            yield piece
    except EOFError:
        what = f"{path.name} is cut off: it ends after {total:,} unpacked bytes, in the middle of its data"
        raise InputError(what, str(path), "copy or download it again") from None
    except (OSError, zlib.error, _zstd_error()) as error:
        what = f"{path.name} is damaged: it cannot be unpacked beyond {total:,} bytes ({error})"
        raise InputError(what, str(path), "copy or download it again") from None


def _gunzip(file: IO[bytes]) -> Iterator[bytes]:
    import gzip

    with gzip.GzipFile(fileobj=file) as unpacked:
        while piece := unpacked.read(BLOCK_BYTES):
            yield piece


def _unzstd(file: IO[bytes]) -> Iterator[bytes]:
    """Frame by frame. (The package's own stream reader ends without a word where a file is cut off.)"""
    try:
        import zstandard
    except ImportError:
        raise need_extra("data", "zstandard") from None
    packer = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    frame = None
    pieces: list[bytes] = []
    length = 0
    while packed := file.read(ZSTD_PIECE_BYTES):
        while packed:
            frame = frame or packer.decompressobj()
            piece = frame.decompress(packed)
            packed = b""
            if frame.eof:
                packed, frame = frame.unused_data, None
            if piece:
                pieces.append(piece)
                length += len(piece)
        if length >= BLOCK_BYTES:
            yield from _blocks(b"".join(pieces))
            pieces, length = [], 0
    if pieces:
        yield b"".join(pieces)
    if frame is not None:
        raise EOFError


def _blocks(data: bytes) -> Iterator[bytes]:
    """`data` in blocks: of 32 MiB with nothing but line ends, a list of lines would take a quarter of a GiB."""
    for start in range(0, len(data), BLOCK_BYTES):
        yield data[start : start + BLOCK_BYTES]


def _zstd_error() -> type[Exception]:
    try:
        from zstandard import ZstdError
    except ImportError:
        return EOFError
    return ZstdError  # type: ignore[no-any-return]
