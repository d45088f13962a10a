"""Cards that something happened to: a card whose cast loads and whose scenes read, or an `InputError`; nothing else.

`benchmarks/fuzz_cards.py` looks longer, guided by the code it reaches; what it finds is kept here by name.
"""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_cards import V1, V2, V3, base64_of, png_with, text_chunk
from mutations import changed, changes

from mrp.cards.take_in import import_cards
from mrp.cast import load_cast
from mrp.data.read import read_dialogues
from mrp.dialogue import Scene
from mrp.errors import MrpError

PIECES = [
    *(
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\n",
        b"\\",
        b"\\ud800",
        b"\\u0000",
        b"\xff",
        b"\0",
        b"null",
        b"1e999",
    ),
    *(
        b"NaN",
        b"[" * 200,
        b"9" * 5000,
        b"<START>",
        b"{{char}}",
        b"{{user}}",
        b"<BOT>",
        b"Ada:",
        b"You:",
        "　：".encode(),
    ),
]


def import_and_read(folder: Path, name: str, content: bytes) -> bool:
    """True if the card became a character; the cast it stands in is whole then."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / name).write_bytes(content)
    try:
        import_cards([folder / name], folder / "cast.yaml")
    except MrpError as error:
        assert str(error)
        assert [path.name for path in folder.iterdir()] == [name]  # nothing half-written
        return False
    cast = load_cast(folder / "cast.yaml")
    for character in cast:
        for file in character.dialogues:
            results = list(read_dialogues(folder / file, cast, character.id))
            assert results and all(isinstance(result, Scene) for result in results), results
    return True


@pytest.mark.parametrize("card", [V1, V2, V3], ids=["V1", "V2", "V3"])
def test_good_cards_become_characters(tmp_path: Path, card: dict[str, Any]) -> None:
    assert import_and_read(tmp_path / "a", "a.json", json.dumps(card).encode())
    assert import_and_read(tmp_path / "a", "a.png", png_with(text_chunk("chara", base64_of(card))))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(card=st.sampled_from([V1, V2, V3]), steps=changes(PIECES, 4))
def test_changed_json_is_a_card_or_refused(tmp_path: Path, card: dict[str, Any], steps: list[Any]) -> None:
    raw = changed(json.dumps(card).encode(), steps)
    import_and_read(tmp_path / "a", "a.json", raw)
    import_and_read(tmp_path / "a", "a.png", png_with(text_chunk("ccv3", base64.b64encode(raw))))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["tEXt", "zTXt", "iTXt", "iTXt deflated"]), steps=changes(PIECES, 4))
def test_changed_picture_is_a_card_or_refused(tmp_path: Path, kind: str, steps: list[Any]) -> None:
    import_and_read(tmp_path / "a", "a.png", changed(png_with(text_chunk("chara", base64_of(V2), kind)), steps))
