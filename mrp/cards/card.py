"""A character card: the JSON of V1 (flat), V2 and V3, as one `Card`, and back to JSON.

    card = read_card(Path("Shodan.png"))
    card.version, card.data["name"]          # (2, "Shodan")
    card.as_json(3)["spec"]                  # "chara_card_v3"

V1 knows six fields; V2 and V3 hold theirs under "data", with "spec" beside it. In a PNG the JSON stands in base64 in
the text chunk `ccv3` (V3) or `chara` (V2, V1); `ccv3` wins. Fields that nobody knows stay as they are.
Specifications: github.com/malfoyslastname/character-card-spec-v2, github.com/kwaroran/character-card-spec-v3.
"""

from __future__ import annotations

import base64
import binascii
import copy
import json
import math
import re
import reprlib
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrp.cards.png import SIGNATURE, is_png, read_texts
from mrp.errors import InputError, MrpError, raise_all

V1_FIELDS = ("name", "description", "personality", "scenario", "first_mes", "mes_example")
V2_TEXTS = ("creator_notes", "system_prompt", "post_history_instructions", "creator", "character_version")
SPECS = {2: ("chara_card_v2", "2.0"), 3: ("chara_card_v3", "3.0")}
CHUNKS = ("ccv3", "chara")  # the first that is there is the card
MAX_CARD_BYTES = 8 * 2**20  # of the JSON
MAX_DEPTH = 100  # of lists and objects within each other
MAX_FAULTS = 1000  # of one card; more are not looked for
SHOWN_KEY = 40  # characters of a key in a message
EDIT = "correct the value in a card editor, or in the card's JSON, and import that"


@dataclass(frozen=True, slots=True)
class Card:
    """A card: the fields that V2 keeps under "data", and what stands beside them at the top."""

    version: int  # 1, 2 or 3
    data: dict[str, Any]
    top: dict[str, Any]  # other keys of the outermost object, "spec_version" included
    text: str = ""  # the JSON as it was read
    notes: tuple[str, ...] = ()  # what a person should know about the reading

    def as_json(self, version: int) -> dict[str, Any]:
        """The card as V1, V2 or V3; what V2 and V3 want and the card lacks is added empty.

        V1 takes only what V1 knows and what stands at the top: ask for it where `fits_v1` holds.
        """
        data, top = copy.deepcopy(self.data), copy.deepcopy(self.top)
        if version == 1:
            return {**data, **top}
        spec, spec_version = SPECS[version]
        if version == self.version:  # as it was written, "2.1" or unusual types included
            return {"spec": spec, **top, "data": data}
        return {**top, "spec": spec, "spec_version": spec_version, "data": _completed(data, version)}

    @property
    def fits_v1(self) -> bool:
        return self.version == 1 and set(self.data) <= set(V1_FIELDS)


def _completed(data: dict[str, Any], version: int) -> dict[str, Any]:
    """`data` with every field that the specification wants."""
    empty: dict[str, Any] = dict.fromkeys((*V1_FIELDS, *V2_TEXTS), "")
    empty |= {"alternate_greetings": [], "tags": [], "extensions": {}}
    if version == 3:
        empty["group_only_greetings"] = []
        for entry in book_entries(data):
            entry.setdefault("use_regex", False)
    return {**data, **{key: value for key, value in empty.items() if data.get(key) is None}}


def text_field(data: dict[str, Any], key: str) -> str:
    """A text of a checked card; "" where it is missing or null."""
    value = data.get(key)
    return value if isinstance(value, str) else ""


