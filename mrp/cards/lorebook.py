"""Lorebooks of others as lore entries: a card's `character_book`, and SillyTavern's world info files.

    entry_of(raw, lambda text: text)                 # None where it is switched off, empty, or cannot be used
    read_lorebook(Path("world.json"))                # the entries, and how many were left out

Both write the same things under other names; what an entry does not say has SillyTavern's default. Left out, as mrp
has one place for lore: `position`, `depth`, groups, recursion, delays.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from mrp.errors import InputError
from mrp.files import read_json
from mrp.lore import Logic, LoreEntry

LOGICS: tuple[Logic, ...] = ("and_any", "not_all", "not_any", "and_all")  # SillyTavern's numbers 0 to 3
FIX = "export the world info from SillyTavern again (World Info, Export)"


class Lorebook(NamedTuple):
    """What a file holds."""

    entries: list[LoreEntry]
    left_out: int  # switched off, empty, without keys, or with a pattern that is refused


def entry_of(raw: dict[str, Any], cleaned: Callable[[str], str] = str.strip) -> LoreEntry | None:
    """An entry of a character book or a world info file; None where nothing usable is in it."""
    if raw.get("enabled") is False or raw.get("disable") is True:
        return None
    more = raw.get("extensions") if isinstance(raw.get("extensions"), dict) else {}

    def found(*names: str) -> Any:
        """The first of these that the entry, or its extensions, says."""
        return next((place[n] for place in (raw, more or {}) for n in names if place.get(n) is not None), None)

    def number(*names: str) -> float | None:
        value = found(*names)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    fields: dict[str, Any] = {
        "keys": _texts(found("keys", "key"), cleaned),
        "text": cleaned(found("content") or ""),
        "constant": found("constant") is True,
    }
    if found("selective") is not False and (second := _texts(found("secondary_keys", "keysecondary"), cleaned)):
        fields["secondary"] = second
        logic = number("selectiveLogic")
        fields["logic"] = LOGICS[int(logic)] if logic in (0, 1, 2, 3) else "and_any"
    for name, names in (("regex", ("use_regex",)), ("case_sensitive", ("case_sensitive", "caseSensitive"))):
        fields[name] = found(*names) is True
    fields["whole_words"] = found("match_whole_words", "matchWholeWords") is not False
    for name, names in (
        ("order", ("insertion_order", "order")),
        ("scan_depth", ("scan_depth", "scanDepth")),
        ("sticky", ("sticky",)),
        ("cooldown", ("cooldown",)),
    ):
        value = number(*names)
        if value is not None and (name == "order" or value > 0):
            fields[name] = min(int(value), 100) if name == "scan_depth" else int(value)
    chance = number("probability")
    if chance is not None and found("useProbability") is not False:
        fields["probability"] = min(max(chance, 0.0), 100.0)
    try:
        return LoreEntry(**fields)
    except pydantic.ValidationError:  # no keys, no text, a pattern that is refused
        return None


def card_fields(entry: LoreEntry, before: LoreEntry, raw: dict[str, Any]) -> dict[str, Any]:
    """What a card's entry `raw` must say otherwise, so that it is read as `entry` and no longer as `before`."""
    changes: dict[str, Any] = {}
    more = dict(raw.get("extensions") or {})
    plain = {"keys": "keys", "text": "content", "constant": "constant", "case_sensitive": "case_sensitive"}
    plain |= {"regex": "use_regex", "order": "insertion_order"}
    extended = {"whole_words": "match_whole_words", "scan_depth": "scan_depth", "sticky": "sticky"}
    extended |= {"cooldown": "cooldown", "probability": "probability"}
    for name in LoreEntry.model_fields:
        value = getattr(entry, name)
        if value == getattr(before, name):
            continue
        if name in plain:
            changes[plain[name]] = value
        elif name == "secondary":
            changes |= {"secondary_keys": value, "selective": bool(value)}
        elif name == "logic":
            more["selectiveLogic"] = LOGICS.index(value)
        else:
            more[extended[name]] = value
            if name == "probability":
                more["useProbability"] = True
    return changes if more == (raw.get("extensions") or {}) else {**changes, "extensions": more}


def read_lorebook(path: Path) -> Lorebook:
    """The entries of a world info file, or of a character book alone. Raises `InputError` if it is neither."""
    value = read_json(path)
    if isinstance(value, dict) and isinstance(value.get("data"), dict):  # lorebook_v3
        value = value["data"]
    found = value.get("entries") if isinstance(value, dict) else None
    rows = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError("this is no lorebook: wanted is an object with `entries`", str(path), FIX)
    entries = [entry_of(row) for row in rows]
    used = [entry for entry in entries if entry is not None]
    return Lorebook(used, len(entries) - len(used))


def _texts(value: Any, cleaned: Callable[[str], str]) -> list[str]:
    texts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return [text for text in (cleaned(t) for t in texts if isinstance(t, str)) if text]
