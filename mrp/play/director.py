"""Who speaks next in a scene: four strategies, all of them deterministic for a seed.

    choose(stage)             # Choice("wukong", "was mentioned"), or None: a person decides (manual)

natural: whoever the last line mentions, else by lot, weighted by talkativeness; model: the model itself scores the
names after one shared prompt (no sampling); nobody speaks twice in a row where somebody else could.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mrp.data.view import NAME_MARK, SYSTEM, USER, Message

if TYPE_CHECKING:
    from mrp.play.scene import Stage

TALKATIVENESS = 0.5  # of whom is not in the cast, as in SillyTavern
SHOWN_LINES = 12  # to the model that names the next speaker
ASK = {
    "en": ("A scene with {names}.", "Who of {names} speaks next? Answer with the name alone."),
    "zh": ("一场戏，在场的有{names}。", "{names}中下一个说话的是谁？只回答名字。"),
}


class Choice(NamedTuple):
    """Who speaks, and why."""

    speaker: str
    why: str


def choose(stage: Stage) -> Choice | None:
    """The next speaker by the plan's strategy; None where a person decides, or nobody can."""
    candidates = stage.candidates()
    if not candidates or stage.plan.director == "manual":
        return None
    if len(candidates) == 1:
        return Choice(candidates[0], "nobody else can")
    if stage.plan.director == "round-robin":
        return Choice(_next_in_round(stage, candidates), "its turn")
    last = stage.last_speaker
    others = [c for c in candidates if c != last]
    if stage.plan.director == "model":
        return _scored(stage, others)
    text = stage.turns[stage.last_line].text if last else ""
    mentioned = _mentioned(stage, text, others)
    if mentioned:
        return Choice(mentioned, "was mentioned")
    weights = [stage.plan.talkativeness.get(c, _own_talkativeness(stage, c)) for c in others]
    draw = random.Random(f"{stage.plan.seed}/{len(stage.turns)}/director")
    if sum(weights) == 0:
        return Choice(draw.choice(others), "by lot")
    return Choice(draw.choices(others, weights)[0], "by lot")


def _own_talkativeness(stage: Stage, speaker: str) -> float:
    found = stage.cast.get(speaker)
    return found.talkativeness if found else TALKATIVENESS


def _next_in_round(stage: Stage, candidates: Sequence[str]) -> str:
    """Whoever spoke longest ago; those who did not speak yet first, as they came in."""
    spoke = {turn.speaker: k for k, turn in enumerate(stage.turns) if turn.is_line}
    for k, name in enumerate(stage.silences):  # silence was a turn, too
        spoke[name] = max(spoke.get(name, -1), len(stage.turns) + k)
    return min(candidates, key=lambda c: spoke.get(c, -1))


def _mentioned(stage: Stage, text: str, candidates: Sequence[str]) -> str | None:
    """The candidate whose name (or alias) comes last in `text`: a line mostly ends with whom it turns to."""
    places: dict[str, int] = {}
    for candidate in candidates:
        found = stage.player.cast.get(candidate) if stage.player.cast else None
        for name in found.names if found else (candidate,):
            border = r"\b" if name.isascii() else ""
            for match in re.finditer(rf"{border}{re.escape(name)}{border}", text, re.IGNORECASE):
                places[candidate] = max(places.get(candidate, -1), match.end())
    return max(places, key=lambda c: places[c]) if places else None


def _scored(stage: Stage, candidates: Sequence[str]) -> Choice:
    """The candidate whose name the model finds likeliest, told with its share of the probability of all of them."""
    player, cast = stage.player, stage.cast
    language = cast.language
    names = [cast.display_name(c) for c in candidates]
    listed = ", ".join(names) if language == "en" else "、".join(names)
    lines = [t for t in stage.turns if t.is_line][-SHOWN_LINES:]
    shown = "\n".join(f"{cast.display_name(t.speaker)}{NAME_MARK[language]}{t.text}" for t in lines)
    scene, question = (text.format(names=listed) for text in ASK[language])
    setting = stage.plan.scenario or cast.scenario
    head = Message(SYSTEM, f"{scene}\n{setting}".strip())
    room = player.options.context_tokens - 32  # for the longest name
    ids, _ = player.template.prompt_within([head, Message(USER, f"{shown}\n\n{question}".strip())], room)
    tails = [[*player.template.plain.ids(name, ""), player.template.end_of_turn_id] for name in names]
    sums = [sum(scores) for scores in player.engine.score(ids, tails)]
    best = max(range(len(names)), key=lambda k: sums[k])
    share = 1 / sum(math.exp(s - sums[best]) for s in sums)
    return Choice(candidates[best], f"the model: {share:.0%}")
