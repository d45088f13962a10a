"""The text chunks of a PNG file, read and written without an image library: that is where a character card lies.

    with path.open("rb") as file:
        texts = read_texts(file, str(path), ("chara", "ccv3"))     # {"chara": b"eyJuYW1l..."}

A PNG is a signature and chunks: 4 bytes length, 4 bytes type, the data, 4 bytes CRC-32 over type and data. Pictures
pass through in small pieces; only the texts asked for are held, and none above `MAX_TEXT_BYTES`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import IO

from mrp.errors import InputError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNK_BYTES = 2**31 - 1  # of the PNG specification
MAX_TEXT_BYTES = 12 * 2**20  # of one text, inflated; real cards have some kilobytes
PIECE_BYTES = 64 * 2**10
TEXT_TYPES = (b"tEXt", b"zTXt", b"iTXt")
RESTORE = "the file is damaged: get it anew from where it came"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Where a chunk stands in the file, and its text if it is one of those asked for."""

    kind: bytes  # tEXt, IDAT, ...
    start: int  # of its length field
    length: int  # of its data, in bytes
    keyword: str = ""
    text: bytes = b""


def is_png(head: bytes) -> bool:
    """True if a file that begins with these bytes says that it is a PNG."""
    return head.startswith(SIGNATURE)


def read_texts(file: IO[bytes], where: str, keywords: Collection[str]) -> dict[str, bytes]:
    """The texts with these keywords (lower case; the file may write them otherwise), the first where there are more.

    Reads the file to its IEND chunk. Raises `InputError` naming the chunk and its place for whatever is broken.
    """
    found: dict[str, bytes] = {}
    for chunk in read_chunks(file, where, keywords):
        if chunk.keyword:
            found.setdefault(chunk.keyword, chunk.text)
    return found


def read_chunks(file: IO[bytes], where: str, keywords: Collection[str]) -> Iterator[Chunk]:
    """Every chunk up to IEND, its CRC checked; of texts with one of `keywords` the text too."""
    end = file.seek(0, 2)
    file.seek(0)
    if not is_png(file.read(len(SIGNATURE))):
        raise InputError("not a PNG file", where, "name a PNG or JSON file that holds a character card")
    position, count = len(SIGNATURE), 0
    while True:
        count += 1
        chunk = _head(file, position, end, count, where)
        place = f"{where}, chunk {count} ({chunk.kind.decode('ascii')}) at byte {position}"
        yield _body(file, chunk, place, keywords)
        position += 12 + chunk.length
        if chunk.kind == b"IEND":
            return


def _head(file: IO[bytes], position: int, end: int, count: int, where: str) -> Chunk:
    """Type and length of the chunk at `position`, both plausible."""
    place = f"{where}, chunk {count} at byte {position}"
    head = file.read(8)
    if len(head) < 8:
        raise InputError("the PNG ends without its IEND chunk", place, RESTORE)
    length, kind = struct.unpack(">I4s", head)
    if not kind.isalpha():  # bytes.isalpha: ASCII letters only
        raise InputError(f"{kind!r} is no chunk type", place, RESTORE)
    if length > min(MAX_CHUNK_BYTES, end - position - 12):
        what = f"the file ends within the chunk {kind.decode('ascii')}, which says it has {length:,} bytes"
        raise InputError(what, place, RESTORE)
    if count == 1 and (kind, length) != (b"IHDR", 13):
        raise InputError("the PNG does not begin with an IHDR chunk of 13 bytes", place, RESTORE)
    return Chunk(kind, position, length)


