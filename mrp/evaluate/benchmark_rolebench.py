"""RoleBench (Wang et al. 2023, arXiv 2310.00746): one question to a role, and answers that RoleGPT gave.

    rolebench-zh/general/test.jsonl    {"role": "甲", "question": "...", "generated": ["...", ...]}
    profiles-zh/desc.json              {"甲": "...", ...}

English sets are `rolebench-eng/instruction-generalization` and `rolebench-eng/role-generalization`, with
`profiles-eng/desc.json`. What is written back, `generated.jsonl`, has the same rows with our answers.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from mrp.cast import OTHER
from mrp.dialogue import Turn
from mrp.errors import InputError, raise_all
from mrp.evaluate.benchmark_files import HOMES, Benchmark, Item, Role, Rows, table_of
from mrp.files import write_jsonl

NAME = "rolebench"
PARTS = ("general", "role_specific")
SETS = ("rolebench-zh", "rolebench-eng/instruction-generalization", "rolebench-eng/role-generalization")
WRITTEN = "generated.jsonl"


def read(path: Path) -> Benchmark:
    """PATH: the folder of one set (with `general` and `role_specific` in it), or a test.jsonl of it."""
    files = [path] if path.is_file() else [f for part in PARTS if (f := path / part / "test.jsonl").is_file()]
    if not files:
        known = [name for name in SETS if (path / name).is_dir()]
        what = f"this folder is no set of RoleBench: it has neither {PARTS[0]}/test.jsonl nor {PARTS[1]}/test.jsonl"
        fix = f"name one of its sets: {', '.join(known)}" if known else f"get its files: {HOMES[NAME]}"
        raise InputError(what, str(path), fix)
    home = files[0].resolve()
    language: Literal["en", "zh"] = "zh" if "rolebench-zh" in home.parts else "en"
    described = f"profiles-{'zh' if language == 'zh' else 'eng'}/desc.json"
    profiles = next((f for folder in home.parents if (f := folder / described).is_file()), None)
    if profiles is None:
        what = f"the roles' descriptions are not here: no {described} in any folder above"
        raise InputError(what, str(path), f"keep RoleBench's folders as they come from {HOMES[NAME]}")
    texts = table_of(NAME, profiles)
    people: dict[str, Role] = {}
    items: list[Item] = []
    kept: dict[str, dict[str, Any]] = {}
    faults = []
    for file in files:
        rows = Rows(NAME, file)
        for where, row in rows:
            role, question = rows.text(row, "role", where), rows.text(row, "question", where)
            references = _references(row.get("generated"))
            if not references:
                rows.fault("'generated' must hold at least one answer", where)
            if role and not isinstance(texts.get(role), str):
                rows.fault(f"{role!r} has no description in {described}", where)
            if not (role and question and references and isinstance(texts.get(role), str)):
                continue
            people.setdefault(role, Role(role, _persona(role, texts[role], language), role))
            digest = hashlib.sha256(f"{role}\0{question}".encode()).hexdigest()[:12]
            item_id = f"{file.parent.name}/{digest}"
            if item_id not in kept:
                kept[item_id] = {"role": role, "question": question}
                turns = (Turn(OTHER, question),)
                items.append(Item(item_id, role, turns, references=references, unit=question))
        faults += rows.faults
    raise_all(path.name, faults)
    return Benchmark(NAME, language, people, tuple(items), (*files, profiles), kept)


def write(folder: Path, test: Benchmark, said: dict[str, str]) -> Path:
    """The answers (by item id) as rows of RoleBench."""
    write_jsonl(folder / WRITTEN, (test.rows[item_id] | {"generated": [text]} for item_id, text in said.items()))
    return folder / WRITTEN


def _references(value: Any) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(text.strip() for text in found if isinstance(text, str) and text.strip())


def _persona(role: str, text: str, language: str) -> str:
    head = f"你是{role}。" if language == "zh" else f"You are {role}."
    return f"{head}\n{text.strip()}"
