"""Dialogue files into scenes: one `Scene` or one `Rejected` for every line that is not blank.

    for result in read_dialogues(Path("wukong.jsonl"), cast, owner="wukong"):
        ...

Our own format is here; those of others, told apart by the keys of each line, are in `formats.py`:

    {"id", "participants", "scenario", "turns": [{"speaker", "text"} | {"enter": NAME}, ...]}

A file may also be one JSON array of any of them (`array.py`), one object (`objects.py`), one chat of SillyTavern
(`chat.py`), a play script (`script.py`), a text as ChatHaruhi writes it (`haruhi.py`), or a table (`columns.py`); books
of CoSER (`coser.py`) hold many scenes. `detect.py` tells which. First in the flow: what comes out goes on to building.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from mrp.cast import PLAIN, Cast
from mrp.data import coser
from mrp.data.array import read_json_array
from mrp.data.chat import FORMAT as CHAT_FORMAT
from mrp.data.chat import Part, read_chat
from mrp.data.columns import choose_columns, table_records
from mrp.data.csvfile import read_csv
from mrp.data.detect import Kind, detect
from mrp.data.formats import EXCHANGE_KEYS, FORMATS, Talk, format_of
from mrp.data.haruhi import FORMAT as HARUHI_FORMAT
from mrp.data.haruhi import read_haruhi
from mrp.data.objects import read_json_objects
from mrp.data.parquet import column_names, read_parquet
from mrp.data.record import Faults, Names, Rejected, ascii_name
from mrp.data.script import FORMAT as SCRIPT_FORMAT
from mrp.data.script import read_script
from mrp.data.stream import TOO_LONG, is_packed
from mrp.data.window import Places
from mrp.dialogue import JsonLine, Scene, Span, Turn, read_json_lines
from mrp.errors import InputError, nearest

OWN_FORMAT, OWN_KEY = "scene", "turns"
TELLING_KEYS = (*FORMATS, OWN_KEY)  # one of them tells the format of a line
SCENE_KEYS = ("id", "participants", "scenario", "turns", "chapter", "title", "source")
NOTE_KEYS = ("chapter", "title", "source")  # for people; read past
TURN_KEYS = ("speaker", "role", "text", "enter", "leave")

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class ReadLine(msgspec.Struct, frozen=True):
    """What became of one line: its text as it stands in the file, the result, and how many lines of dialogue in it
    were left out (empty_prompt, empty_reply, system_text). `kind` is the format it is in ("" where none is known)."""

    text: str
    result: Scene | Rejected
    dropped: Counter[str]
    kind: str = ""


def read_dialogues(
    path: Path, cast: Cast | None, owner: str | None = None, name: str = ""
) -> Iterator[Scene | Rejected]:
    """A `Scene` or a `Rejected` for each non-blank line (or element of the array) of `path`, in the order of the file.

    `owner` is the id of the character that the file is listed under; `name` is what `source` calls the file (default:
    the path). A scene whose line gives no id has the id "". Without a cast the names in the file are taken as they
    are. Raises `InputError` if the file is missing, unreadable or empty; a bad line never raises.
    """
    for line in read_lines(path, cast, owner, name):
        yield line.result


def lines_stand_alone(path: Path) -> bool:
    """True for a plain file whose lines are dialogues each for itself: it may be read in parts."""
    return detect(path) == "lines" and not is_packed(path)


def read_lines(
    path: Path,
    cast: Cast | None,
    owner: str | None = None,
    name: str = "",
    span: Span | None = None,
    columns: Mapping[str, str] | None = None,
    nobody: str | None = None,
) -> Iterator[ReadLine]:
    """As `read_dialogues`, with the text of each line and the count of what was left out of it.

    `span` is a part of a file whose lines stand alone; such a part may be empty. `columns` says what the columns of a
    table mean (`columns.KNOWN` -> name). `nobody` is whose the replies are where nothing says it.
    """
    names = Names(cast, nobody)
    if span:
        yield from _read_records(_numbered(read_json_lines(path, span)), names, owner, name or str(path))
        return
    kind = detect(path)
    if kind == "chat":
        yield from _part_lines(read_chat(path, names, owner, name or str(path)), names, CHAT_FORMAT)
    elif kind == "script":
        yield from _part_lines(read_script(path, names, name or str(path)), names, SCRIPT_FORMAT)
    elif kind == "haruhi":
        yield from _part_lines(read_haruhi(path, names, name or str(path)), names, HARUHI_FORMAT)
    elif kind in ("csv", "parquet"):
        yield from _table_lines(path, kind, names, owner, name or str(path), columns)
    else:
        yield from _read_records(_records(path, kind), names, owner, name or str(path))


def _read_records(
    records: Iterable[tuple[str, JsonLine]], names: Names, owner: str | None, file: str
) -> Iterator[ReadLine]:
    books: Places | None = None
    for place, line in records:
        source = f"{file}:{place}"
        dropped: Counter[str] = Counter()
        faults = Faults()
        value = _value(line, faults)
        if coser.is_coser(value):
            books = books or Places()
            yield from _book_lines(value, line, books, names, file)
            continue
        kind, scene = _scene(value, names, owner, source, faults, dropped)
        if faults.found:
            yield ReadLine(line.text, faults.rejected(source, line.text), Counter(), kind)
        else:
            yield ReadLine(line.text, scene, dropped, kind)


def _part_lines(parts: Iterable[Part | Rejected], names: Names, kind: str) -> Iterator[ReadLine]:
    """The parts of a file that is a dialogue as a whole, each as if it were a line."""
    for part in parts:
        if isinstance(part, Rejected):
            yield ReadLine(part.text, part, Counter(), kind)
            continue
        faults = Faults()
        scene = part.scene()
        _need_reply(scene, names, faults)
        result = faults.rejected(part.source, part.text) if faults.found else scene
        yield ReadLine(part.text, result, Counter() if faults.found else +part.dropped, kind)


def _need_reply(scene: Scene, names: Names, faults: Faults) -> None:
    if faults.found:
        return
    for turn in scene.turns:
        if turn.is_line and names.is_character(turn.speaker):
            return
    faults.add("no-reply", "no character says anything here")


def _book_lines(value: Any, line: JsonLine, places: Places, names: Names, file: str) -> Iterator[ReadLine]:
    """Each conversation of a book (or a part of one) as if it were a line: 12, 12#2, ..."""
    around = Faults()  # of what stands around the conversations
    is_empty = True
    for at, conversation in coser.conversations(value, around):
        is_empty = False
        source = f"{file}:{places.next(line.number)}"
        faults, dropped = Faults(), Counter[str]()
        scene = coser.read_conversation(conversation, at, names, source, faults, dropped)
        _need_reply(scene, names, faults)
        text = coser.shown(conversation)
        if faults.found:
            yield ReadLine(text, faults.rejected(source, text), Counter(), coser.FORMAT)
        else:
            yield ReadLine(text, scene, +dropped, coser.FORMAT)
    if is_empty and not around.found:
        around.add("no-reply", "no conversation is in it")
    if around.found:
        source = f"{file}:{places.next(line.number)}"
        yield ReadLine(line.text, around.rejected(source, line.text), Counter(), coser.FORMAT)


