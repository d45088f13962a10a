"""Which column of a table (CSV, Parquet) means what, and its rows as the values that `formats.py` reads.

    columns = choose_columns(["q", "a", "who"], {"prompt": "q", "reply": "a", "character": "who"}, "talk.csv")
    columns.value({"q": "Who are you?", "a": "Ha!", "who": "Wukong"})
    # {"prompt": "Who are you?", "response": "Ha!"}

A row is a dialogue (a column of messages, or a prompt and a reply), or one line of it (speaker and text, the rows of a
scene one after the other). Columns are known by their names; a mapping says it where the names do not. Columns that
mean nothing here are read past. Between `csvfile.py`, `parquet.py` and `read.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from mrp.data.formats import ROLES
from mrp.data.script import SCENE_SPEECHES
from mrp.data.stream import MAX_LINE_BYTES, TOO_LONG
from mrp.data.view import ASSISTANT, USER
from mrp.errors import InputError, MrpError, nearest, raise_all

# What a column may mean -> the names by which it is known, the surest first.
KNOWN = {
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog", "dialogues", "turns", "chat"),
    "prompt": ("prompt", "instruction", "question", "query", USER, "human", "request", "input"),
    "input": ("input", "context"),
    "reply": ("reply", "response", "completion", "output", "answer", ASSISTANT, "gpt", "bot", "target"),
    "history": ("history",),
    "scene": (
        *("scene_id", "scene", "conversation_id", "dialogue_id", "dialog_id", "conv_id", "session_id", "episode_id"),
        *("thread_id", "conversation", "dialogue", "dialog"),
    ),
    "speaker": ("speaker", "character", "role", "from", "name", "author"),
    "text": ("text", "content", "utterance", "message", "line", "value", "sentence"),
    "character": ("character", "role_name", "character_name", "char", "role", "speaker"),
    "system": ("system", "system_prompt", "persona"),
    "scenario": ("scenario",),
}
KINDS = {  # how a table holds dialogues -> what it needs, and what may stand beside it
    "messages": (("messages",), ("character", "system")),
    "exchange": (("prompt", "reply"), ("input", "history", "character", "system")),
    "lines": (("speaker", "text"), ("scene", "scenario")),
}
TEXT_KEYS = ("content", "value", "text", "input", "output")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table: where it begins, its cells by column, its text as far as it is shown; or a fault
    (reason, detail) instead of cells."""

    line: int
    cells: Mapping[str, Any]
    text: str
    fault: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A dialogue of a table: the value that a line of JSON with it would have, or why there is none; and whose the
    replies are, where a column says so."""

    line: int
    value: Any
    text: str
    who: Any = None
    fault: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a table mean: `of` maps a meaning to a column."""

    kind: str  # a key of KINDS
    of: dict[str, str]

    def cell(self, cells: Mapping[str, Any], meaning: str) -> Any:
        column = self.of.get(meaning)
        return None if column is None else cells.get(column)

    def value(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        """A row as a dialogue. Raises `ValueError` for a cell of messages that is text but no JSON."""
        system = self.cell(cells, "system")
        if self.kind == "messages":
            return _messages(self.cell(cells, "messages"), None if system == "" else system)
        value = {
            "prompt": self.cell(cells, "prompt"),
            "response": self.cell(cells, "reply"),
            "input": self.cell(cells, "input"),
            "history": _decoded(self.cell(cells, "history")) or None,
            "system": system,
        }
        return {key: cell for key, cell in value.items() if cell is not None or key in ("prompt", "response")}


def choose_columns(names: Sequence[str], given: Mapping[str, str] | None, where: str) -> Columns:
    """What the columns `names` of the table `where` mean: as `given` says (meaning -> column), else by their names.

    Raises `InputError` for meanings and columns that do not exist, and where no dialogue can be found.
    """
    given = dict(given or {})
    faults: list[MrpError] = [
        InputError(f"a column cannot mean {meaning!r}", f"{where}, columns", nearest(meaning, KNOWN))
        for meaning in given
        if meaning not in KNOWN
    ]
    faults += [
        InputError(f"there is no column {column!r}", f"{where}, columns.{meaning}", nearest(column, names))
        for meaning, column in given.items()
        if column not in names
    ]
    raise_all(f"{where}, columns", faults)
    by_name = {re.sub(r"[^\w]+", "_", name.strip().casefold()): name for name in reversed(names)}
    for kind, (needed, optional) in KINDS.items():
        meanings = (*needed, *optional)
        if any(meaning not in meanings for meaning in given):
            continue
        found: dict[str, str] = {m: given[m] for m in meanings if m in given}
        for meaning in meanings:
            if meaning not in found:
                free = (by_name[n] for n in KNOWN[meaning] if n in by_name and by_name[n] not in found.values())
                if column := next(free, ""):
                    found[meaning] = column
        if all(meaning in found for meaning in needed):
            return Columns(kind, found)
    shown = ", ".join(repr(name) for name in list(names)[:20])
    raise InputError(
        f"no dialogue is found in the columns {shown}",
        where,
        "say which column is what: --column prompt=... --column reply=... (`data.columns` in a run file)",
    )


def columns_given(settings: Sequence[str]) -> dict[str, str] | None:
    """MEANING=NAME settings (--column, `data.columns`) as a mapping; None for none."""
    given: dict[str, str] = {}
    for setting in settings:
        meaning, mark, name = setting.partition("=")
        if not mark or not name.strip():
            what = f"a column is given as MEANING=NAME, not {setting!r}"
            raise InputError(what, "--column, or data.columns", "for example prompt=q reply=a")
        given[meaning.strip()] = name.strip()
    return given or None


def table_records(rows: Iterable[Row], columns: Columns) -> Iterator[Record]:
    """A record for each dialogue, and for each row that cannot be used."""
    if columns.kind == "lines":
        yield from _scenes(rows, columns)
        return
    for row in rows:
        value, who, fault = None, None, row.fault
        if not fault:
            who = columns.cell(row.cells, "character")
            try:
                value = columns.value(row.cells)
            except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
                fault = ("broken-json", str(error))
        yield Record(row.line, value, row.text, None if who == "" else who, fault)


def _decoded(cell: Any) -> Any:
    """A cell that holds JSON as text (as CSV must) as its value."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        return msgspec.json.decode(cell)
    return cell


def _messages(cell: Any, system: Any) -> dict[str, Any]:
    items = _decoded(cell)
    if isinstance(cell, str) and not cell.strip():
        items = []
    if isinstance(items, str):
        raise ValueError("the messages are text, not a list")
    if isinstance(items, list):
        items = [_without_nulls(item) for item in items]
    first = items[0] if isinstance(items, list) and items and isinstance(items[0], dict) else {}
    if "output" in first:
        if system is not None and "system" not in first:
            items = [{"system": system, **first}, *items[1:]]
        return {"conversation": items}
    if "speaker" in first:
        return {"turns": items}
    return {"messages": [] if items is None else items} | ({} if system is None else {"system": system})


def _without_nulls(item: Any) -> Any:
    """A message without the keys that only other rows of the table fill."""
    if not isinstance(item, dict):
        return item
    return {key: value for key, value in item.items() if value is not None or key in TEXT_KEYS}


# --- A row for each line of a scene -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Scene:
    """Rows of one scene that follow one another."""

    key: str | None
    first: Row
    rows: list[Mapping[str, Any]]
    length: int = 0
    is_continued: bool = False  # behind a row that cannot be used


def _scenes(rows: Iterable[Row], columns: Columns) -> Iterator[Record]:
    """The scenes of a table with a row for each line. A row that cannot be used ends one, so that no reply follows a
    gap; without a column that says the scene, every `SCENE_SPEECHES` rows are one."""
    scene: _Scene | None = None
    is_continued: str | None = None
    for row in rows:
        if row.fault:
            if scene:
                yield _record(scene, columns)
                is_continued, scene = scene.key, None
            yield Record(row.line, None, row.text, fault=row.fault)
            continue
        cell = columns.cell(row.cells, "scene")
        key = None if cell is None else str(cell)
        is_full = "scene" not in columns.of and scene is not None and len(scene.rows) >= SCENE_SPEECHES
        if scene and (scene.key != key or is_full):
            yield _record(scene, columns)
            scene, is_continued = None, None
        if scene is None:
            scene = _Scene(key, row, [], is_continued=key is not None and is_continued == key)
        scene.length += len(str(columns.cell(row.cells, "text") or "")) + 100
        if scene.length <= MAX_LINE_BYTES:
            scene.rows.append(row.cells)
    if scene:
        yield _record(scene, columns)


def _record(scene: _Scene, columns: Columns) -> Record:
    if scene.length > MAX_LINE_BYTES:
        return Record(scene.first.line, None, scene.first.text, fault=("too-long", TOO_LONG))
    said = [(columns.cell(cells, "speaker"), columns.cell(cells, "text")) for cells in scene.rows]
    value: dict[str, Any]
    if all(isinstance(speaker, str) and speaker.strip().casefold() in ROLES for speaker, _ in said):
        value = {"messages": [{"role": speaker, "content": text} for speaker, text in said]}
    else:
        value = {"turns": [{"speaker": speaker, "text": "" if text is None else text} for speaker, text in said]}
        if scene.key and not scene.is_continued:
            value["id"] = scene.key
        scenario = columns.cell(scene.rows[0], "scenario")
        if scenario not in (None, ""):
            value["scenario"] = scenario
    return Record(scene.first.line, value, scene.first.text)
