"""The file of a scene: a row for each thing that happened, on the disk before the next one happens.

    file = SceneFile.begin(Path("inn.jsonl"), plan)        # or SceneFile.resume(path)
    stage = file.stage(player)                             # with what the file holds
    export(stage, Path("inn.jsonl"))                       # inn.scene.jsonl for `mrp data build`, inn.md for people

The first row is the plan, so nothing else is needed to go on. A row that a killed process left half-written is cut
off. The file is only ever appended to.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pydantic

from mrp.dialogue import read_json_lines
from mrp.errors import InputError, MrpError, raise_all
from mrp.files import disk_error, replacing, write_jsonl
from mrp.play.reply import Player
from mrp.play.scene import Stage
from mrp.play.scene_plan import ScenePlan, settled

FIX = "resume a file that `mrp scene --out FILE` wrote"
FORMAT = 1
ROW_KEYS = {
    "text": {"speaker", "text", "tokens", "guarded", "lore", "step"},
    "enter": {"enter", "step"},
    "leave": {"leave", "step"},
    "silent": {"silent", "tokens", "guarded", "lore", "step"},
    "memory": {"memory", "summary", "dropped"},
    "end": {"end"},
}
TYPES = {"tokens": int, "step": int, "dropped": int, "guarded": bool, "lore": dict}  # all else is text


class SceneFile:
    """A scene's file, open for what happens next."""

    def __init__(self, path: Path, plan: ScenePlan, rows: list[dict[str, Any]]) -> None:
        self.path, self.plan, self.rows = path, plan, rows
        self.cut_off = 0  # bytes of a half-written row that were taken away

    @classmethod
    def begin(cls, path: Path, plan: ScenePlan) -> SceneFile:
        """A new file with the plan in it; raises `InputError` if there is one already."""
        if path.exists():
            raise InputError("this file exists already", str(path), f"go on with `--resume {path}`, or name another")
        file = cls(path, plan, [])
        file.append({"scene": FORMAT, "plan": plan.model_dump(exclude_defaults=True)})
        return file

    @classmethod
    def resume(cls, path: Path) -> SceneFile:
        """The file of a scene that was stopped; raises `InputError` or `ManyFaults` where it is none."""
        cut_off = _cut_half_row(path)
        lines = list(read_json_lines(path))
        head = lines[0].value
        if not isinstance(head, dict) or head.get("scene") != FORMAT:
            raise InputError("this is not the file of a scene", f"{path}:1", FIX)
        try:
            plan = ScenePlan.model_validate(head.get("plan"))
        except pydantic.ValidationError as error:
            raise InputError(f"its plan is broken: {error.errors()[0]['msg']}", f"{path}:1", FIX) from None
        faults: list[MrpError] = []
        rows = []
        for line in lines[1:]:
            fault = line.fault or _fault(line.value)
            if fault:
                faults.append(InputError(f"not a row of a scene: {fault}", f"{path}:{line.number}", FIX))
            rows.append(line.value)
        raise_all(path.name, faults)
        file = cls(path, plan, rows)
        file.cut_off = cut_off
        return file

    def stage(self, player: Player) -> Stage:
        """A stage at the point that the file has reached; what happens on it is appended."""
        if player.cast:
            settled(self.plan, player.cast, lambda *_: str(self.path))
        stage = Stage(player, self.plan)
        for number, row in enumerate(self.rows, 2):
            try:
                stage.apply(row)
            except (ValueError, KeyError) as error:
                what = f"this cannot happen here: {error}"
                raise InputError(what, f"{self.path}:{number}", FIX) from None
        stage.record = self.append
        return stage

    def append(self, row: dict[str, Any]) -> None:
        """Write one row, and wait until it is on the disk."""
        data = json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as stream:
                stream.write(data.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise disk_error(error, self.path) from error


def _cut_half_row(path: Path) -> int:
    """Take away what stands after the last line end; gives back how many bytes that were."""
    try:
        with path.open("r+b") as stream:
            data = stream.read()
            whole = data.rfind(b"\n") + 1
            if whole and whole < len(data):
                stream.truncate(whole)
            return len(data) - whole if whole else 0
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror}", str(path), FIX) from None


def _fault(row: Any) -> str:
    if not isinstance(row, dict):
        return "wanted is an object"
    kind = next((kind for kind in ROW_KEYS if kind in row), None)
    if kind is None:
        return f"it has none of {', '.join(ROW_KEYS)}"
    if unknown := set(row) - ROW_KEYS[kind]:
        return f"unknown keys {sorted(unknown)}"
    if kind == "text" and "speaker" not in row:
        return "a line without `speaker`"
    wrong = [key for key, value in row.items() if not isinstance(value, TYPES.get(key, str))]
    return f"wrong types in {wrong}" if wrong else ""


def export(stage: Stage, path: Path) -> list[Path]:
    """Write the scene beside its file: as scene JSONL, which `mrp data build` reads, and as Markdown."""
    scene = stage.scene(path.stem)
    row: dict[str, Any] = {"id": scene.id, "participants": list(scene.participants)}
    if scene.scenario:
        row["scenario"] = scene.scenario
    row["turns"] = [turn.row() for turn in scene.turns]
    native, markdown = path.with_suffix(".scene.jsonl"), path.with_suffix(".md")
    write_jsonl(native, [row])
    with replacing(markdown) as file:
        file.write(as_markdown(stage, path.stem))
    return [native, markdown]


def as_markdown(stage: Stage, title: str) -> str:
    """The scene for people."""
    name = stage.cast.display_name
    parts = [f"# {title}", f"With {', '.join(name(p) for p in stage.plan.participants)}."]
    if stage.plan.scenario or stage.cast.scenario:
        parts.append(f"*{(stage.plan.scenario or stage.cast.scenario).strip()}*")
    for turn in stage.turns:
        if turn.is_line:
            text = turn.text.replace("\n", "  \n")
            parts.append(f"**{name(turn.speaker)}:** {text}")
        else:
            parts.append(f"*{name(turn.speaker)} {'comes in' if turn.enters else 'leaves'}.*")
    if stage.ended:
        parts.append(f"*The end: {stage.ended}.*")
    return "\n\n".join(parts) + "\n"
