"""Token ids become text piece by piece, and no piece ends within a character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import SHAPES, Shape

from mrp.play.engine import TextStream, Token

TEXTS = ["Ha! 俺老孙来也！", "🐒🐷 and ⚔️", "naïve café", "a\n\n  b ", "  leading", "龘", "e\u0301", "\ufffd?"]


def pieces_of(shape: Shape, ids: list[int]) -> list[str]:
    stream = TextStream(shape.tokenizer())
    return [*(stream.add(Token(token)) for token in ids), stream.end()]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=str)
@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_are_the_whole(shape: Shape, text: str) -> None:
    tokenizer = shape.tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = pieces_of(shape, ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    if "\ufffd" not in "".join(pieces):
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("name", ["chatml", "internlm2"])
def test_a_character_of_many_tokens_is_given_out_when_it_is_whole(name: str) -> None:
    ids = SHAPES[name].tokenizer().encode("龘", add_special_tokens=False)
    assert len(ids) > 2
    pieces = pieces_of(SHAPES[name], ids)
    assert [piece for piece in pieces if piece.strip()] == ["龘"]


def test_bytes_that_never_become_a_character_are_given_out_at_the_end() -> None:
    tokenizer = SHAPES["chatml"].tokenizer()
    broken = tokenizer.encode("龘", add_special_tokens=False)[:-1]
    assert "".join(pieces_of(SHAPES["chatml"], broken)).strip("\ufffd") == ""
    after = tokenizer.encode("ok", add_special_tokens=False)
    assert "".join(pieces_of(SHAPES["chatml"], broken + after)).endswith("ok")


@given(st.lists(st.integers(0, 400), max_size=30))
def test_any_ids_at_all_stream_to_their_text(ids: list[int]) -> None:
    tokenizer = SHAPES["chatml"].tokenizer()
    ids = [i for i in ids if i < len(tokenizer)]
    assert "".join(pieces_of(SHAPES["chatml"], ids)) == tokenizer.decode(ids, skip_special_tokens=True)
