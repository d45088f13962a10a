"""`mrp card import`: character cards become characters of a cast file, with their files beside it.

    import_cards([Path("Shodan.png")], Path("cast.yaml"))

In `cards/` beside the cast: ID.json (the card as it was), ID.png (the picture, if the card was one), ID.jsonl (its
example dialogues as scenes). Every fault of every file is found before anything is written; then all is written, the
cast file last, or nothing.
"""

from __future__ import annotations

import filecmp
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrp.cards.card import Card, book_entries, clean_name, read_card, text_field
from mrp.cards.cast_file import new_cast_text, with_characters
from mrp.cards.character import Draft, draft_of, free_id
from mrp.cards.examples import example_scenes
from mrp.cards.png import SIGNATURE, is_png
from mrp.cast import RESERVED, Cast, Character, load_cast
from mrp.errors import InputError, ManyFaults, MrpError, raise_all
from mrp.files import replacing, replacing_binary
from mrp.report import SILENT, Reporter
from mrp.yamlfile import parse_yaml

FOLDER = "cards"  # beside the cast
LONG_PERSONA = 2000  # characters; much longer ones leave little of `train.max_tokens` for the dialogue
_HAN = re.compile("[\u4e00-\u9fff]")
_KANA_OR_HANGUL = re.compile("[\u3040-\u30ff\uac00-\ud7af]")


@dataclass(slots=True)
class Taken:
    """One card on its way into the cast."""

    source: Path
    card: Card
    draft: Draft
    character: Character | None = None
    scenes: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def import_cards(paths: Sequence[Path], cast_path: Path, report: Reporter = SILENT) -> dict[str, Any]:
    """Add the characters of these cards to the cast file (made if there is none), and give back what was done.

    Raises `InputError` or `ManyFaults`: unreadable files, broken cards, names that the cast has already, files in the
    way. Then nothing was written.
    """
    faults: list[MrpError] = []
    cast, cast_text = None, ""
    with _gathering(faults):
        cast, cast_text = _read_cast(cast_path)
    taken: list[Taken] = []
    for path in paths:
        with _gathering(faults):
            card = read_card(path)
            taken.append(Taken(path, card, draft_of(card), notes=list(card.notes)))
    language = cast.language if cast else _language(taken)
    _name_all(taken, cast, faults)
    for item in taken:
        if item.character:
            _fill(item, language)
    home = cast_path.parent / (cast.home if cast else "")
    for item in taken:
        faults += _in_the_way(item, home)
    raise_all("nothing was imported", faults)
    rows = [item.character.model_dump(exclude_defaults=True) for item in taken if item.character]
    text = with_characters(cast_text, str(cast_path), rows) if cast else new_cast_text(language, rows)
    Cast.model_validate(parse_yaml(text, str(cast_path)))
    _write_all(taken, home, cast_path, cast_text if cast else None, text)
    return _told(taken, cast_path, report)


@contextmanager
def _gathering(faults: list[MrpError]) -> Iterator[None]:
    """Errors of the block go to `faults`, so that the other files are looked at too."""
    try:
        yield
    except ManyFaults as error:
        faults += error.faults
    except MrpError as error:
        faults.append(error)


def _read_cast(path: Path) -> tuple[Cast | None, str]:
    """The cast and its text with the line ends it has; (None, "") where there is no such file."""
    if not path.exists() and not path.is_symlink():
        return None, ""
    return load_cast(path), path.read_bytes().decode("utf-8")


def _language(taken: Sequence[Taken]) -> str:
    """zh if the cards are written in Chinese, else en."""
    text = "".join(item.draft.name + item.draft.persona + item.draft.greeting for item in taken)
    han = len(_HAN.findall(text))
    return "zh" if 5 * han > len(text) and 10 * len(_KANA_OR_HANGUL.findall(text)) < han else "en"


def _name_all(taken: Sequence[Taken], cast: Cast | None, faults: list[MrpError]) -> None:
    """A `Character` for every card whose name is free: first all names, then ids and aliases that are none of them."""
    owners = {name.casefold(): f"{c.id!r} of the cast has it" for c in cast or () for name in c.names}
    named: list[Taken] = []
    for item in taken:
        name = item.draft.name
        if kept_for := RESERVED.get(name.casefold()):
            what = f"the name {name!r} is kept for {kept_for}"
            faults.append(InputError(what, str(item.source), "give the character another name in a card editor"))
        elif name.casefold() in owners:
            what = f"the name {name!r} is not free: {owners[name.casefold()]}"
            fix = "import it into another cast, take the other out, or rename one in a card editor"
            faults.append(InputError(what, str(item.source), fix))
        else:
            owners[name.casefold()] = f"the card {item.source} has it"
            named.append(item)
    for item in named:
        others = owners.keys() - {item.draft.name.casefold()}
        character_id = free_id(item.card, item.source.stem, others)
        aliases = [a for a in item.draft.aliases if a.casefold() not in others]
        left_out = [a for a in item.draft.aliases if a not in aliases]
        item.notes += [f"the alias {alias!r} is left out: somebody else in the cast has it" for alias in left_out]
        owners |= {known.casefold(): character_id for known in (character_id, item.draft.name, *aliases)}
        item.character = Character(id=character_id, name=item.draft.name, aliases=aliases)


