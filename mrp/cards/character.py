"""Between a card and a `Character`: what a card says in the cast's words, and the cast's changes back in the card's.

    draft = draft_of(card)                     # name, persona, greeting, lore ... as the cast will hold them
    edited_card(card, character).data          # the card, with what differs from its draft taken from the character

Export compares the character with the draft of its own card: what is equal keeps the card's wording (macros, the two
fields that became one persona, entries that the cast cannot hold), what differs comes from the cast.
"""

from __future__ import annotations

import copy
import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from mrp.cards.card import Card, book_entries, clean_name, text_field
from mrp.cards.lorebook import card_fields, entry_of
from mrp.cast import RESERVED, USER_MACRO, Character
from mrp.files import is_safe_id
from mrp.lore import LoreEntry

OWN_EXTENSION = "mrp_llm"  # under "extensions": what a card has no field for (aliases, id)
CHAR = r"\{\{\s*char\s*\}\}|<char>|<bot>"
USER = r"\{\{\s*user\s*\}\}|<user>"
TALKATIVENESS: float = Character.model_fields["talkativeness"].default
LONGEST_ID = 40  # made of a name
_CHAR, _USER = re.compile(CHAR, re.IGNORECASE), re.compile(USER, re.IGNORECASE)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # everything of class Cc but tab and line feed


@dataclass(frozen=True, slots=True)
class Draft:
    """What a card says, as a cast holds it."""

    name: str
    called: str  # what {{char}} stands for: the nickname where there is one (so V3 says), else the name
    aliases: tuple[str, ...]
    persona: str
    greeting: str
    alternate_greetings: tuple[str, ...]
    scenario: str
    talkativeness: float
    lore: tuple[LoreEntry, ...]
    lore_places: tuple[int, ...]  # for each of `lore`, its place among the entries of the card


def draft_of(card: Card, name: str = "") -> Draft:
    """The card's words as a cast holds them; `name` instead of the card's own."""
    data = card.data
    name = name or clean_name(text_field(data, "name"))
    nickname = clean_name(text_field(data, "nickname"))
    called = nickname or name

    def text(key: str) -> str:
        return clean_text(text_field(data, key), called)

    greetings = (clean_text(greeting, called) for greeting in data.get("alternate_greetings") or [])
    found = [(k, _lore_entry(entry, called)) for k, entry in enumerate(book_entries(data))]
    lore = [(k, entry) for k, entry in found if entry is not None]
    return Draft(
        name=name,
        called=called,
        aliases=_aliases(data, name, nickname),
        persona="\n\n".join(part for part in (text("description"), text("personality")) if part),
        greeting=text("first_mes"),
        alternate_greetings=tuple(greeting for greeting in greetings if greeting),
        scenario=text("scenario"),
        talkativeness=_talkativeness(data),
        lore=tuple(entry for _, entry in lore),
        lore_places=tuple(k for k, _ in lore),
    )


def _talkativeness(data: dict[str, Any]) -> float:
    """SillyTavern's, a number or a text with one; where it is neither, or not of 0 to 1, what the cast holds else."""
    written: Any = (data.get("extensions") or {}).get("talkativeness")
    try:
        value = float(written)
    except (TypeError, ValueError):
        return TALKATIVENESS
    return value if 0 <= value <= 1 else TALKATIVENESS


def clean_text(text: str, called: str) -> str:
    """A text of a card: {{char}} filled in, {{user}} in that one spelling, LF line ends, no control characters."""
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _CHAR.sub(lambda _: called, text)
    return _USER.sub(lambda _: USER_MACRO, text).strip()


def _own(data: dict[str, Any]) -> dict[str, Any]:
    own = (data.get("extensions") or {}).get(OWN_EXTENSION)
    return own if isinstance(own, dict) else {}


def _aliases(data: dict[str, Any], name: str, nickname: str) -> tuple[str, ...]:
    written = _own(data).get("aliases")
    if not isinstance(written, list):
        written = [nickname]
    aliases = dict.fromkeys(clean_name(alias) for alias in written if isinstance(alias, str))
    return tuple(a for a in aliases if a and a != name and a.casefold() not in RESERVED)


def _lore_entry(entry: dict[str, Any], called: str) -> LoreEntry | None:
    """An entry of a character book as lore; None where it is switched off, empty, or nothing usable brings it up."""
    return entry_of(entry, lambda text: clean_text(text, called))


