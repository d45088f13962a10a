"""What comes next in a scene: a step that the script fixes, or a line by whoever the script or the director names.

    found = due(stage)
    if found.is_fixed: perform(stage, found)
    else: stage.reply(found.who, **found.more)      # found.who "": a person decides

The terminal (`scene_terminal.py`) and programs (`live_scene.py`) both go on by it.
"""

from __future__ import annotations

from typing import NamedTuple

from mrp.dialogue import Turn
from mrp.play.director import choose
from mrp.play.scene import Stage
from mrp.play.scene_plan import Step


class Due(NamedTuple):
    """What comes next."""

    who: str  # speaks, enters or leaves; "" where a person names the speaker
    step: Step | None  # of the script
    more: dict[str, int]  # what goes into the event, so that a scene's file knows how far the script is

    @property
    def is_fixed(self) -> bool:
        """Whether the script says all of it."""
        return self.step is not None and bool(self.step.speaker or self.step.enter or self.step.leave)


def due(stage: Stage) -> Due:
    """What comes next on a stage that is not over."""
    step = stage.upcoming()
    more = {} if step is None else {"step": stage.step}
    if step is not None and step.name:
        return Due(step.name, step, more)
    choice = choose(stage)
    return Due(choice.speaker if choice else "", step, more)


def perform(stage: Stage, found: Due) -> Turn | None:
    """Let a fixed step happen; None for an entrance or exit that a person saw to before."""
    step = found.step
    assert step is not None and found.is_fixed
    if step.speaker:
        stage.say(found.who, step.text, **found.more)
    elif (found.who in stage.present) == bool(step.enter):
        stage.step += 1
        return None
    else:
        (stage.enter if step.enter else stage.leave)(found.who, **found.more)
    return stage.turns[-1]