def _body(file: IO[bytes], chunk: Chunk, place: str, keywords: Collection[str]) -> Chunk:
    """The chunk with its CRC checked and its text read; the file stands behind it."""
    held = bytearray()
    wanted = False
    crc, left = zlib.crc32(chunk.kind), chunk.length
    while left:
        piece = file.read(min(left, PIECE_BYTES))
        if not piece:
            raise InputError("the file became shorter while it was read", place, "try again")
        if left == chunk.length and chunk.kind in TEXT_TYPES:
            wanted = _keyword(piece) in keywords
        if wanted and chunk.length > MAX_TEXT_BYTES:
            raise InputError(f"the text in the chunk has {chunk.length:,} bytes", place, _too_long())
        if wanted:
            held += piece
        crc = zlib.crc32(piece, crc)
        left -= len(piece)
    if file.read(4) != struct.pack(">I", crc):
        raise InputError("the checksum (CRC) of the chunk is wrong", place, RESTORE)
    if not wanted:
        return chunk
    return Chunk(chunk.kind, chunk.start, chunk.length, _keyword(held), _text(chunk.kind, bytes(held), place))


def _keyword(data: bytes | bytearray) -> str:
    """The keyword that a text chunk begins with (1 to 79 bytes, then a zero), in lower case."""
    return bytes(data[:80]).partition(b"\0")[0].decode("latin-1").lower()


def _text(kind: bytes, data: bytes, place: str) -> bytes:
    """The text of a text chunk: plain (tEXt), deflated (zTXt), or either with language marks (iTXt)."""
    rest = data.partition(b"\0")[2]
    if kind == b"tEXt":
        return rest
    if kind == b"zTXt":
        deflated, method, rest = True, rest[:1], rest[1:]
    else:
        flag, method, marks = rest[:1], rest[1:2], rest[2:].split(b"\0", 2)
        if flag not in (b"\0", b"\1") or len(marks) < 3:
            raise InputError("the iTXt chunk is not laid out as it should be", place, RESTORE)
        deflated, rest = flag == b"\1", marks[2]
    if not deflated:
        return rest
    if method != b"\0":
        raise InputError(f"unknown compression method {method!r}", place, RESTORE)
    return _inflated(rest, place)


def _inflated(data: bytes, place: str) -> bytes:
    """zlib data inflated, never further than `MAX_TEXT_BYTES`."""
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(data, MAX_TEXT_BYTES + 1)
    except zlib.error as error:
        raise InputError(f"the compressed text is broken ({error})", place, RESTORE) from None
    if len(text) > MAX_TEXT_BYTES:
        raise InputError(f"the text inflates to more than {MAX_TEXT_BYTES:,} bytes", place, _too_long())
    if not inflate.eof:
        raise InputError("the compressed text is cut off", place, RESTORE)
    return text


def _too_long() -> str:
    return f"a card may have {MAX_TEXT_BYTES:,} bytes; take pictures and sounds out of its JSON"


def write_with_texts(source: IO[bytes], where: str, target: IO[bytes], texts: Mapping[str, bytes]) -> None:
    """Copy the PNG `source` to `target` with `texts` as tEXt chunks before IEND; those it had with these keywords go.

    Everything else stays as it is, byte for byte; what follows IEND is left out.
    """
    target.write(SIGNATURE)
    for chunk in read_chunks(source, where, texts):
        if chunk.keyword:
            continue
        if chunk.kind == b"IEND":
            for keyword, text in texts.items():
                target.write(chunk_bytes(b"tEXt", keyword.encode("latin-1") + b"\0" + text))
        behind = source.tell()
        source.seek(chunk.start)
        left = chunk.length + 12
        while left:
            piece = source.read(min(left, PIECE_BYTES))
            if not piece:
                raise InputError("the file became shorter while it was read", where, "try again")
            target.write(piece)
            left -= len(piece)
        source.seek(behind)


def chunk_bytes(kind: bytes, data: bytes) -> bytes:
    """A whole chunk: length, type, data, CRC."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def blank_png(width: int = 8, height: int = 12) -> bytes:
    """A small grey picture, for a card without one."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits, greyscale
    rows = (b"\0" + b"\x80" * width) * height
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return SIGNATURE + b"".join(chunk_bytes(kind, data) for kind, data in chunks)
