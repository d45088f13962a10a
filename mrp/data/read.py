"""Dialogue files into scenes: one `Scene` or one `Rejected` for every line that is not blank.

    for result in read_dialogues(Path("wukong.jsonl"), cast, owner="wukong"):
        ...

Two formats, told apart by the keys of each line:

    {"conversation": [{"system": NAME, "input": TEXT, "output": TEXT}, ...]}                       XTuner's
    {"id", "participants", "scenario", "turns": [{"speaker", "text"} | {"enter": NAME}, ...]}      ours

First in the flow: `collect.py` takes what comes out, finds duplicates and gives every scene an id.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrp.cast import OTHER, Cast
from mrp.data.record import Faults, Names, Rejected, ascii_name
from mrp.dialogue import JsonLine, Scene, Turn, read_json_lines
from mrp.errors import nearest

XTUNER_KEYS = ("conversation",)
XTUNER_TURN_KEYS = ("system", "input", "output")
SCENE_KEYS = ("id", "participants", "scenario", "turns", "chapter", "title", "source")
NOTE_KEYS = ("chapter", "title", "source")  # for people; read past
TURN_KEYS = ("speaker", "role", "text", "enter")

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class ReadLine:
    """What became of one line: its text as it stands in the file, the result, and how many lines of dialogue in it
    were empty and left out (empty_prompt, empty_reply)."""

    text: str
    result: Scene | Rejected
    dropped: Counter[str]


def read_dialogues(
    path: Path, cast: Cast | None, owner: str | None = None, name: str = ""
) -> Iterator[Scene | Rejected]:
    """A `Scene` or a `Rejected` for each non-blank line of `path`, in the order of the file.

    `owner` is the id of the character that the file is listed under; `name` is what `source` calls the file (default:
    the path). A scene whose line gives no id has the id "". Without a cast the names in the file are taken as they
    are. Raises `InputError` if the file is missing, unreadable or empty; a bad line never raises.
    """
    for line in read_lines(path, cast, owner, name):
        yield line.result


def read_lines(path: Path, cast: Cast | None, owner: str | None = None, name: str = "") -> Iterator[ReadLine]:
    """As `read_dialogues`, with the text of each line and the count of what was left out of it."""
    names = Names(cast)
    for line in read_json_lines(path):
        source = f"{name or path}:{line.number}"
        dropped: Counter[str] = Counter()
        faults = Faults()
        scene = _scene(_value(line, faults), names, owner, source, faults, dropped)
        if faults.found:
            yield ReadLine(line.text, faults.rejected(source, line.text), Counter())
        else:
            yield ReadLine(line.text, scene, dropped)


def _value(line: JsonLine, faults: Faults) -> Any:
    """The line's JSON value.

    msgspec refuses lone surrogates, with a message about something else. So such a line is read once more by the
    standard library, and its texts are then refused where they stand.
    """
    if not line.fault:
        return line.value
    if _SURROGATE_ESCAPE.search(line.text):
        try:
            value = json.loads(line.text)
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return value
        except (ValueError, RecursionError):
            pass
    faults.add("broken-json", line.fault)
    return None


def _scene(value: Any, names: Names, owner: str | None, source: str, faults: Faults, dropped: Counter[str]) -> Scene:
    """The scene that a line's value holds; what is wrong with it is in `faults`."""
    nothing = Scene("", (), (), source=source)
    if faults.found:
        return nothing
    if isinstance(value, dict) and "conversation" in value:
        scene = _xtuner_scene(value, names, owner, source, faults, dropped)
    elif isinstance(value, dict) and "turns" in value:
        scene = _own_scene(value, names, source, faults, dropped)
    else:
        faults.mapping(value, "", (*XTUNER_KEYS, *SCENE_KEYS))
        if not faults.found:  # known keys, but nothing said
            faults.add("wrong-type", 'the line has neither "conversation" nor "turns"')
        return nothing
    if not faults.found and not any(names.is_character(speaker) for speaker in scene.speakers()):
        faults.add("no-reply", "no character says anything here")
    return scene


