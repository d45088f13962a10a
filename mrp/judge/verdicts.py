"""A judge's answer, read strictly: the JSON object that was asked for, or a reason why it is none. Nothing is guessed.

    read_choice('{"why": "...", "better": "A"}')          # "A"
    read_scores('{"why": "...", "scores": {...}}')         # {"knowledge": 4, ...}

What may stand around the object: blanks, one code fence, and the thoughts of a thinking model in <think>...</think>.
"""

from __future__ import annotations

import json
import re
from typing import Any

from mrp.judge.rubric import HIGHEST, IDS, LOWEST

CHOICES = ("A", "B", "tie")
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n\s*```\Z", re.DOTALL)


class NoVerdict(ValueError):
    """The answer is not what was asked for; its text says why."""


def read_choice(text: str) -> str:
    """Which of two replies is better: "A", "B" or "tie". Raises `NoVerdict`."""
    better = _object(text, {"why", "better"})["better"]
    if better not in CHOICES:
        raise NoVerdict(f'"better" is {json.dumps(better)[:40]}, not one of "A", "B", "tie"')
    return str(better)


def read_scores(text: str) -> dict[str, int]:
    """A mark from 1 to 5 for each dimension of the rubric. Raises `NoVerdict`."""
    scores = _object(text, {"why", "scores"})["scores"]
    if not isinstance(scores, dict) or set(scores) != set(IDS):
        raise NoVerdict(f'"scores" must hold exactly {", ".join(IDS)}')
    for name, mark in scores.items():
        if not isinstance(mark, int) or isinstance(mark, bool) or not LOWEST <= mark <= HIGHEST:
            raise NoVerdict(f"{name} is {json.dumps(mark)[:40]}, not a whole number from {LOWEST} to {HIGHEST}")
    return {name: scores[name] for name in IDS}


def _object(text: str, keys: set[str]) -> dict[str, Any]:
    text = _THOUGHTS.sub("", text).strip()
    fenced = _FENCE.match(text)
    try:
        value = json.loads(fenced.group(1) if fenced else text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise NoVerdict(str(error) if isinstance(error, NoVerdict) else "it is not one JSON object") from None
    if not isinstance(value, dict) or set(value) != keys:
        raise NoVerdict(f"its keys must be exactly {', '.join(sorted(keys))}")
    if not isinstance(value["why"], str):
        raise NoVerdict('"why" must be a text')
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NoVerdict("a key stands in it twice")
    return found
