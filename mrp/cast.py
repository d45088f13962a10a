"""The cast: the characters that one model plays.

cast = load_cast(Path("cast.yaml"))
cast["wukong"].persona            # by id
cast.find("Monkey King").id       # by id, name or alias
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pydantic
from pydantic import Field

from mrp.errors import InputError, MrpError, nearest, raise_all
from mrp.files import is_safe_id
from mrp.lore import LoreEntry
from mrp.yamlfile import KeyPath, StrictModel, check_value, key_lines, place_of, read_yaml

OTHER = "other"  # the speaker of a line when nobody knows who said it
PLAIN = "plain"  # the speaker of the replies in general chat data: the model itself, which plays nobody there
RESERVED = {OTHER: "unknown speakers", PLAIN: "the model itself, where it plays nobody"}  # no names for characters
NEUTRAL_NAME = {"en": "Someone", "zh": "旁人"}  # what such a speaker is called where names are shown
USER_MACRO = "{{user}}"  # in texts of a character: whoever talks with it
DEFAULT_PERSONA = {"en": "You are {name}.", "zh": "你是{name}。"}
OPENING = {"en": "(The scene begins.)", "zh": "（开场）"}  # stands for a scenario where there is none


class Character(StrictModel):
    """Somebody the model plays."""

    id: str
    """Short ASCII name for files and commands: letters, digits, "_", "-"."""
    name: str = Field(min_length=1)
    """The name as people write it."""
    aliases: list[str] = []
    """Other names; data may use them too."""
    persona: str = ""
    """The system prompt: who the character is, in two or three sentences."""
    greeting: str = ""
    """What the character says first in a chat."""
    alternate_greetings: list[str] = []
    """Other things it may say first instead."""
    scenario: str = ""
    """The setting that the character's card gives it; the scenes made of the card's examples carry it."""
    talkativeness: float = Field(0.5, ge=0, le=1)
    """How readily it speaks in a scene, for the natural director; a scene's own `talkativeness` wins."""
    avatar: str | None = None
    """A picture file."""
    dialogues: list[str] = []
    """Files with this character's dialogues."""
    lore: list[LoreEntry] = []
    """Facts the character knows: `text`, and `keys` (words that bring it up); more in [scenes.md](scenes.md)."""
    lorebooks: list[str] = []
    """Files with further lore: SillyTavern's world info (JSON)."""
    card: str | None = None
    """The character card that the character came from (JSON), kept whole for `mrp card export`."""

    @pydantic.field_validator("id")
    @classmethod
    def _id_is_safe(cls, value: str) -> str:
        if not is_safe_id(value):
            raise ValueError(f"the id {value!r} cannot be a file name|use ASCII letters, digits, '_' and '-'")
        if kept_for := RESERVED.get(value.casefold()):
            raise ValueError(f"the id {value.casefold()!r} is kept for {kept_for}|choose another id")
        return value

    @pydantic.field_validator("name", "aliases")
    @classmethod
    def _names_are_one_line(cls, value: str | list[str]) -> str | list[str]:
        for name in [value] if isinstance(value, str) else value:
            if not name.strip() or not name.isprintable():
                raise ValueError(f"{name!r} is no name|write a name on one line, or leave it out")
            if kept_for := RESERVED.get(name.strip().casefold()):
                raise ValueError(f"the name {name!r} is kept for {kept_for}|choose another name")
        return value.strip() if isinstance(value, str) else [name.strip() for name in value]

    @property
    def names(self) -> tuple[str, ...]:
        return (self.id, self.name, *self.aliases)


