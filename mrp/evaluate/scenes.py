"""Scenes of several characters: who gets to speak, who speaks for others, who keeps a voice among others.

    plans = scene_plans(cast, count=4, lines=8, seed=0)
    played = [play_scene(player, "MODEL", plan, kept) for plan in plans]      # the events of each
    scene_figures(plans, played, voices, cast, seed=0)

Scenes are played as `mrp scene` plays them (`play/scene.py`, `play/director.py`), in the settings of the cast and of
its members' cards, three at a time (all of a cast of two), each of the cast equally often to one. A scene is kept
whole: one that was cut off is played anew.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mrp.cast import NEUTRAL_NAME, Cast, fill_user
from mrp.evaluate.intervals import equal_shares, estimate
from mrp.evaluate.kept import Kept
from mrp.evaluate.voice import Voices
from mrp.files import fingerprint
from mrp.play.director import choose
from mrp.play.guard import RULES
from mrp.play.reply import Player, names_of_others
from mrp.play.scene import Stage
from mrp.play.scene_plan import ScenePlan

TOGETHER = 3  # in a scene
DRAWS = 400  # of blind directors
Events = list[dict[str, Any]]


def scene_plans(cast: Cast, count: int, lines: int, seed: int) -> list[ScenePlan]:
    """`count` scenes of so many lines. Groups go round the cast, settings go round what the cast tells."""
    ids = [c.id for c in cast]
    size = min(TOGETHER, len(ids))
    plans = []
    for number in range(count):
        group = [ids[(number * size + k) % len(ids)] for k in range(size)]
        user = NEUTRAL_NAME[cast.language]
        told = dict.fromkeys([cast.scenario, *(fill_user(cast[who].scenario, user).strip() for who in group)])
        settings = [text for text in told if text] or [""]
        setting = settings[number % len(settings)]
        plans.append(ScenePlan(participants=group, scenario=setting, turns=lines, seed=seed * 1000 + number))
    return plans


def scene_key(player: Player, model: str, plan: ScenePlan) -> str:
    """What a played scene depends on, as a hash. `model` is the model's whole identity."""
    assert player.cast is not None
    cast = player.cast.model_dump(mode="json", exclude={"home", "dialogues"})
    for character in cast["characters"]:
        character.pop("dialogues", None)
    made_of: dict[str, Any] = {"scene": plan.model_dump(), "model": model, "cast": cast, "stops": player.stop_ids}
    made_of |= {"guard": RULES}
    return fingerprint(made_of | {"options": player.options.model_dump(), "template": player.template.record()})


def play_scene(player: Player, model: str, plan: ScenePlan, kept: Kept) -> Events:
    """What happened in the scene, played now if it is not kept."""
    key = scene_key(player, model, plan)
    if key not in kept:
        events: Events = []
        stage = Stage(player, plan, events.append)
        while not stage.over() and (choice := choose(stage)):
            for _ in stage.reply(choice.speaker):
                pass
        kept.add(key, events)
    found: Events = kept[key]
    return found


def scene_figures(
    plans: Sequence[ScenePlan], played: Sequence[Events], voices: Voices, cast: Cast, seed: int
) -> dict[str, Any] | None:
    """Figures over all turns, silent ones included, each interval over scenes. None where nobody had a turn.

    guard: the guard cut a reply where somebody else's line began; passed: another's name and a colon stand somewhere in
    what was kept (the guard knows them at the beginning of a line); silent: said nothing; own_voice: a line sounds like
    its character. uneven: the share of a scene's turns that would have to go to others for all to have the same;
    uneven_by_chance: the same where the next is drawn blindly of those who did not speak last, as few turns are never
    quite even; of each character also share: its turns over what an even director gives, 1 is even.
    """
    turns = [
        (f"scene-{number}", event.get("speaker") or event["silent"], event)
        for number, events in enumerate(played)
        for event in events
        if "speaker" in event or "silent" in event
    ]
    if not turns:
        return None
    present = {f"scene-{number}": plan.participants for number, plan in enumerate(plans)}
    texts = [event.get("text", "") for _, _, event in turns]
    picked = voices.judge(texts, "as is").picked
    spoke = [bool(text) for text in texts]
    values: dict[str, list[float]] = {
        "guard": [float(bool(event.get("guarded"))) for _, _, event in turns],
        "passed": [float(_speaks_for(cast, present[scene], who, e.get("text", ""))) for scene, who, e in turns],
        "silent": [float(not said) for said in spoke],
        "own_voice": [float(p == who and said) for p, (_, who, _), said in zip(picked, turns, spoke, strict=True)],
    }
    counts = {scene: Counter(who for s, who, _ in turns if s == scene) for scene in present}
    counts = {scene: own for scene, own in counts.items() if own}
    uneven = estimate([_uneven(own, present[scene]) for scene, own in counts.items()], list(counts), seed)
    chance = [_uneven_by_chance(present[scene], own.total(), seed) for scene, own in counts.items()]
    characters = {}
    for one in [c.id for c in cast]:
        rows = [k for k, (_, who, _) in enumerate(turns) if who == one]
        found = _rates({key: [own[k] for k in rows] for key, own in values.items()}, [turns[k] for k in rows], seed)
        among = {s: own[one] * len(present[s]) / own.total() for s, own in counts.items() if one in present[s]}
        figure = estimate(list(among.values()), list(among), seed)
        characters[one] = found | {"turns": len(rows), "share": figure.as_json() if figure else None}
    return {
        "scenes": len(counts),
        "turns": len(turns),
        "all": _rates(values, turns, seed)
        | {"uneven": uneven.as_json() if uneven else None, "uneven_by_chance": round(sum(chance) / len(chance), 6)},
        "characters": characters,
    }


def _rates(
    values: dict[str, list[float]], turns: Sequence[tuple[str, str, dict[str, Any]]], seed: int
) -> dict[str, Any]:
    """Each character counts the same."""
    shares, units = equal_shares([who for _, who, _ in turns]), [scene for scene, _, _ in turns]
    figures = {key: estimate(own, units, seed, shares, is_rate=True) for key, own in values.items()}
    return {key: figure.as_json() if figure else None for key, figure in figures.items()}


def _uneven(counts: Counter[str], present: Sequence[str]) -> float:
    """Half of the sum of what each has too much or too little, as a share of all turns."""
    return sum(abs(counts[who] / counts.total() - 1 / len(present)) for who in present) / 2


def _uneven_by_chance(present: Sequence[str], turns: int, seed: int) -> float:
    """The mean of `_uneven` over blind directors: each turn goes to one of those who did not speak last."""
    drawn = random.Random(seed)
    found = 0.0
    for _ in range(DRAWS):
        last, counts = "", Counter[str]()
        for _ in range(turns):
            last = drawn.choice([who for who in present if who != last])
            counts[last] += 1
        found += _uneven(counts, present)
    return found / DRAWS


def _speaks_for(cast: Cast, present: Sequence[str], who: str, text: str) -> bool:
    """Whether another's name and a colon stand anywhere in a text; looked for apart from the guard, to check on it."""
    others = "|".join(re.escape(name) for name in names_of_others(cast, present, who) if name)
    return bool(others) and re.search(rf"(?<!\w)(?:{others})\s*[:：]", text, re.IGNORECASE) is not None