def _table_lines(
    path: Path, kind: Kind, names: Names, owner: str | None, file: str, given: Mapping[str, str] | None
) -> Iterator[ReadLine]:
    """The dialogues of a table, by the line (CSV) or the number of the row (Parquet) on which they begin."""
    if kind == "csv":
        column_list, rows = read_csv(path)
        columns = choose_columns(column_list, given, str(path))
    else:
        columns = choose_columns(column_names(path), given, str(path))
        rows = read_parquet(path, list(dict.fromkeys(columns.of.values())))
    if names.is_open and "character" in columns.of:
        names = Names(None, names.nobody or "")  # a system text beside the character's name is no other name
    is_empty = True
    for record in table_records(rows, columns):
        is_empty = False
        source = f"{file}:{record.line}"
        faults, dropped = Faults(), Counter[str]()
        if record.fault:
            faults.add(*record.fault)
        who = owner if record.who is None else _who(record.who, names, owner, faults)
        _, scene = _scene(record.value, names, who, source, faults, dropped)
        if faults.found:
            yield ReadLine(record.text, faults.rejected(source, record.text), Counter(), kind)
        else:
            yield ReadLine(record.text, scene, dropped, kind)
    if is_empty:
        raise InputError("the table has no rows", str(path), "put dialogues in it, or take it out of `dialogues:`")


def _who(cell: Any, names: Names, owner: str | None, faults: Faults) -> str | None:
    """Whose the replies of a row are, as its column for the character says."""
    name = faults.name(cell, "the character")
    named = names.character(name) if name else None
    if owner == PLAIN:
        return owner
    if name and named is None:
        faults.add("unknown-character", f"the character is {ascii_name(name)}: {nearest(name, names.known)}")
    elif owner is not None and named not in (None, owner):
        faults.add("other-character", f"the character is {ascii_name(name)}, but the file is listed under {owner!r}")
    return owner or named


