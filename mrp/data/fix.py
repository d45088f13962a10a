"""A scene mended where nothing has to be guessed: what `mrp data check --fix OUT` writes.

    mended, done = repaired(scene, linter.lint(scene), linter)
    done                                                # Counter({"mojibake": 1, "turns-taken-out": 2})

After `lint.py`, whose table `FINDINGS` says what is done for each reason. Everything else stays as it is, and is still
found afterwards. A scene that is mended has nothing left to mend, and one without such findings comes back itself.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from mrp.data.control_text import without_control_text
from mrp.data.lint import FINDINGS, WHOLE, Finding, Linter
from mrp.data.markup import without_markup
from mrp.data.mojibake import mojibake
from mrp.dialogue import Scene, Turn

OUTER_BLANKS = "outer-blanks"
TAKEN_OUT = "turns-taken-out"
NO_REPLY = "no-reply"
MOST_PASSES = 20  # people's texts need two or three; a text that nests faults in faults thousands deep is no text


def repaired(scene: Scene, findings: Iterable[Finding], linter: Linter) -> tuple[Scene | None, Counter[str]]:
    """The scene without what can be mended, and how many turns were mended for each reason.

    `findings` are what `linter` found in `scene`. Also counted: `outer-blanks`, `turns-taken-out`, and `no-reply` where
    no character says anything any more; the scene is None then.
    """
    done: Counter[str] = Counter()
    stripped = _stripped(scene, done)
    if stripped is not scene:  # turns may have other numbers now
        scene, findings = stripped, linter.lint(stripped)
    for passes in itertools.count():  # a text put right may show the next fault; all passes make the scene shorter
        wanted = [finding for finding in findings if is_mendable(scene, finding)]
        if not wanted:
            break
        scene = _mended(scene, wanted, linter, done, give_up=passes >= MOST_PASSES)
        findings = linter.lint(scene)
    if done[TAKEN_OUT] and not any(linter.is_character(speaker) for speaker in scene.speakers()):
        done[NO_REPLY] += 1
        return None, done
    return scene, done


def is_mendable(scene: Scene, finding: Finding) -> bool:
    """True if `repaired` does something about this finding of `scene`."""
    if finding.turn == WHOLE or not FINDINGS[finding.reason].mended:
        return False
    text = scene.turns[finding.turn].text
    if finding.reason == "mojibake":
        found = mojibake(text)
        return found is not None and found[1] is not None
    if finding.reason == "html":
        return without_markup(text) != text
    return True


def scene_row(scene: Scene) -> dict[str, Any]:
    """The scene as a line of our own format; `read.py` reads the same scene from it."""
    turns = [turn.row() for turn in scene.turns]
    row = {"id": scene.id, "participants": list(scene.participants), "scenario": scene.scenario, "turns": turns}
    return {key: value for key, value in row.items() if value or key == "turns"}


def _stripped(scene: Scene, done: Counter[str]) -> Scene:
    """The scene without blanks around its texts, and without turns that hold nothing else."""
    if all(not turn.is_line or (turn.text and turn.text == turn.text.strip()) for turn in scene.turns):
        return scene
    turns: list[Turn] = []
    for turn in scene.turns:
        text = turn.text.strip()
        if not text and turn.is_line:
            done[TAKEN_OUT] += 1
            continue
        done[OUTER_BLANKS] += text != turn.text
        turns.append(replace(turn, text=text))
    return replace(scene, turns=tuple(turns))


def _mended(scene: Scene, findings: Iterable[Finding], linter: Linter, done: Counter[str], give_up: bool) -> Scene:
    """The scene after one pass over its findings; `give_up`: turns that are still not right are taken out."""
    turns: list[Turn | None] = list(scene.turns)
    present = linter.names_present(scene)
    for finding in findings:
        index = finding.turn
        turn = turns[index]
        if turn is None:
            continue  # taken out for another reason
        done[finding.reason] += 1
        text = ""
        if give_up:
            pass
        elif finding.reason == "mojibake":
            text = (mojibake(turn.text) or ("", None))[1] or turn.text
        elif finding.reason == "echoed-control-token":
            text = without_control_text(turn.text)
        elif finding.reason == "html":
            text = without_markup(turn.text)
        elif finding.reason == "speaks-for-another":
            found = linter.foreign_line(turn.text, turn.speaker, present)
            text = turn.text[: found[0]] if found else turn.text
        text = text.strip()
        if text:
            turns[index] = replace(turn, text=text)
            continue
        turns[index] = None
        done[TAKEN_OUT] += 1
        # what was asked would else be answered by the next reply; a repeated prompt waits for its real answer
        if linter.is_character(turn.speaker) and finding.reason != "same-text":
            _take_out_prompt(turns, index, linter, done)
    return replace(scene, turns=tuple(turn for turn in turns if turn is not None))


def _take_out_prompt(turns: list[Turn | None], reply: int, linter: Linter, done: Counter[str]) -> None:
    """Take out the line before a reply, unless it is a character's, who said it well."""
    for index in range(reply - 1, -1, -1):
        turn = turns[index]
        if turn is None:
            return
        if turn.is_line:
            if not linter.is_character(turn.speaker):
                turns[index] = None
                done[TAKEN_OUT] += 1
            return
