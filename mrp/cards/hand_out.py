"""`mrp card export`: a character of a cast as a card that other programs read, in a PNG or as JSON.

    export_card(load_run(Path("mrp.yaml")), "shodan", Path("Shodan.png"))

A PNG carries the card twice, as V2 (`chara`) and V3 (`ccv3`), in the character's picture. JSON keeps the version of
the card that the character came from. Fields that the cast does not hold come from that card, the others from the cast.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from mrp.cards.card import Card, read_card
from mrp.cards.character import edited_card, new_card
from mrp.cards.png import SIGNATURE, blank_png, is_png, write_with_texts
from mrp.cast import Character
from mrp.config import Run
from mrp.errors import InputError
from mrp.files import replacing, replacing_binary
from mrp.report import SILENT, Reporter


def export_card(run: Run, name: str, out: Path, report: Reporter = SILENT) -> dict[str, Any]:
    """Write the card of the character with this id, name or alias to `out` (.png or .json, replaced whole).

    Raises `InputError` for an unknown character, another kind of file, a kept card or picture that is broken or
    missing, and where `out` is one of the two.
    """
    character = run.cast.find(name, "CHARACTER")
    kind = out.suffix.lower()
    if kind not in (".png", ".json"):
        raise InputError(f"cards are .png or .json files, not {out.suffix or out.name!r}", str(out), "name OUT.png")
    for own in (character.card, character.avatar):
        if own and run.dialogue_path(own).resolve() == out.resolve():
            what = f"{out.name} is a file of the character itself"
            raise InputError(what, str(out), "choose another place: later exports compare with it")
    original = read_card(run.dialogue_path(character.card)) if character.card else None
    card = edited_card(original, character) if original else new_card(character)
    if kind == ".json":
        with replacing(out) as file:
            file.write(_json_text(card, original))
    else:
        _write_png(card, _picture(run, character, report), out)
    report.line(f"wrote {out}")
    return {"character": character.id, "file": str(out)}


def _json_text(card: Card, original: Card | None) -> str:
    """The card in its own version (V2 for a V1 card with fields that V1 lacks), as it was where nothing changed."""
    version = 2 if card.version == 1 and not card.fits_v1 else card.version
    value = card.as_json(version)
    if original and value == original.as_json(original.version):
        return original.text
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def _picture(run: Run, character: Character, report: Reporter) -> Path | None:
    """The character's picture if it is a PNG, else None (a small grey one is made)."""
    if not character.avatar:
        return None
    path = run.dialogue_path(character.avatar)
    fix = "correct `avatar:` in the cast, or take it out"
    if not path.is_file():
        raise InputError(f"the picture of {character.id!r} is not there", str(path), fix)
    try:
        with path.open("rb") as file:
            if is_png(file.read(len(SIGNATURE))):
                return path
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"cannot read the picture of {character.id!r}: {reason}", str(path), fix) from None
    report.warn(f"{path.name} is no PNG: the card gets a plain grey picture")
    return None


def _write_png(card: Card, picture: Path | None, out: Path) -> None:
    texts = {"chara": _chunk_text(card.as_json(2)), "ccv3": _chunk_text(card.as_json(3))}
    with picture.open("rb") if picture else io.BytesIO(blank_png()) as source, replacing_binary(out) as target:
        write_with_texts(source, str(picture or out), target, texts)


def _chunk_text(value: Any) -> bytes:
    return base64.b64encode(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