def book_entries(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of a checked card's character book; [] where it has none."""
    return list((data.get("character_book") or {}).get("entries") or [])


def read_card(path: Path) -> Card:
    """The card in a PNG or JSON file. Raises `InputError` (or `ManyFaults`) with what is wrong, and where."""
    where = str(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a folder, or a pipe that may never end
            raise InputError("not an ordinary file", where, "name a PNG or JSON file that holds a character card")
        with path.open("rb") as file:
            head = file.read(len(SIGNATURE))
            file.seek(0)
            if is_png(head):
                return _card_of_texts(read_texts(file, where, CHUNKS), where)
            return _card_of_file(file.read(MAX_CARD_BYTES + 1), where)
    except FileNotFoundError:
        raise InputError(f"no such file: {path.name}", where, "check the path") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"cannot read {path.name}: {reason}", where, "name a readable file") from None


def _card_of_texts(texts: dict[str, bytes], where: str) -> Card:
    for keyword in CHUNKS:
        if keyword in texts:
            place = f"{where}, chunk {keyword!r}"
            try:
                raw = base64.b64decode(b"".join(texts[keyword].split()), validate=True)
            except binascii.Error as error:
                fix = "the card is damaged: get the PNG anew, or save the card again in a card editor"
                raise InputError(f"the card is not base64 ({error})", place, fix) from None
            return parse_card(raw, place)
    fix = "programs that re-save or shrink pictures drop the card: get the original file"
    raise InputError("the picture holds no character card (no chunk 'chara' or 'ccv3')", where, fix)


def _card_of_file(raw: bytes, where: str) -> Card:
    if not raw.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        fix = "cards are PNG or JSON files; export other kinds (WEBP, CHARX) from a card editor as one of them"
        raise InputError("neither a PNG nor a JSON object" if raw else "the file is empty", where, fix)
    return parse_card(raw, where)


def parse_card(raw: bytes, where: str) -> Card:
    """The card in JSON bytes. Raises `InputError` (or `ManyFaults`) naming the fields that are wrong."""
    if len(raw) > MAX_CARD_BYTES:
        fix = f"a card may have {MAX_CARD_BYTES:,} bytes; take pictures and sounds out of its JSON"
        raise InputError("the card is too long", where, fix)
    try:
        text = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})", where, "save the card's JSON as UTF-8") from None
    repeated: set[str] = set()
    value = _parse_json(text, where, repeated)
    card = _card_of(value, text, where)
    if repeated:
        keys = ", ".join(sorted(repr(key[:40]) for key in repeated)[:5])
        note = f"{where}: keys stand twice in one object ({keys}); the last of each counts"
        return Card(card.version, card.data, card.top, text, (note,))
    return card