def free_id(card: Card, stem: str, taken: Collection[str]) -> str:
    """A readable id that no name in `taken` (casefolded) is: of the id the card brings, its name, else the file's."""
    brought = _own(card.data).get("id")
    candidates = [brought if isinstance(brought, str) and is_safe_id(brought) else ""]
    candidates += [_ascii_id(text) for text in (text_field(card.data, "name"), text_field(card.data, "nickname"), stem)]
    base = next((c for c in candidates if c and c.casefold() not in RESERVED), "character")
    number, found = 1, base
    while found.casefold() in taken or not is_safe_id(found):
        number += 1
        found = f"{base[:LONGEST_ID]}-{number}"
    return found


def _ascii_id(text: str) -> str:
    """The ASCII letters and digits of a text, accents taken off: "Zoë O'Neil" as zoe-o-neil.

    "" where most letters have no ASCII form, as what is left of 孙悟空-V2 names nobody.
    """
    plain = unicodedata.normalize("NFKD", text)
    letters = [c for c in plain if c.isalnum()]
    ascii_letters = [c for c in letters if c.isascii()]
    if not ascii_letters or 2 * len(ascii_letters) < len(letters):
        return ""
    kept = "".join(c for c in plain if not unicodedata.combining(c)).replace("'", "-").replace("’", "-").lower()
    return re.sub(r"[^a-z0-9_]+", "-", kept)[:LONGEST_ID].strip("-")


def edited_card(card: Card, character: Character) -> Card:
    """The card with everything that the cast says otherwise: importing it again gives this character's texts."""
    data, top = copy.deepcopy(card.data), dict(card.top)
    if character.name != draft_of(card).name:
        data["name"] = character.name
    named = draft_of(card, character.name)
    if character.persona.strip() != named.persona:
        data |= {"description": character.persona.strip(), "personality": ""}
    if character.greeting.strip() != named.greeting:
        data["first_mes"] = character.greeting.strip()
    if character.scenario.strip() != named.scenario:
        data["scenario"] = character.scenario.strip()
    if tuple(character.alternate_greetings) != named.alternate_greetings:
        data["alternate_greetings"] = list(character.alternate_greetings)
    if character.talkativeness != named.talkativeness:
        data["extensions"] = {**(data.get("extensions") or {}), "talkativeness": character.talkativeness}
    if tuple(character.lore) != named.lore:
        book = data.get("character_book") or {"extensions": {}}
        data["character_book"] = {**book, "entries": _edited_entries(book_entries(data), named, character.lore)}
    if tuple(character.aliases) != named.aliases:
        _set_own(data, "aliases", list(character.aliases))
    for key in card.data:  # programs write V1's fields at the top of a V2 card too
        if key in top and top[key] == card.data[key]:
            top[key] = data[key]
    return Card(card.version, data, top)


def new_card(character: Character) -> Card:
    """A V3 card for a character that came from none."""
    empty = Card(1, {"name": character.name}, {})
    data = edited_card(empty, character).data
    _set_own(data, "id", character.id)
    return Card(3, Card(2, data, {}).as_json(3)["data"], {"spec_version": "3.0"})


def _set_own(data: dict[str, Any], key: str, value: Any) -> None:
    data["extensions"] = {**(data.get("extensions") or {}), OWN_EXTENSION: {**_own(data), key: value}}


def _edited_entries(entries: list[dict[str, Any]], draft: Draft, lore: list[LoreEntry]) -> list[dict[str, Any]]:
    """The cast's lore as entries: an entry of the card keeps its other fields; those the cast cannot hold follow."""
    originals = dict(zip(draft.lore_places, draft.lore, strict=True))
    unused = dict(originals)
    result: list[dict[str, Any]] = []
    for wanted in lore:
        place = _nearest_place(wanted, unused)
        if place is None:
            fresh = {"extensions": {}, "enabled": True, "insertion_order": wanted.order, "use_regex": False}
            made = {"keys": wanted.keys, "content": wanted.text, "constant": wanted.constant, **fresh}
            result.append({**made, **card_fields(wanted, entry_of(made) or wanted, made)})
        else:
            result.append({**entries[place], **card_fields(wanted, unused.pop(place), entries[place])})
    return result + [entry for k, entry in enumerate(entries) if k not in originals]


def _nearest_place(wanted: LoreEntry, unused: dict[int, LoreEntry]) -> int | None:
    """The place of the entry that `wanted` is: the same, else one with its keys, else one with its text."""
    for alike in (
        [k for k, entry in unused.items() if entry == wanted],
        [k for k, entry in unused.items() if entry.keys == wanted.keys],
        [k for k, entry in unused.items() if entry.text == wanted.text],
    ):
        if alike:
            return alike[0]
    return None