def _fill(item: Taken, language: str) -> None:
    """All that the card says into the character, its example dialogues into scenes."""
    draft, character = item.draft, item.character
    assert character is not None
    item.scenes, notes = example_scenes(text_field(item.card.data, "mes_example"), draft, character.id, language)
    item.notes += [*notes, *_notes(item)]
    base = f"{FOLDER}/{character.id}"
    item.character = character.model_copy(
        update={
            "persona": draft.persona,
            "greeting": draft.greeting,
            "alternate_greetings": list(draft.alternate_greetings),
            "scenario": draft.scenario,
            "talkativeness": draft.talkativeness,
            "avatar": f"{base}.png" if _is_picture(item.source) else None,
            "dialogues": [f"{base}.jsonl"] if item.scenes else [],
            "lore": list(draft.lore),
            "card": f"{base}.json",
        }
    )


def _notes(item: Taken) -> list[str]:
    entries = book_entries(item.card.data)
    left_out = len(entries) - len(item.draft.lore)
    notes = []
    if left_out:
        notes.append(f"{left_out} lore entries are switched off, empty or without usable keys; they stay in the card")
    if len(item.draft.persona) > LONG_PERSONA:
        count = len(item.draft.persona)
        notes.append(
            f"the persona is long ({count:,} characters, in every sample): shorten it or raise train.max_tokens"
        )
    if not item.scenes:
        notes.append("the card has no example dialogues: list files with the character's lines under `dialogues:`")
    return notes


def _is_picture(path: Path) -> bool:
    with path.open("rb") as file:
        return is_png(file.read(len(SIGNATURE)))


def _contents(item: Taken, home: Path) -> dict[Path, str | Path]:
    """The files that a card brings: a text, or the file that is copied."""
    character = item.character
    if character is None or character.card is None:
        return {}
    files: dict[Path, str | Path] = {home / character.card: item.card.text}
    if character.avatar:
        files[home / character.avatar] = item.source
    for name in character.dialogues:
        lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in item.scenes]
        files[home / name] = "".join(lines)
    return files


def _in_the_way(item: Taken, home: Path) -> list[MrpError]:
    """A fault for each file that stands where one of this card's would, and is another."""
    fix = "move it away, or delete it if an earlier import left it"
    what = f"a file stands where one of {clean_name(item.draft.name)!r} would"
    return [
        InputError(what, str(path), fix)
        for path, content in _contents(item, home).items()
        if (path.exists() or path.is_symlink()) and not _is_same(path, content)
    ]


def _is_same(path: Path, content: str | Path) -> bool:
    try:
        if isinstance(content, Path):
            return filecmp.cmp(path, content, shallow=False)
        return path.read_bytes() == content.encode()
    except OSError:
        return False


def _write_all(taken: Sequence[Taken], home: Path, cast_path: Path, before: str | None, text: str) -> None:
    """Every file, the cast last; what was written goes away again if one cannot be."""
    written: list[Path] = []
    folders = [path for path in (home / FOLDER, home, cast_path.parent) if not path.exists()]
    try:
        for item in taken:
            for path, content in _contents(item, home).items():
                if path.exists():
                    continue  # the very same, as `_in_the_way` saw
                _write(path, content)
                written.append(path)
        if _read_cast(cast_path)[1] != (before or ""):
            raise InputError("the cast file changed while the cards were read", str(cast_path), "run the command again")
        with replacing(cast_path) as file:
            file.write(text)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        for folder in folders:
            with suppress(OSError):
                folder.rmdir()
        raise


def _write(path: Path, content: str | Path) -> None:
    if isinstance(content, str):
        with replacing(path) as text:
            text.write(content)
    else:
        with replacing_binary(path) as copy, content.open("rb") as source:
            shutil.copyfileobj(source, copy)


def _told(taken: Sequence[Taken], cast_path: Path, report: Reporter) -> dict[str, Any]:
    """What was done, told and as JSON."""
    rows = []
    for item in taken:
        character = item.character
        assert character is not None
        counts = {"scenes": len(item.scenes), "lore": len(character.lore)}
        report.line(
            f"{character.id}: {character.name} (V{item.card.version} card {item.source.name}),"
            f" {counts['scenes']} example scenes, {counts['lore']} lore entries"
        )
        for note in item.notes:
            report.warn(f"{character.id}: {note}")
        rows.append(
            {
                "id": character.id,
                "name": character.name,
                "version": item.card.version,
                "source": str(item.source),
                **counts,
                "notes": item.notes,
            }
        )
    report.line(f"wrote {cast_path}")
    return {"cast": str(cast_path), "characters": rows}