def _parse_json(text: str, where: str, repeated: set[str]) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            seen: set[str] = set()
            repeated.update(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return found

    def number(digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            raise ValueError(f"the number {digits[:40]} is too large")
        return value

    def constant(name: str) -> float:
        raise ValueError(f"{name} is not JSON")

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_float=number, parse_constant=constant)
    except RecursionError:
        raise _too_deep(where) from None
    except json.JSONDecodeError as error:
        place = f"{where}, line {error.lineno}, column {error.colno} of the JSON"
        raise InputError(f"broken JSON: {error.msg}", place, "correct it there, or get the card anew") from None
    except ValueError as error:
        raise InputError(f"broken JSON: {error}", where, EDIT) from None
    _check_texts_and_depth(value, where)
    return value


def _too_deep(where: str) -> InputError:
    return InputError(f"the JSON goes deeper than {MAX_DEPTH} levels", where, "no card needs that: get it anew")


_SURROGATE = re.compile("[\ud800-\udfff]")


def _check_texts_and_depth(value: Any, where: str) -> None:
    """Refuse what UTF-8 cannot write (halves of surrogate pairs), and nesting that could stop a later writer."""
    faults: list[MrpError] = []
    stack: list[tuple[str, Iterator[tuple[str, Any]]]] = [("", iter([("", value)]))]  # a path, and what is below it
    while stack and len(faults) < MAX_FAULTS:
        at, children = stack[-1]
        name, item = next(children, ("", None))
        if name == "" and item is None:
            stack.pop()
            continue
        for text, place in ((name, f"{at} (a key)"), (item, at + name)):
            found = _SURROGATE.search(text) if isinstance(text, str) else None
            if found:
                what = f"half of a character (lone surrogate U+{ord(found.group()):04X})"
                faults.append(InputError(what, f"{where}: {_printable(place.lstrip('.'))}", EDIT))
        if isinstance(item, dict):
            stack.append((at + name[:SHOWN_KEY], ((f".{key}", child) for key, child in item.items())))
        elif isinstance(item, list):
            stack.append((at + name[:SHOWN_KEY], ((f"[{k}]", child) for k, child in enumerate(item))))
        if len(stack) > MAX_DEPTH + 1:
            raise _too_deep(where)
    raise_all("the card has broken texts", faults)


def _printable(text: str) -> str:
    """A text that may hold surrogates, fit for every terminal."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _card_of(value: Any, text: str, where: str) -> Card:
    """The card that a JSON value holds, its known fields checked."""
    fix = 'a card has "name" and "description" (V1), or "spec" and "data" (V2, V3)'
    if not isinstance(value, dict):
        raise InputError("the JSON is no character card: not an object", where, fix)
    spec = value.get("spec")
    if spec is None:
        if "data" in value:
            what = 'the JSON has "data" but no "spec": which version it is cannot be known'
            raise InputError(what, where, 'add "spec": "chara_card_v2" if it is a card')
        if "name" not in value or not any(key in value for key in V1_FIELDS[1:]):
            raise InputError("the JSON is no character card", where, fix)
        data = {key: item for key, item in value.items() if key in V1_FIELDS}
        top = {key: item for key, item in value.items() if key not in V1_FIELDS}
        return _checked(Card(1, data, top, text), "", where)
    version = next((number for number, (name, _) in SPECS.items() if name == spec), 0)
    if not version:
        known = " and ".join(name for name, _ in SPECS.values())
        what = f"unknown kind of card: spec is {str(spec)[:40]!r}"
        raise InputError(what, f"{where}: spec", f"known are {known}, and V1 without spec")
    if not isinstance(value.get("data"), dict):
        raise InputError('the card has no object "data"', f"{where}: data", EDIT)
    top = {key: item for key, item in value.items() if key not in ("spec", "data")}
    return _checked(Card(version, value["data"], top, text), "data.", where)


def _checked(card: Card, prefix: str, where: str) -> Card:
    """The card, if every field that mrp reads has the type it should; raises all faults at once."""
    faults: list[MrpError] = []

    def want(value: Any, at: str, kind: type, optional: bool = True) -> bool:
        if isinstance(value, kind):
            return True
        if not (optional and value is None) and len(faults) < MAX_FAULTS:
            names = {str: "a text", list: "a list", dict: "an object", bool: "true or false"}
            what = f"wanted is {names[kind]}, not {reprlib.repr(value)}"
            faults.append(InputError(what, f"{where}: {prefix}{at}", EDIT))
        return False

    data = card.data
    for key in (*V1_FIELDS, "nickname"):
        want(data.get(key), key, str)
    if data.get("name") is None or (isinstance(data["name"], str) and not clean_name(data["name"])):
        faults.append(InputError("the card has no name", f"{where}: {prefix}name", EDIT))
    want(data.get("extensions"), "extensions", dict)
    if want(data.get("alternate_greetings"), "alternate_greetings", list):
        for k, greeting in enumerate(data["alternate_greetings"]):
            want(greeting, f"alternate_greetings[{k}]", str, optional=False)
    if want(data.get("character_book"), "character_book", dict):
        _check_book(data["character_book"], want)
    raise_all("the card has wrong fields", faults)
    return card


def _check_book(book: dict[str, Any], want: Callable[..., bool]) -> None:
    if not want(book.get("entries"), "character_book.entries", list):
        return
    for k, entry in enumerate(book["entries"]):
        at = f"character_book.entries[{k}]"
        if not want(entry, at, dict, optional=False):
            continue
        want(entry.get("content"), f"{at}.content", str)
        want(entry.get("enabled"), f"{at}.enabled", bool)
        want(entry.get("constant"), f"{at}.constant", bool)
        if want(entry.get("keys"), f"{at}.keys", list):
            for n, key in enumerate(entry["keys"]):
                want(key, f"{at}.keys[{n}]", str, optional=False)


def clean_name(text: str) -> str:
    """A name on one line, without blanks around it and signs that cannot be printed; "" where nothing is left."""
    return " ".join("".join(c for c in text if c.isprintable() or c.isspace()).split())
