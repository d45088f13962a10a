"""The files of role-play benchmarks, read in their own formats: who is to be played, in which places.

    test = read_benchmark("rolebench", Path("RoleBench/rolebench-zh"))
    test.items[0].turns, test.people["..."].persona

`benchmark_charactereval.py`, `benchmark_rolebench.py` and `benchmark_coser.py` know a format each; this module has
what they share. Nothing of a benchmark comes with mrp: its files are named by path.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mrp.dialogue import Turn
from mrp.errors import InputError, MrpError, nearest, raise_all

HOMES = {
    "charactereval": "https://github.com/morecry/CharacterEval",
    "rolebench": "https://huggingface.co/datasets/ZenMoore/RoleBench",
    "coser": "https://github.com/Neph0s/CoSER",
}


@dataclass(frozen=True)
class Role:
    """Somebody whom the benchmark wants to be played. `group`: under whom figures are counted."""

    name: str
    persona: str
    group: str


@dataclass(frozen=True)
class Item:
    """A place where `person` has to speak. Speakers of `turns` are names; `references`: what may be said there."""

    id: str
    person: str  # a key of `Benchmark.people`
    turns: tuple[Turn, ...]
    scenario: str = ""
    references: tuple[str, ...] = ()
    unit: str = ""  # items of one unit depend on each other
    present: tuple[str, ...] = ()  # names beyond those who speak in `turns`


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as it was read. `rows`: its own, by item id, for what is written back in its own format."""

    name: str
    language: Literal["en", "zh"]
    people: dict[str, Role]
    items: tuple[Item, ...]
    files: tuple[Path, ...]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_benchmark(name: str, path: Path) -> Benchmark:
    """Raises `InputError` for an unknown benchmark, and for files that are missing or damaged, with every fault."""
    from mrp.evaluate import benchmark_charactereval, benchmark_coser, benchmark_rolebench

    readers: dict[str, Callable[[Path], Benchmark]] = {
        "charactereval": benchmark_charactereval.read,
        "rolebench": benchmark_rolebench.read,
        "coser": benchmark_coser.read,
    }
    if name not in readers:
        raise InputError(f"no benchmark is called {name!r}", f"{name}={path}", nearest(name, readers))
    if not path.exists():
        raise missing(name, path)
    test = readers[name](path)
    if not test.items:
        raise InputError("the benchmark holds no place to speak in", str(path), f"get its files anew: {HOMES[name]}")
    return test


def missing(name: str, path: Path) -> InputError:
    """The error for a file that a benchmark needs."""
    fix = f"name the folder with the benchmark's files, as {HOMES[name]} has them"
    return InputError(f"no such file or folder: {path.name}", str(path), fix)


class Rows:
    """The objects of a file (a JSON array, or an object a line), and what is wrong with them."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.faults: list[MrpError] = []

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(where it stands, the object) of each."""
        text = read_text(self.name, self.path)
        if text.lstrip().startswith("["):
            values = enumerate(json_of(self.name, self.path, text))
            found = [(f"{self.path}, element {k}", value) for k, value in values]
        else:
            lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
            found = [(f"{self.path}:{n}", self._line(f"{self.path}:{n}", line)) for n, line in lines]
        for where, value in found:
            if isinstance(value, dict):
                yield where, value
            elif value is not None:
                self.fault("this is no object", where)

    def _line(self, where: str, line: str) -> Any:
        try:
            return _loaded(line)
        except (ValueError, RecursionError) as error:
            self.fault(f"this line is no JSON: {error}", where)
            return None

    def text(self, row: dict[str, Any], key: str, where: str) -> str:
        """The text of a key; a fault (and "") where there is none."""
        value = row.get(key)
        if not isinstance(value, str) or not value.strip():
            self.fault(f"{key!r} must be a text, and is {json.dumps(value, ensure_ascii=False)[:60]}", where)
            return ""
        return value.strip()

    def fault(self, what: str, where: str) -> None:
        self.faults.append(InputError(what, where, f"mend or delete it, or get the file anew: {HOMES[self.name]}"))

    def end(self) -> None:
        """Raise all that was found."""
        raise_all(self.path.name, self.faults)


def read_text(name: str, path: Path) -> str:
    if not path.is_file():
        raise missing(name, path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        fix = f"get the file anew: {HOMES[name]}"
        raise InputError(f"{path.name} cannot be read: {error}", str(path), fix) from None


def json_of(name: str, path: Path, text: str | None = None) -> Any:
    """The JSON value of a file."""
    try:
        return _loaded(read_text(name, path) if text is None else text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a JSON file: {error}", str(path), f"get the file anew: {HOMES[name]}") from None


def _loaded(text: str) -> Any:
    """The value of a JSON text; ValueError where it spells half of a surrogate pair, which no file can hold."""
    value = json.loads(text)
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # UnicodeEncodeError is a ValueError
    return value


def table_of(name: str, path: Path) -> dict[str, Any]:
    """The JSON object of a file."""
    value = json_of(name, path)
    if not isinstance(value, dict):
        raise InputError("this file must hold a JSON object", str(path), f"get the file anew: {HOMES[name]}")
    return value
