"""Who speaks in the data of an XTuner config: the characters of a cast to begin with.

    people = find_people(config, ["data/xiyou.jsonl"])
    people.characters[0]         # {"id": "character-1", "name": "孙悟空", "dialogues": []}

XTuner knows no characters: who replies stands in each turn's `system`, as a name or as a whole prompt. A name becomes a
character; a prompt becomes the persona of one whose name is still to be written.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrp.cast import OTHER
from mrp.data.record import is_like_a_name
from mrp.files import is_safe_id
from mrp.xtuner.config import XtunerConfig
from mrp.xtuner.options import DATASET
from mrp.yamlfile import dump_yaml

MOST = 50  # characters that are written down; the rest is counted
CJK = re.compile(r"[一-鿿]")


@dataclass
class People:
    """The characters found, and where the dialogues lie."""

    characters: list[dict[str, Any]] = field(default_factory=list)  # id, name, persona, files
    shared_files: list[Path] = field(default_factory=list)  # of several characters, or of nobody that is known
    language: str = "en"
    notes: list[str] = field(default_factory=list)


def find_people(config: XtunerConfig, files: list[str]) -> People:
    """The characters of the files that the config names; of its own prompts where no file can be read."""
    people = People()
    counts: Counter[str] = Counter()
    owners: dict[Path, list[str]] = {}
    for name in files:
        path = _existing(name, config.path)
        systems, problem = _systems_of(path)
        if problem:
            people.notes.append(f"{name}: {problem}; it is listed in the cast all the same")
        owners[path] = list(systems)
        counts += systems
    texts = [text for text, _ in counts.most_common(MOST)]
    if len(counts) > MOST:
        people.notes.append(f"the data has {len(counts)} different systems; the {MOST} most frequent are in the cast")
    if not texts:
        texts = list(dict.fromkeys(_prompts(config)))
        people.notes.append("nobody is named in the data: the names in the cast are yours to write")
    texts = list({text.casefold(): text for text in reversed(texts) if text.casefold() != OTHER}.values())[::-1]
    taken = {text.casefold() for text in texts}
    for text in texts or [""]:
        own = [path for path, names in owners.items() if names == [text]]
        people.characters.append(_character(text, own, len(people.characters) + 1, taken))
    used = {path for character in people.characters for path in character["files"]}
    people.shared_files = [path for path in owners if path not in used]
    told = texts or [json.dumps(config.as_json(), ensure_ascii=False)]
    people.language = "zh" if any(CJK.search(text) for text in told) else "en"
    return people


def _existing(name: str, config: Path) -> Path:
    """Where a file of the config lies: seen from the working directory, as XTuner saw it, else from the config."""
    for home in (Path(), config.parent):
        if (home / name).is_file():
            return home / name
    return Path(name)


def _systems_of(path: Path) -> tuple[Counter[str], str]:
    """Each `system` text of a file of dialogues with how often it stands there; and what is wrong with the file."""
    found: Counter[str] = Counter()
    try:
        for value in _records(path):
            found.update(text.strip() for text in _systems(value) if text.strip())
    except FileNotFoundError:
        return found, "the file is not here"
    except (OSError, ValueError, RecursionError) as error:
        return found, f"the file cannot be read: {str(error)[:120]}"
    return found, ""


def _records(path: Path) -> Iterator[Any]:
    """The JSON values of a file: one a line, or the items of one array. Lines that are broken are passed over."""
    with path.open(encoding="utf-8-sig") as file:
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
        file.seek(0)
        if start == "[":
            value = json.load(file)
            yield from value if isinstance(value, list) else ()
            return
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                continue  # `mrp data check` names it


def _systems(value: Any) -> Iterator[str]:
    """The system texts of one dialogue, in XTuner's format, OpenAI's or Alpaca's."""
    if not isinstance(value, dict):
        return
    if isinstance(value.get("system"), str):
        yield value["system"]
    for key in ("conversation", "messages"):
        for turn in value[key] if isinstance(value.get(key), list) else ():
            if isinstance(turn, dict):
                text = turn.get("content") if turn.get("role") == "system" else turn.get("system")
                if isinstance(text, str):
                    yield text


def _prompts(config: XtunerConfig) -> Iterator[str]:
    """System texts that the config itself holds; XTuner's own (`SYSTEM_TEMPLATE.alpaca`) name nobody."""
    places = [config.find(key, None) for key in ("SYSTEM", "system", f"{DATASET}.system")]
    hooks = config.find("custom_hooks", [])
    places += [hook.get("system") for hook in hooks if isinstance(hook, dict)] if isinstance(hooks, list) else []
    yield from (text.strip() for text in places if type(text) is str and text.strip())


# -- the cast file -----------------------------------------------------------------------------------------------------


def _character(text: str, files: list[Path], number: int, taken: set[str]) -> dict[str, Any]:
    """A character whose data says `text`: its name, or its persona. Its id goes to `taken` (casefolded)."""
    is_name = bool(text) and text.isprintable() and is_like_a_name(text)
    wanted = [_ascii(text) if is_name else "", _ascii(files[0].stem) if len(files) == 1 else "", f"character-{number}"]
    others = {*(taken - {text.casefold()}), OTHER}
    usable = [word for word in wanted if is_safe_id(word) and word.casefold() not in others]
    found = usable[0] if usable else f"character-{number}-of-cast"
    taken.add(found.casefold())
    name = text if is_name else f"Character {number}"
    return {"id": found, "name": name, "persona": "" if is_name else text, "files": files}


def _ascii(text: str) -> str:
    """The ASCII letters of a text as an id, "" where it is mostly others."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    kept = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:40]
    return kept if 2 * len(kept) >= len(text) else ""


def cast_text(people: People, out: Path) -> str:
    """The cast file as it is written into `out`."""
    characters: list[dict[str, Any]] = []
    for found in people.characters:
        value = {"id": found["id"], "name": found["name"], "persona": found["persona"]}
        if found["files"]:
            value["dialogues"] = [_seen_from(out, path) for path in found["files"]]
        characters.append(value)
    cast: dict[str, Any] = {"language": people.language, "characters": characters}
    if people.shared_files:
        cast["dialogues"] = [_seen_from(out, path) for path in people.shared_files]
    head = (
        "# Made by `mrp import xtuner` of the names in the data. Write each `persona`: the system prompt, two or\n"
        "# three sentences. What the data calls somebody must stay the `name`, or stand under `aliases`.\n"
    )
    return head + dump_yaml(cast, width=110)


def _seen_from(out: Path, path: Path) -> str:
    try:
        return Path(os.path.relpath(path.absolute(), out.absolute())).as_posix()
    except ValueError:  # another drive, on Windows
        return str(path.absolute())
