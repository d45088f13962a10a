"""`mrp scene`: flags and script into a plan, a plan onto the stage.

play_scene(player, Asked(with_="tang,wukong", turns=8), Path("inn.jsonl"), None, report)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pydantic

from mrp.cast import Cast
from mrp.errors import InputError, Stopped
from mrp.play.reply import Player
from mrp.play.scene import Stage
from mrp.play.scene_file import SceneFile, export
from mrp.play.scene_plan import ScenePlan, load_script, settled
from mrp.play.scene_terminal import SceneTerminal
from mrp.report import SILENT, Reporter


@dataclass(frozen=True)
class Asked:
    """What the flags say; None where they say nothing."""

    with_: str | None = None
    script: Path | None = None
    turns: int | None = None
    director: str | None = None
    me: str | None = None
    scenario: str | None = None
    seed: int | None = None
    memory: int | None = None
    lore: int | None = None

    @property
    def named(self) -> int | None:
        """How many characters --with names; None without it."""
        return None if self.with_ is None else max(1, len(_names(self.with_)))


def play_scene(
    player: Player, asked: Asked, out: Path | None = None, resume: Path | None = None, report: Reporter = SILENT
) -> dict[str, Any]:
    """Play a scene at the terminal, from its beginning or from where its file stops. Raises `Stopped` on Ctrl-C."""
    path = resume or out
    if player.cast is None:
        raise InputError("this model has no cast, and a scene needs characters", "mrp scene", "add --cast cast.yaml")
    if resume and out:
        raise InputError("--resume names the file that the scene goes on in", "--out", "leave --out out")
    if path and (resume or path.exists()):
        file = SceneFile.resume(path)
        _nothing_contradicts(asked, file.plan, player.cast)
        stage = file.stage(player)
        cut = f"; {file.cut_off} bytes of a half-written row were taken off" if file.cut_off else ""
        report.line(f"going on after {sum(turn.is_line for turn in stage.turns)} lines{cut}")
    else:
        plan = plan_of(asked, player.cast)
        stage = SceneFile.begin(path, plan).stage(player) if path else Stage(player, plan)
    try:
        result = SceneTerminal(stage, report).run()
    except Stopped as stopped:
        if path is None:
            raise
        export(stage, path)
        raise Stopped(stopped.what, str(path), f"go on: mrp scene RUN --resume {path}") from None
    except Exception:  # the engine died, or there is no room: what was said is on the disk
        if path:
            report.warn(f"every whole line is kept; go on: mrp scene RUN --resume {path}")
        raise
    if path:
        report.line(f"wrote {', '.join(str(p) for p in (path, *export(stage, path)))}")
    return result


def plan_of(asked: Asked, cast: Cast) -> ScenePlan:
    """The plan that script and flags make (flags win); raises every fault at its flag."""
    plan = load_script(asked.script, cast) if asked.script else None
    value: dict[str, Any] = plan.model_dump() if plan else {"participants": [c.id for c in cast]}
    if asked.with_ is not None:
        value["participants"] = _names(asked.with_)
    if asked.me is not None:
        value["persons"] = [*value.get("persons", []), asked.me]
        if _id(cast, asked.me) not in (_id(cast, name) for name in value["participants"]):
            value["participants"] = [*value["participants"], asked.me]
    value |= {
        f.name: v
        for f in fields(asked)
        if f.name in ScenePlan.model_fields and (v := getattr(asked, f.name)) is not None
    }
    try:
        plan = ScenePlan.model_validate(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise InputError(first["msg"], _flag(*first["loc"]), "mrp scene --help lists the options") from None
    return settled(plan, cast, _flag)


def _names(text: str) -> list[str]:
    return [name.strip() for name in re.split("[,，、]", text) if name.strip()]


def _flag(*at: str | int) -> str:
    """Where a value of the plan came from: the flag that gives it, or the script."""
    names = {"participants": "--with", "persons": "--me", "steps": "--script"}
    return names.get(str(at[0]), f"--{at[0]}") if at else "mrp scene"


def _id(cast: Cast, name: str) -> str:
    found = cast.get(name)
    return found.id if found else name.strip()


def _nothing_contradicts(asked: Asked, plan: ScenePlan, cast: Cast) -> None:
    """Refuse flags that would make another scene of the one that goes on."""
    if asked.script is not None or asked.with_ is not None:
        flag = "--script" if asked.script is not None else "--with"
        raise InputError("the scene that goes on has its own", flag, f"leave {flag} out, or name a new --out")
    for name in ("turns", "director", "scenario", "seed", "memory", "lore"):
        value = getattr(asked, name)
        if value is not None and value != getattr(plan, name):
            what = f"the scene that goes on has {name} {getattr(plan, name)!r}, not {value!r}"
            raise InputError(what, f"--{name}", f"leave --{name} out, or name a new --out")
    if asked.me is not None and _id(cast, asked.me) not in plan.persons:
        raise InputError(f"{asked.me!r} does not play in the scene that goes on", "--me", "leave --me out")
