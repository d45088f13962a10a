"""CharacterEval (Tu et al. 2024, arXiv 2401.01275): a Chinese dialogue, and the role that speaks next.

    data/test_data.jsonl           [{"id": 1, "role": "甲", "context": "乙：你好\\n甲：...\\n乙：...", ...}, ...]
    data/character_profiles.json   {"甲": {"性别": "男", ...}, ...}

The first file is one JSON array, whatever its name says. What is written back, `generation.jsonl`, is what its own
`transform_format.py` and reward model read: the same rows with "model_output".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mrp.dialogue import Turn
from mrp.evaluate.benchmark_files import Benchmark, Item, Role, Rows, table_of
from mrp.files import write_json

NAME = "charactereval"
TESTS, PROFILES = "test_data.jsonl", "character_profiles.json"
WRITTEN = "generation.jsonl"
MARK = "："


def read(path: Path) -> Benchmark:
    """PATH: the repository's folder, its data folder, or test_data.jsonl with the profiles beside it."""
    folder = path.parent if path.is_file() else path / "data" if (path / "data").is_dir() else path
    profiles = table_of(NAME, folder / PROFILES)
    rows = Rows(NAME, path if path.is_file() else folder / TESTS)
    people: dict[str, Role] = {}
    items: dict[str, Item] = {}
    kept: dict[str, dict[str, Any]] = {}
    for where, row in rows:
        role, context = rows.text(row, "role", where), rows.text(row, "context", where)
        item_id = str(row.get("id", ""))
        if not item_id or item_id in items:
            rows.fault(f"the id {item_id!r} is missing or stands twice", where)
        if role and role not in profiles:
            rows.fault(f"{role!r} has no profile in {PROFILES}", where)
        turns = _turns(context)
        if context and (not turns or turns[-1].speaker == role):
            rows.fault(f"the context does not end with a line of somebody else (NAME{MARK}TEXT)", where)
        if role and turns and role in profiles:
            people.setdefault(role, Role(role, _persona(role, profiles[role]), role))
            novel = str(row.get("novel_name", ""))
            items[item_id] = Item(item_id, role, turns, unit=f"{novel} {turns[0].speaker}{MARK}{turns[0].text}")
            kept[item_id] = row
    rows.end()
    return Benchmark(NAME, "zh", people, tuple(items.values()), (rows.path, folder / PROFILES), kept)


def write(folder: Path, test: Benchmark, said: dict[str, str]) -> Path:
    """The replies (by item id) for CharacterEval's own scorer: copy it to `results/` there."""
    rows = [test.rows[item_id] | {"model_output": text} for item_id, text in said.items()]
    write_json(folder / WRITTEN, rows)
    return folder / WRITTEN


def _turns(context: str) -> tuple[Turn, ...]:
    """The lines of a dialogue; one without a name goes on with the line before."""
    turns: list[Turn] = []
    for line in context.split("\n"):
        name, mark, text = line.partition(MARK)
        if mark and name.strip():
            turns.append(Turn(name.strip(), text.strip()))
        elif turns and line.strip():
            turns[-1] = Turn(turns[-1].speaker, f"{turns[-1].text}\n{line.strip()}")
        elif line.strip():
            return ()
    return tuple(turns)


def _persona(role: str, profile: Any) -> str:
    """A profile as a text that tells the model who it is."""
    if isinstance(profile, dict):
        parts = [f"{key}{MARK}{'、'.join(map(str, v)) if isinstance(v, list) else v}" for key, v in profile.items()]
        profile = "\n".join(parts)
    return f"你是{role}。\n{str(profile).strip()}".strip()