def _records(path: Path, kind: Kind) -> Iterator[tuple[str, JsonLine]]:
    """The lines of a file, or the parts of the JSON value that it is, each with its place in the file."""
    if kind == "array":
        return read_json_array(path)
    if kind == "object":
        return read_json_objects(path, coser.STREAMED)
    return _numbered(read_json_lines(path))


def _numbered(lines: Iterable[JsonLine]) -> Iterator[tuple[str, JsonLine]]:
    return ((str(line.number), line) for line in lines)


def _value(line: JsonLine, faults: Faults) -> Any:
    """The line's JSON value.

    msgspec refuses lone surrogates, with a message about something else. So such a line is read once more by the
    standard library, and its texts are then refused where they stand.
    """
    if not line.fault:
        return line.value
    if line.fault != TOO_LONG and _SURROGATE_ESCAPE.search(line.text):
        try:
            value = json.loads(line.text)
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return value
        except (ValueError, RecursionError):
            pass
    faults.add("too-long" if line.fault == TOO_LONG else "broken-json", line.fault)
    return None


def _scene(
    value: Any, names: Names, owner: str | None, source: str, faults: Faults, dropped: Counter[str]
) -> tuple[str, Scene]:
    """The format of a line's value, and the scene that it holds; what is wrong with it is in `faults`."""
    key = next((key for key in TELLING_KEYS if key in value), "") if isinstance(value, dict) else ""
    if faults.found or not key:
        nothing = Scene("", (), (), source=source)
        if faults.found:
            return "", nothing
        faults.mapping(value, "", (*FORMATS, *SCENE_KEYS, *EXCHANGE_KEYS))
        if not faults.found:  # known keys, but nothing said
            faults.add("wrong-type", f"the line has none of the keys {', '.join(TELLING_KEYS)}")
        return "", nothing
    if key == OWN_KEY:
        kind = OWN_FORMAT
        scene = _own_scene(value, names, source, faults, dropped)
    else:
        kind, read = format_of(value, key)
        talk = Talk(names, owner, faults, dropped)
        read(value, talk)
        scene = talk.scene(source)
    _need_reply(scene, names, faults)
    return kind, scene


def _own_scene(value: dict[str, Any], names: Names, source: str, faults: Faults, dropped: Counter[str]) -> Scene:
    """Our format: whole scenes with a speaker for each line."""
    faults.mapping(value, "", SCENE_KEYS)
    for key in NOTE_KEYS:
        if not isinstance(value.get(key), int):
            faults.text(value.get(key), key, optional=True)
    scene_id = faults.name(value.get("id"), "id", optional=True)
    scenario = faults.text(value.get("scenario"), "scenario", optional=True)
    declared = _participants(value.get("participants"), names, faults)
    present, gone = set(declared), set[str]()
    turns: list[Turn] = []
    for index, item in enumerate(faults.items(value["turns"], "turns")):
        turn = _turn(item, f"turns[{index}]", names, faults)
        if turn is None:
            continue
        if turn.enters:
            present.add(turn.speaker)
            gone.discard(turn.speaker)
        elif turn.speaker in gone:
            what = "leaves again" if turn.leaves else "speaks"
            detail = f"turns[{index}]: {ascii_name(turn.speaker)} {what} after having left; it enters first"
            faults.add("undeclared-speaker", detail)
        elif declared and turn.speaker not in present:
            detail = f"turns[{index}]: {ascii_name(turn.speaker)} is neither in participants nor has entered"
            faults.add("undeclared-speaker", detail)
        if turn.leaves:
            gone.add(turn.speaker)
        if turn.text or not turn.is_line:
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
    """A line of a scene, or somebody's coming or going; None where it is none of these."""
    turn = faults.mapping(item, at, TURN_KEYS)
    if not turn:
        if item == {}:
            faults.add("wrong-type", f"{at} is empty")
        return None
    for mark in ("enter", "leave"):
        if mark in turn:
            if len(turn) > 1:
                faults.add("wrong-type", f"{at} has other keys beside {mark}")
            name = faults.name(turn[mark], f"{at}.{mark}")
            return Turn(names.speaker(name), enters=mark == "enter", leaves=mark == "leave") if name else None
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
