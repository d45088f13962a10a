"""PNG chunks: what is read and written is right, and no file, however broken, gives anything but an `InputError`."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_cards import png_with, raw_chunk, text_chunk

from mrp.cards.png import MAX_TEXT_BYTES, SIGNATURE, blank_png, chunk_bytes, read_texts, write_with_texts
from mrp.errors import InputError

WANTED = ("chara", "ccv3")


def texts_of(data: bytes) -> dict[str, bytes]:
    return read_texts(io.BytesIO(data), "card.png", WANTED)


def fault_of(data: bytes) -> InputError:
    with pytest.raises(InputError) as caught:
        texts_of(data)
    assert caught.value.what and caught.value.where.startswith("card.png") and caught.value.fix
    return caught.value


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iTXt deflated"])
def test_all_kinds_of_text_chunks_are_read(kind: str) -> None:
    assert texts_of(png_with(text_chunk("chara", b"text", kind))) == {"chara": b"text"}


def test_the_first_of_equal_keywords_counts_whatever_their_case() -> None:
    data = png_with(text_chunk("Comment", b"no"), text_chunk("Chara", b"first"), text_chunk("chara", b"second"))
    assert texts_of(data) == {"chara": b"first"}


def test_a_picture_without_texts_has_none() -> None:
    assert texts_of(blank_png()) == {}
    assert texts_of(blank_png() + b"trailing bytes") == {}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a PNG"),
        (b"GIF89a" * 9, "not a PNG"),
        (SIGNATURE, "without its IEND"),
        (SIGNATURE + chunk_bytes(b"IDAT", b""), "does not begin with an IHDR"),
        (blank_png()[:-12], "without its IEND"),
        (blank_png()[:-1], "ends within the chunk IEND"),
        (png_with(text_chunk("chara", b"text"))[:-20], "ends within the chunk tEXt"),
        (png_with(raw_chunk(b"tEXt", 500, b"chara\0x")), "ends within the chunk tEXt, which says it has 500 bytes"),
        (png_with(raw_chunk(b"tEXt", 2**32 - 1, b"chara\0x")), "says it has 4,294,967,295 bytes"),
        (png_with(raw_chunk(b"tEXt", 3, b"chara\0x")), "checksum"),
        (png_with(raw_chunk(b"t\0\xff!", 1, b"x")), "is no chunk type"),
        (png_with(text_chunk("chara", b"text")).replace(b"text", b"texx"), "checksum"),
        (png_with(chunk_bytes(b"zTXt", b"chara\0\0no zlib")), "compressed text is broken"),
        (png_with(chunk_bytes(b"zTXt", b"chara\0\7" + zlib.compress(b"x"))), "unknown compression method"),
        (png_with(chunk_bytes(b"zTXt", b"chara\0\0" + zlib.compress(b"x" * 99)[:-6])), "cut off"),
        (png_with(chunk_bytes(b"iTXt", b"chara\0")), "not laid out"),
        (png_with(chunk_bytes(b"iTXt", b"chara\0\0\0en")), "not laid out"),
    ],
    ids=lambda value: value if isinstance(value, str) else "png",
)
def test_broken_files_are_told_with_their_place(data: bytes, words: str) -> None:
    assert words in fault_of(data).what


def test_a_broken_crc_names_the_chunk_and_its_byte() -> None:
    data = png_with(text_chunk("chara", b"text")).replace(b"text", b"texx")
    assert fault_of(data).where == f"card.png, chunk 3 (tEXt) at byte {data.index(b'tEXt') - 4}"


def test_a_picture_whose_crc_is_broken_is_refused_too() -> None:
    data = bytearray(blank_png())
    data[data.index(b"IDAT") + 6] ^= 1
    assert "checksum" in fault_of(bytes(data)).what


@pytest.mark.parametrize("kind", ["zTXt", "iTXt deflated"])
def test_a_bomb_is_not_inflated(kind: str) -> None:
    bomb = png_with(text_chunk("chara", b"\0" * (4 * MAX_TEXT_BYTES), kind))
    tracemalloc.start()
    assert "inflates to more than" in fault_of(bomb).what
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MAX_TEXT_BYTES


def test_a_long_text_is_refused_before_it_is_held() -> None:
    data = png_with(text_chunk("chara", b"A" * (MAX_TEXT_BYTES + 1)))
    tracemalloc.start()
    assert "the text in the chunk has 12,58" in fault_of(data).what
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MAX_TEXT_BYTES / 4


def test_texts_nobody_asked_for_may_be_long_or_strange() -> None:
    strange = chunk_bytes(b"zTXt", b"other\0\0no zlib")
    assert texts_of(png_with(strange, text_chunk("other", b"A" * (MAX_TEXT_BYTES + 1)))) == {}


def test_writing_replaces_the_texts_and_keeps_all_else() -> None:
    other, old = text_chunk("Comment", b"stays"), text_chunk("CHARA", b"old", "iTXt")
    written = io.BytesIO()
    write_with_texts(io.BytesIO(png_with(old, other) + b"junk"), "x", written, {"chara": b"new", "ccv3": b"3"})
    assert written.getvalue() == png_with(other, text_chunk("chara", b"new"), text_chunk("ccv3", b"3"))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(WANTED), st.binary(max_size=300)), st.binary(max_size=100))
def test_what_is_written_is_read(texts: dict[str, bytes], other: bytes) -> None:
    written = io.BytesIO()
    write_with_texts(io.BytesIO(png_with(chunk_bytes(b"teSt", other))), "x", written, texts)
    assert texts_of(written.getvalue()) == texts


WHOLE = png_with(
    text_chunk("chara", b"eyJuYW1lIjogIkFkYSJ9"),
    text_chunk("ccv3", b"x" * 40, "zTXt"),
    text_chunk("chara", b"", "iTXt"),
)


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """A PNG with some bytes changed, cut out or put in; or chunks of any content with right checksums."""
    if draw(st.booleans()):
        kinds = st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"IDAT", b"IEND", b"IHDR"]) | st.binary(
            min_size=4, max_size=4
        )
        heads = st.sampled_from([b"chara\0", b"ccv3\0\0", b"chara\0\1\0\0\0", b"chara", b""])
        chunks = draw(st.lists(st.tuples(kinds, heads, st.binary(max_size=60)), max_size=5))
        return png_with(*(chunk_bytes(kind, head + data) for kind, head, data in chunks))
    data = bytearray(WHOLE)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(0, 20)))
        data[at:to] = draw(st.binary(max_size=8))
    return bytes(data)


@settings(deadline=None)
@given(damaged_files() | st.binary(max_size=200) | st.binary(max_size=100).map(SIGNATURE.__add__))
def test_any_bytes_are_read_or_refused_with_what_where_and_fix(data: bytes) -> None:
    try:
        texts = texts_of(data)
    except InputError as error:
        assert error.what and error.where and error.fix
    else:
        assert texts.keys() <= set(WANTED)


@settings(deadline=None)
@given(st.integers(0, len(WHOLE) - 1))
def test_every_cut_off_file_is_refused(length: int) -> None:
    fault_of(WHOLE[:length])


@settings(deadline=None)
@given(st.integers(len(SIGNATURE), len(WHOLE) - 1), st.integers(0, 7))
def test_every_changed_bit_is_noticed(at: int, bit: int) -> None:
    data = bytearray(WHOLE)
    data[at] ^= 1 << bit
    fault_of(bytes(data))


def test_the_plain_picture_is_a_whole_png() -> None:
    data = blank_png(8, 12)
    assert struct.unpack(">II", data[16:24]) == (8, 12)
    start = data.index(b"IDAT")
    (length,) = struct.unpack(">I", data[start - 4 : start])
    assert len(zlib.decompress(data[start + 4 : start + 4 + length])) == 12 * 9
