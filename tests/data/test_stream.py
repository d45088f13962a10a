"""Opening any dialogue file: packed or not, the same lines; what is no text is refused; memory stays bounded."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import socket
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dialogue_rows import pair, scene

from mrp.cast import Cast
from mrp.data import stream
from mrp.data.read import lines_stand_alone, read_dialogues, read_lines
from mrp.data.record import Rejected
from mrp.data.stream import TOO_LONG, line_batches, open_stream
from mrp.dialogue import Scene, Span, read_json_lines
from mrp.errors import InputError

MIB = 2**20
GOOD = json.dumps(scene(("tang", "Peace."), ("other", "And you?"), ("tang", "Peace."))).encode() + b"\n"


def zstd(data: bytes) -> bytes:
    packer = pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True)  # as the zstd program does
    return packer.compress(data)  # type: ignore[no-any-return]


@contextmanager
def peak_below(limit_bytes: int) -> Iterator[None]:
    """What Python allocates meanwhile stays below a limit."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit_bytes, f"{peak / MIB:.0f} MiB"


def lines_of(path: Path) -> list[tuple[int, bytes, bool]]:
    with open_stream(path) as opened:
        return [
            (number, line, batch.is_too_long)
            for batch in line_batches(opened)
            for number, line in enumerate(batch.lines, batch.first)
        ]


# --- Packed files -----------------------------------------------------------------------------------------------------

TEXTS = [b"", b"\n", b"a", b"a\n", b"a\nb", b"\n\na\r\n\n", b"\xef\xbb\xbfa\nb\n", b"x" * 70_000 + b"\ny\n" * 400_000]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "gzip in two members": lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:]),
    "zstd": zstd,
    "zstd in frames": lambda data: zstd(data[:5]) + struct.pack("<II", 0x184D2A51, 3) + b"abc" + zstd(data[5:]),
    "zstd after a frame to skip": lambda data: struct.pack("<II", 0x184D2A5F, 0) + zstd(data),
}


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("packer", PACKERS)
def test_lines_are_those_of_the_text_however_it_is_packed(tmp_path: Path, packer: str, text: bytes) -> None:
    path = tmp_path / "file"  # the name does not matter
    path.write_bytes(PACKERS[packer](text))
    expected = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert lines_of(path) == [(number, line, False) for number, line in enumerate(expected, 1)]


@pytest.mark.parametrize("packer", PACKERS)
def test_packed_dialogues_are_read_like_plain_ones(tmp_path: Path, cast: Cast, packer: str) -> None:
    rows = json.dumps([pair("a", "b"), pair("c", "d")]).encode()
    for name, text in (("a.jsonl", GOOD + b"{\n" + GOOD), ("a.json", rows), ("a.txt", b"tang:\nPeace.\n")):
        (tmp_path / name).write_bytes(text)
        suffix = {"g": ".gz", "z": ".zst"}.get(packer[0], "")
        (tmp_path / "packed").mkdir(exist_ok=True)
        packed = tmp_path / "packed" / (name + suffix)
        packed.write_bytes(PACKERS[packer](text))
        plain = list(read_lines(tmp_path / name, cast, "tang", name="f"))
        assert list(read_lines(packed, cast, "tang", name="f")) == plain
        assert lines_stand_alone(packed) == (name == "a.jsonl" and not suffix)


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_packed_file_that_is_cut_off_says_so(tmp_path: Path, cast: Cast, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.jsonl.gz"
    whole = pack(os.urandom(MIB).hex().encode() + b"\n" + GOOD)
    for length in (len(whole) - 1, len(whole) // 2, 20):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="cut off"):
            list(read_dialogues(path, cast))


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_damaged_packed_file_says_so(tmp_path: Path, cast: Cast, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.jsonl.gz"
    whole = bytearray(pack(os.urandom(MIB).hex().encode() + b"\n" + GOOD))
    for at in range(len(whole) // 2, len(whole) // 2 + 50):
        whole[at] ^= 0x55
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"damaged|cut off"):
        list(read_dialogues(path, cast))


def test_packed_twice_is_refused(tmp_path: Path, cast: Cast) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.compress(GOOD)))
    with pytest.raises(InputError, match="packed twice"):
        list(read_dialogues(path, cast))


def test_bombs_are_refused_in_bounded_memory(tmp_path: Path, cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BOMB_BYTES", 64 * MIB)
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(b" " * MIB + b"\n") for _ in range(300)) + packer.flush()
    frame = pytest.importorskip("zstandard").ZstdCompressor(19).compressobj()
    other = b"".join(frame.compress((b" " * 1023 + b"\n") * 1024) for _ in range(300)) + frame.flush()
    for name, packed in (("a.jsonl.gz", bomb), ("a.jsonl.zst", other)):
        path = tmp_path / name
        path.write_bytes(packed)
        assert len(packed) < MIB
        with peak_below(150 * MIB), pytest.raises(InputError, match="200 times its length"):
            list(read_dialogues(path, cast))


def test_text_that_packs_well_is_no_bomb(tmp_path: Path, cast: Cast) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD * 20_000))
    assert path.stat().st_size * 200 < len(GOOD) * 20_000
    assert sum(1 for _ in read_dialogues(path, cast)) == 20_000


