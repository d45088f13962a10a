"""Books as CoSER writes them (Neph0s/CoSER): every conversation in them becomes a scene of several characters.

    {"plots": [{"conversation": [{"scenario": "...", "key_characters": [{"name": "Iago"}, ...],
      "dialogues": [{"character": "Iago", "message": "[He trusts me.] (smiling) Call up her father."}, ...]}]}]}

What is relied on: a book is an object with `plots`, a plot an object with a list `conversation`, a conversation an
object with a list `dialogues`, as in the data set's book files (`final/TITLE.json`) and, for bare conversations, in
its `test_set.json`. A line of `dialogues` has `character` (or `name`) and `message`; its `thought` or `description`
stands there where the model that made the set forgot `message`. All else (summaries, profiles, motivations) is read
past.

Thoughts in [brackets] are heard by nobody: they are left out and counted. Actions in (parentheses) are seen by all, and
stay. "Environment" speaks as somebody outside the cast. Called by `read.py` for the value of one line or element.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mrp.data.chat import as_utf8
from mrp.data.record import SHOWN_TEXT, Faults, Names
from mrp.dialogue import Scene, Turn

FORMAT = "coser"
STREAMED = ("plots",)  # read one by one where a file is one book
ENVIRONMENT = "Environment"  # who tells what happens around the characters
LINE_KEYS = ("character", "name", "message", "thought", "description", "i_p", "i_c", "i_u")

_THOUGHT = re.compile(r"\[[^\[\]]*\]|【[^【】]*】")


def is_coser(value: Any) -> bool:
    """True for a book, a plot of one, or a bare conversation."""
    if not isinstance(value, dict):
        return False
    if "plots" in value or "dialogues" in value:
        return "turns" not in value
    parts = value.get("conversation")
    if not isinstance(parts, list):
        return False
    return "key_characters" in value or any(isinstance(part, dict) and "dialogues" in part for part in parts[:2])


def conversations(value: dict[str, Any], faults: Faults) -> Iterator[tuple[str, Any]]:
    """(where it stands in the value, the conversation) of each; what is wrong with the book around them goes to
    `faults`."""
    if "dialogues" in value:
        yield "", value
        return
    plots = [("", value)]
    if "plots" in value:
        plots = [(f"plots[{k}].", plot) for k, plot in enumerate(faults.items(value["plots"], "plots"))]
    for at, plot in plots:
        if not isinstance(plot, dict):
            faults.add("wrong-type", f"{at.removesuffix('.')} is not an object")
            continue
        found = plot.get("conversation")
        for k, conversation in enumerate(faults.items([] if found is None else found, f"{at}conversation")):
            yield f"{at}conversation[{k}].", conversation


def read_conversation(value: Any, at: str, names: Names, source: str, faults: Faults, dropped: Counter[str]) -> Scene:
    """The scene that a conversation is. The key characters are there from the start, and everybody who speaks."""
    found = faults.mapping(value, at.removesuffix("."), value if isinstance(value, dict) else ())
    scenario = faults.text(found.get("scenario"), f"{at}scenario", optional=True)
    present = dict.fromkeys(_key_characters(found.get("key_characters"), names))
    turns: list[Turn] = []
    for k, item in enumerate(faults.items(found.get("dialogues"), f"{at}dialogues")):
        turn = _line(item, f"{at}dialogues[{k}]", names, faults, dropped)
        if turn:
            turns.append(turn)
            present[turn.speaker] = None
    return Scene("", tuple(present), tuple(turns), scenario, source)


def shown(conversation: Any) -> str:
    """The beginning of a conversation as JSON, fit to be written."""
    try:
        text = json.dumps(conversation, ensure_ascii=False)
    except RecursionError:
        return ""
    return as_utf8(text[:SHOWN_TEXT])


def _key_characters(value: Any, names: Names) -> Iterator[str]:
    """Those who are said to be there. The set's makers are not strict here, so what is no name is read past."""
    for item in value if isinstance(value, list) else ():
        name = item.get("name", item.get("character")) if isinstance(item, dict) else item
        checked = Faults()
        text = checked.name(name, "")
        if text and not checked.found:
            yield names.speaker(text)


def _line(item: Any, at: str, names: Names, faults: Faults, dropped: Counter[str]) -> Turn | None:
    line = faults.mapping(item, at, LINE_KEYS)
    if not line:
        if item == {}:
            faults.add("wrong-type", f"{at} is empty")
        return None
    key = "character" if "character" in line else "name"
    name = faults.name(line.get(key), f"{at}.{key}")
    if "message" not in line and "thought" in line:
        faults.text(line["thought"], f"{at}.thought")
        dropped["inner_thought"] += 1
        return None
    key = "message" if "message" in line else "description"
    text = faults.text(line.get(key), f"{at}.{key}")
    if not name or not text:
        if name:
            dropped["empty_reply" if names.is_character(names.speaker(name)) else "empty_prompt"] += 1
        return None
    heard, thoughts = without_thoughts(text)
    dropped["inner_thought"] += thoughts
    return Turn(names.speaker(name), heard) if heard else None


def without_thoughts(text: str) -> tuple[str, int]:
    """What others hear and see of a message, and the number of thoughts in it."""
    if "[" not in text and "【" not in text:
        return text, 0
    thoughts = 0
    while True:
        text, found = _THOUGHT.subn(" ", text)
        if not found:
            break
        thoughts += found
    return (re.sub(r" {2,}", " ", text).strip(), thoughts) if thoughts else (text, 0)