def _xtuner_scene(
    value: dict[str, Any], names: Names, owner: str | None, source: str, faults: Faults, dropped: Counter[str]
) -> Scene:
    """XTuner's format: `system` names the character, or holds a prompt, or is missing; texts may be empty or null."""
    faults.mapping(value, "", XTUNER_KEYS)
    character: str | None = owner
    turns: list[Turn] = []
    for index, item in enumerate(faults.items(value["conversation"], "conversation")):
        at = f"conversation[{index}]"
        pair = faults.mapping(item, at, XTUNER_TURN_KEYS)
        system, prompt, reply = (faults.text(pair.get(key), f"{at}.{key}", optional=True) for key in XTUNER_TURN_KEYS)
        character = _character(system, character, names, owner, f"{at}.system", faults)
        for speaker, text, kind in ((OTHER, prompt, "empty_prompt"), (character or OTHER, reply, "empty_reply")):
            if text:
                turns.append(Turn(speaker, text))
            else:
                dropped[kind] += 1
    speakers = dict.fromkeys(t.speaker for t in turns if t.speaker != OTHER)
    return Scene("", (*speakers, OTHER), tuple(turns), source=source)


def _character(system: str, before: str | None, names: Names, owner: str | None, at: str, faults: Faults) -> str | None:
    """Whose reply a turn holds; `before` is the character of the turn before (or the owner of the file)."""
    if not system:
        if before is None:
            faults.add("unknown-character", f"{at} is missing, and the file is listed under no character")
        return before
    named = names.character(system)
    if owner is not None:
        if named not in (None, owner):
            faults.add("other-character", f"{at} is {ascii_name(system)}, but the file is listed under {owner!r}")
        return owner
    if named is None:
        faults.add("unknown-character", f"{at} is {ascii_name(system)}: {nearest(system, names.known)}")
    return named


def _own_scene(value: dict[str, Any], names: Names, source: str, faults: Faults, dropped: Counter[str]) -> Scene:
    """Our format: whole scenes with a speaker for each line."""
    faults.mapping(value, "", SCENE_KEYS)
    for key in NOTE_KEYS:
        if not isinstance(value.get(key), int):
            faults.text(value.get(key), key, optional=True)
    scene_id = faults.name(value.get("id"), "id", optional=True)
    scenario = faults.text(value.get("scenario"), "scenario", optional=True)
    declared = _participants(value.get("participants"), names, faults)
    present = set(declared)
    turns: list[Turn] = []
    for index, item in enumerate(faults.items(value["turns"], "turns")):
        turn = _turn(item, f"turns[{index}]", names, faults)
        if turn is None:
            continue
        if turn.enters:
            present.add(turn.speaker)
        elif declared and turn.speaker not in present:
            detail = f"turns[{index}]: {ascii_name(turn.speaker)} is neither in participants nor has entered"
            faults.add("undeclared-speaker", detail)
        if turn.text or turn.enters:
            turns.append(turn)
        else:
            dropped["empty_reply" if names.is_character(turn.speaker) else "empty_prompt"] += 1
    head = declared or _present_from_start(turns)
    return Scene(scene_id, tuple(head), tuple(turns), scenario, source)


def _participants(value: Any, names: Names, faults: Faults) -> list[str]:
    """Who is declared at the head of a scene, each once; [] where nobody is."""
    if value is None:
        return []
    found = [faults.name(n, f"participants[{i}]") for i, n in enumerate(faults.items(value, "participants"))]
    return list(dict.fromkeys(names.speaker(name) for name in found if name))


def _turn(item: Any, at: str, names: Names, faults: Faults) -> Turn | None:
    """A line of a scene, or somebody's entrance; None where it is neither."""
    turn = faults.mapping(item, at, TURN_KEYS)
    if not turn:
        if item == {}:
            faults.add("wrong-type", f"{at} is empty")
        return None
    if "enter" in turn:
        if len(turn) > 1:
            faults.add("wrong-type", f"{at} has other keys beside enter")
        name = faults.name(turn["enter"], f"{at}.enter")
        return Turn(names.speaker(name), enters=True) if name else None
    if "speaker" in turn and "role" in turn:
        faults.add("wrong-type", f"{at} has both speaker and role")
    key = "role" if "role" in turn else "speaker"
    name = faults.name(turn.get(key), f"{at}.{key}")
    text = faults.text(turn.get("text"), f"{at}.text")
    return Turn(names.speaker(name), text) if name else None


def _present_from_start(turns: list[Turn]) -> list[str]:
    """Everybody who speaks, save those who enter before their first line."""
    entered: set[str] = set()
    head: dict[str, None] = {}
    for turn in turns:
        if turn.enters:
            entered.add(turn.speaker)
        elif turn.speaker not in entered:
            head[turn.speaker] = None
    return list(head)