# --- What is no file of text ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only on systems with pipes")
def test_pipes_devices_sockets_and_folders_are_refused_unopened(tmp_path: Path, cast: Cast) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")  # opening it would wait for ever
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    with socket.socket(socket.AF_UNIX) as here:
        here.bind(str(tmp_path / "socket.jsonl"))
        for name in ("pipe", "link", "folder", "loop", "socket"):
            with pytest.raises(InputError, match=name):
                list(read_dialogues(tmp_path / f"{name}.jsonl", cast))
    with pytest.raises(InputError, match="a pipe or device"):
        list(read_dialogues(Path("/dev/zero"), cast))


BINARIES = {
    "a PNG picture": b"\x89PNG\r\n\x1a\n" + bytes(90),
    "a PDF document": b"%PDF-1.7\n",
    "a ZIP archive": b"PK\x03\x04" + bytes(90),
    "a Python pickle": pickle.dumps([{"a": 1}] * 50),
    "a safetensors file": struct.pack("<Q", 60) + b'{"x":{"dtype":"F32"}}',
    "a GGUF model": b"GGUF" + bytes(90),
    "an xz file": b"\xfd7zXZ\0" + bytes(9),
    "text in UTF-16": "你好\n".encode("utf-16"),
    "an SQLite database": b"SQLite format 3\0" + bytes(90),
    "binary data": b"".join(struct.pack("<f", k) for k in range(1000)),
}


@pytest.mark.parametrize("what", BINARIES)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_binary_file_is_refused_with_what_it_is(
    tmp_path: Path, cast: Cast, what: str, pack: Callable[[bytes], bytes]
) -> None:
    for name in ("a.jsonl", "a.txt", "a.csv"):
        path = tmp_path / name
        path.write_bytes(pack(BINARIES[what]))
        with pytest.raises(InputError) as error:
            list(read_dialogues(path, cast))
        assert what in error.value.what
        assert error.value.fix


def test_one_stray_zero_byte_costs_one_line(tmp_path: Path, cast: Cast) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\0\0\n" + GOOD)
    assert [type(result) for result in read_dialogues(path, cast)] == [Scene, Rejected, Scene]


# --- Long lines and large files ---------------------------------------------------------------------------------------


def test_line_of_100_mb_is_one_rejected_line(tmp_path: Path, cast: Cast) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(GOOD)
        file.write(b'{"turns": "')
        for _ in range(100):
            file.write(b"x" * MIB)
        file.write(b'"}\n' + GOOD)
    with peak_below(100 * MIB):
        first, long, last = read_dialogues(path, cast, name="a")
    assert isinstance(first, Scene) and isinstance(last, Scene)
    assert isinstance(long, Rejected)
    assert (long.reason, long.source, last.source) == ("too-long", "a:2", "a:3")
    assert long.text.startswith('{"turns": "xxx') and len(long.text) == 2000


@pytest.mark.parametrize("ends", [b"\n", b""])
def test_longest_line_is_read_and_one_byte_more_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bytes
) -> None:
    monkeypatch.setattr(stream, "MAX_LINE_BYTES", 3 * MIB)
    path = tmp_path / "a"
    for length, is_too_long in ((3 * MIB - 1, False), (3 * MIB, False), (3 * MIB + 1, True), (9 * MIB, True)):
        path.write_bytes(b"first\n" + b"x" * length + ends)
        first, long = lines_of(path)
        assert first == (1, b"first", False)
        assert (long[0], long[2]) == (2, is_too_long)
        assert len(long[1]) == (stream.SHOWN_BYTES if is_too_long else length)


def test_large_file_with_one_broken_line_names_that_line(tmp_path: Path, cast: Cast) -> None:
    path = tmp_path / "a.jsonl"
    row = json.dumps(scene(("tang", "Peace. " * 4000), ("other", "x"), ("tang", "y"))).encode() + b"\n"
    count = 50 * MIB // len(row)
    with path.open("wb") as file:
        for k in range(count):
            file.write(b'{"turns": [\n' if k == 1234 else row)
    with peak_below(40 * MIB):
        bad = [result for result in read_dialogues(path, cast, name="a") if isinstance(result, Rejected)]
    assert [(result.source, result.reason) for result in bad] == [("a:1235", "broken-json")]


def test_part_of_a_file_gives_the_lines_that_begin_in_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a":1}\n\n{"a":2}\n{"a":3}')
    assert [(line.number, line.value) for line in read_json_lines(path, Span(8, 17, 2))] == [(3, {"a": 2})]
    assert [(line.number, line.value) for line in read_json_lines(path, Span(17, 24, 4))] == [(4, {"a": 3})]
    assert list(read_json_lines(path, Span(8, 9, 2))) == []


def test_deep_nesting_is_rejected(tmp_path: Path, cast: Cast) -> None:
    deep = b"[" * 100_000
    for name, text in (
        ("a.jsonl", GOOD + b'{"turns": ' + deep + b"\n" + GOOD),
        ("b.jsonl", GOOD + deep + b"]" * 100_000 + b"\n" + GOOD),
    ):
        (tmp_path / name).write_bytes(text)
        results = list(read_dialogues(tmp_path / name, cast))
        assert [type(result) for result in results] == [Scene, Rejected, Scene]
    (tmp_path / "c.json").write_bytes(deep)
    (result,) = read_dialogues(tmp_path / "c.json", cast)
    assert isinstance(result, Rejected)
    assert "nested too deeply" in result.detail


def test_recursion_limit_is_left_alone(tmp_path: Path, cast: Cast) -> None:
    before = sys.getrecursionlimit()
    test_deep_nesting_is_rejected(tmp_path, cast)
    assert sys.getrecursionlimit() == before


def test_too_long_is_said_in_mib() -> None:
    assert "32 MiB" in TOO_LONG
