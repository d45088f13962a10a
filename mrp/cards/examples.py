"""The example dialogues of a card (`mes_example`, blocks after <START>) as scenes of our own format.

rows, notes = example_scenes("<START>\\n{{user}}: Hi.\\n{{char}}: *waves*", draft, "ada", "en")
rows[0]["turns"]      # [{"speaker": "other", "text": "Hi."}, {"speaker": "ada", "text": "*waves*"}]
"""

from __future__ import annotations

import re
from typing import Any

from mrp.cards.character import CHAR, USER, Draft, clean_text
from mrp.cast import NEUTRAL_NAME, OTHER, fill_user

_START = re.compile(r"<START>", re.IGNORECASE)


def example_scenes(text: str, draft: Draft, character_id: str, language: str) -> tuple[list[dict[str, Any]], list[str]]:
    """A scene for each block in which the character says something, and what to tell about the others.

    A line that begins with {{char}}, {{user}}, the name or the nickname and a colon starts a turn. What stands before
    the first of them sets the scene: it follows the card's scenario. {{user}} within a text becomes the neutral name.
    """
    rows: list[dict[str, Any]] = []
    silent = 0
    label = _label(draft)

    def clean(part: str) -> str:
        return fill_user(clean_text(part, draft.called), NEUTRAL_NAME[language])

    for block in _START.split(text.replace("\r\n", "\n").replace("\r", "\n")):
        if not block.strip():
            continue
        before, *parts = label.split(block)
        turns = []
        for name, is_own, line in zip(parts[0::3], parts[1::3], parts[2::3], strict=True):
            del name
            if clean(line):
                turns.append({"speaker": character_id if is_own else OTHER, "text": clean(line)})
        if not any(turn["speaker"] == character_id for turn in turns):
            silent += 1
            continue
        row: dict[str, Any] = {"id": f"{character_id}-example-{len(rows) + 1}", "participants": [character_id, OTHER]}
        setting = "\n\n".join(part for part in (clean(draft.scenario), clean(before)) if part)
        rows.append({**row, **({"scenario": setting} if setting else {}), "turns": turns})
    notes = [f"{silent} example blocks have no line of the character; they stay in the card alone"] if silent else []
    return rows, notes


def _label(draft: Draft) -> re.Pattern[str]:
    """Matches the beginning of a turn; group 2 is there if it is the character's."""
    own = "|".join([CHAR, *(re.escape(name) for name in (draft.name, draft.called))])
    return re.compile(rf"^[ \t]*((?P<own>{own})|{USER}|you|user)[ \t]*[:：]", re.IGNORECASE | re.MULTILINE)
