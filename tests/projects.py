"""A small project on disk: two characters, their dialogues and a run file with options for a tiny base."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

HOLD = """
import sys
from pathlib import Path
from mrp.files import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
PEOPLE = {"wukong": "Sun Wukong", "bajie": "Zhu Bajie"}
PLACES = ("the river", "a mountain", "the inn", "the road", "a temple", "the bridge")
OPTIONS: dict[str, Any] = {
    "question": "Who are you?",
    "train": {"epochs": 1, "learning_rate": 5e-3, "rank": 4, "alpha": 4, "max_tokens": 256, "precision": "fp32"},
    "chat": {"max_new_tokens": 6, "context_tokens": 256},
}


def write_project(folder: Path, base: object = "", **options: Any) -> Path:
    """Write cast.yaml, its dialogues and mrp.yaml into `folder`; returns the run file."""
    folder.mkdir(parents=True, exist_ok=True)
    characters = []
    for who, name in PEOPLE.items():
        rows = [
            {
                "turns": [
                    {"speaker": "other", "text": f"Where is {place}?"},
                    {"speaker": who, "text": f"{name}: {place}!"},
                ]
            }
            for place in PLACES
        ]
        write_rows(folder / f"{who}.jsonl", rows)
        characters.append({"id": who, "name": name, "persona": f"You are {name}.", "dialogues": [f"{who}.jsonl"]})
    write_yaml(folder / "cast.yaml", {"characters": characters})
    write_yaml(folder / "mrp.yaml", OPTIONS | ({"base": str(base)} if base else {}) | options)
    return folder / "mrp.yaml"


def write_rows(path: Path, rows: list[Any]) -> None:
    """A JSONL file; rows that are texts are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def write_yaml(path: Path, value: Any) -> None:
    path.write_text(yaml.safe_dump(value, allow_unicode=True, sort_keys=False), encoding="utf-8")


def change_yaml(path: Path, **changes: Any) -> None:
    """Set keys of a YAML file; `section__key` is a key in a section."""
    value = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, new in changes.items():
        *parents, last = name.split("__")
        place = value
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = new
    write_yaml(path, value)


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files below `folder` but the lock, with their bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".mrp.lock"
    }


@contextmanager
def held_by_another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the folder for the length of the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.communicate()