class Cast(StrictModel):
    """All characters of one model, with what they share."""

    language: Literal["en", "zh"] = "en"
    """Of the few words that mrp adds itself, such as the name of an unknown speaker."""
    home: str = ""
    """The folder where the paths in this file start, seen from the file; empty: where the file lies."""
    scenario: str = ""
    """The setting that every chat and scene starts from, unless a scene brings its own."""
    characters: list[Character] = Field(min_length=1)
    """See below."""
    dialogues: list[str] = []
    """Files with scenes of several characters."""
    lore: list[LoreEntry] = []
    """Facts that every character knows."""
    lorebooks: list[str] = []
    """Files with further lore for everybody."""

    def __getitem__(self, character_id: str) -> Character:
        for character in self.characters:
            if character.id == character_id:
                return character
        raise KeyError(character_id)

    def __iter__(self) -> Iterator[Character]:  # type: ignore[override]  # characters, not pydantic's (key, value)
        return iter(self.characters)

    def get(self, name: str) -> Character | None:
        """The character with this id, name or alias (case and outer space do not matter), or None."""
        wanted = name.strip().casefold()
        for character in self.characters:
            if any(wanted == known.casefold() for known in character.names):
                return character
        return None

    def find(self, name: str, where: str = "") -> Character:
        """As `get`, but raises `InputError` with the nearest name."""
        found = self.get(name)
        if found is None:
            known = [n for c in self.characters for n in c.names]
            raise InputError(f"no character {name!r} in the cast", where, nearest(name, known))
        return found

    def display_name(self, speaker: str) -> str:
        """How a speaker (id of the cast, or a name of somebody else) is called in a text."""
        if speaker == OTHER:
            return NEUTRAL_NAME[self.language]
        found = self.get(speaker)
        return found.name if found else speaker

    def persona(self, character_id: str) -> str:
        """The identity text of a character: its persona, or "You are NAME." where none is written.

        It is the same in every chat, so `{{user}}` in it is the neutral name.
        """
        character = self[character_id]
        written = fill_user(character.persona.strip(), NEUTRAL_NAME[self.language])
        return written or DEFAULT_PERSONA[self.language].format(name=character.name)


def fill_user(text: str, name: str) -> str:
    """`text` with the name of whoever talks with the character, where it says {{user}} (as character cards do)."""
    return text.replace(USER_MACRO, name)


def load_cast(path: Path) -> Cast:
    """Read `cast.yaml`; raises `InputError` with every fault (unknown keys, ids or names used twice)."""
    lines = key_lines(path)
    value = read_yaml(path)
    cast = check_value(value, Cast, path, lines)
    faults: list[MrpError] = []
    owners: dict[str, int] = {}  # of a name, whatever its case: the number of its character
    for index, character in enumerate(cast.characters):
        keys: list[tuple[str | int, ...]] = [
            ("id",),
            ("name",),
            *(("aliases", k) for k in range(len(character.aliases))),
        ]
        for name, key in zip(character.names, keys, strict=True):
            owner = owners.setdefault(name.casefold(), index)
            if owner != index:
                known = cast.characters[owner].id
                both_ids = key == ("id",) and name.casefold() == known.casefold()
                what = f"the id {name!r} is used twice" if both_ids else f"{name!r} is also a name of {known!r}"
                where = place_of(path, lines, ("characters", index, *key))
                faults.append(InputError(what, where, "give each character names that no other has"))
    cast = _with_lorebooks(cast, path, lines, faults)
    raise_all(path.name, faults)
    return cast


def _with_lorebooks(cast: Cast, path: Path, lines: dict[KeyPath, int], faults: list[MrpError]) -> Cast:
    """The cast with the entries of its lorebooks as lore of its own, so that whatever keeps the cast keeps them."""
    from mrp.cards.lorebook import read_lorebook

    def read(names: list[str], *at: str | int) -> list[LoreEntry]:
        entries: list[LoreEntry] = []
        for k, name in enumerate(names):
            try:
                entries += read_lorebook(path.parent / cast.home / name).entries
            except InputError as error:
                where = place_of(path, lines, (*at, "lorebooks", k))
                faults.append(InputError(f"{error.what} ({error.where})", where, error.fix))
        return entries

    if not cast.lorebooks and not any(character.lorebooks for character in cast.characters):
        return cast
    characters = [
        character.model_copy(
            update={"lore": [*character.lore, *read(character.lorebooks, "characters", k)], "lorebooks": []}
        )
        for k, character in enumerate(cast.characters)
    ]
    shared = [*cast.lore, *read(cast.lorebooks)]
    return cast.model_copy(update={"characters": characters, "lore": shared, "lorebooks": []})
