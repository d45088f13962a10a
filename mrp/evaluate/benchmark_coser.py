"""CoSER's test set (Wang et al. 2025, arXiv 2502.09082): scenes of novels, with the characters' profiles.

    [{"book": "...", "i_p": 0, "i_c": 0, "scenario": "...", "plot": {"summary": "...", "key_characters": [...]},
      "character_profiles": {"NAME": "..."}, "key_characters": [{"name": "...", "motivation": "..."}],
      "dialogues": [{"character": "NAME", "message": "[thought] (action) speech"}, ...]}, ...]

Two things are made of it. Each character's line is asked for in its place, after the real lines before it: so two
models stand before the same prompt. And whole scenes are played for CoSER's own judge (`benchmark_simulation.py`).
Thoughts in [brackets] are heard by nobody and left out, as when a book is imported (`data/coser.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mrp.data.coser import ENVIRONMENT, without_thoughts
from mrp.dialogue import Turn
from mrp.evaluate.benchmark_files import Benchmark, Item, Role, Rows

NAME = "coser"


def read(path: Path) -> Benchmark:
    """PATH: test_set.json (or id_set.json ...), or a folder with `data/test/test_set.json` or `test_set.json`."""
    places = [path / "data" / "test" / "test_set.json", path / "test_set.json"]
    file = path if path.is_file() else next((f for f in places if f.is_file()), places[0])
    rows = Rows(NAME, file)
    people: dict[str, Role] = {}
    items: list[Item] = []
    kept: dict[str, dict[str, Any]] = {}
    for where, row in rows:
        book = rows.text(row, "book", where)
        lines = _lines(row.get("dialogues"), rows, where)
        profiles = row.get("character_profiles")
        if not isinstance(profiles, dict):
            rows.fault("'character_profiles' must be an object", where)
            continue
        scene = f"{book}-{row.get('i_p', '')}-{row.get('i_c', '')}"
        if scene in kept:
            rows.fault(f"the scene {scene} stands twice (book, i_p, i_c)", where)
        kept[scene] = row
        for name in dict.fromkeys(turn.speaker for turn in lines if turn.speaker != ENVIRONMENT):
            people.setdefault(f"{book}/{name}", Role(name, _persona(name, book, profiles.get(name)), book))
        items += [
            Item(
                f"{scene}/{k}",
                f"{book}/{turn.speaker}",
                tuple(lines[:k]),
                scenario_of(row, turn.speaker),
                (turn.text,),
                scene,
                present_of(row),
            )
            for k, turn in enumerate(lines)
            if k and turn.speaker != ENVIRONMENT
        ]
    rows.end()
    return Benchmark(NAME, "en", people, tuple(items), (file,), kept)


def scenario_of(row: dict[str, Any], name: str) -> str:
    """The scene as a character knows it: what happens, and who it is and what it wants in it."""
    own = [c for c in _key_characters(row.get("plot")) + _key_characters(row) if c.get("name") == name]
    told = [str(c[key]).strip() for c in own for key in ("description", "motivation", "thought") if c.get(key)]
    return "\n\n".join([str(row.get("scenario", "")).strip(), *dict.fromkeys(told)]).strip()


def profile_of(row: dict[str, Any], name: str) -> str:
    """What CoSER's judge is told of a character: who it is in this plot, and its profile."""
    told = [c.get("description") for c in _key_characters(row.get("plot")) if c.get("name") == name]
    told.append(row["character_profiles"].get(name))
    return "\n\n".join(text.strip() for text in told if isinstance(text, str) and text.strip())


def present_of(row: dict[str, Any]) -> tuple[str, ...]:
    """The names of those who are there, whether or not they have spoken yet."""
    speakers = [line.get("character") for line in row["dialogues"] if isinstance(line, dict)]
    names = [c.get("name") for c in _key_characters(row)] + speakers
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))


def _key_characters(value: Any) -> list[dict[str, Any]]:
    found = value.get("key_characters") if isinstance(value, dict) else None
    return [c for c in found if isinstance(c, dict)] if isinstance(found, list) else []


def _lines(value: Any, rows: Rows, where: str) -> list[Turn]:
    """What is heard and seen of the dialogue."""
    if not isinstance(value, list) or not value:
        rows.fault("'dialogues' must hold lines", where)
        return []
    turns = []
    for k, line in enumerate(value):
        name, text = (line.get(key) if isinstance(line, dict) else None for key in ("character", "message"))
        if not (isinstance(name, str) and name.strip() and isinstance(text, str)):
            rows.fault(f"dialogues[{k}] must have the texts 'character' and 'message'", where)
            continue
        if heard := without_thoughts(text)[0].strip():
            turns.append(Turn(name, heard))
    return turns


def _persona(name: str, book: str, profile: Any) -> str:
    return f"You are {name} from {book}.\n\n{profile if isinstance(profile, str) else ''}".strip()
