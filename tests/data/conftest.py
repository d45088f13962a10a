"""Small casts and runs, written by the test that needs them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mrp.cast import Cast, Character
from mrp.config import Run, load_run

PEOPLE = [("tang", "Tang Sanzang", "Master"), ("wukong", "Sun Wukong", "Monkey King"), ("bajie", "Zhu Bajie", "Pigsy")]


@pytest.fixture
def cast() -> Cast:
    return Cast(characters=[Character(id=i, name=n, aliases=[a], persona=f"You are {n}.") for i, n, a in PEOPLE])


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Iterable[Any]], Path]:
    """Writes a JSONL file; rows that are texts are written as they are."""

    def write_rows(name: str, rows: Iterable[Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write_rows


@pytest.fixture
def make_run(tmp_path: Path, write: Callable[[str, Iterable[Any]], Path]) -> Callable[..., Run]:
    """Writes a cast, its dialogue files and a run file, and loads the run."""

    def make(
        own: dict[str, Iterable[Any]] | None = None,
        scenes: Iterable[Any] | None = None,
        people: list[str] | None = None,
        home: str = ".",
        **options: Any,
    ) -> Run:
        ids = people or (list(own) if own else [i for i, _, _ in PEOPLE])
        characters: list[dict[str, Any]] = [
            {"id": i, "name": n, "aliases": [a], "persona": f"You are {n}."} for i, n, a in PEOPLE if i in ids
        ]
        for character in characters:
            if own and character["id"] in own:
                write(f"{home}/{character['id']}.jsonl", own[character["id"]])
                character["dialogues"] = [f"{character['id']}.jsonl"]
        value: dict[str, Any] = {"characters": characters}
        if scenes is not None:
            write(f"{home}/scenes.jsonl", scenes)
            value["dialogues"] = ["scenes.jsonl"]
        folder = tmp_path / home
        (folder / "cast.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")
        (folder / "mrp.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
        return load_run(folder / "mrp.yaml")

    return make
