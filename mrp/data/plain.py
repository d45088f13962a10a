"""Plain everyday prompts that name no character: for the base's own replies (`own_replies.py`), and for measuring.

    plain_prompts("en", "for_training")         # 100 prompts
    plain_prompts("both", "held_out")           # 150 others, of the same topics

They lie in `plain_prompts/LANGUAGE.txt`, one a line, in topics ("# rewrite"). Half of each topic is for training, by a
hash of the prompt, so that what is measured on the other half is no prompt that was trained.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

Language = Literal["en", "zh", "both"]
Half = Literal["for_training", "held_out"]

HOME = Path(__file__).parent / "plain_prompts"
LANGUAGES = ("en", "zh")


def plain_prompts(language: Language, half: Half) -> list[str]:
    """One half of the prompts of a language, in the order of the file; `both`: English, then Chinese."""
    chosen = []
    for name in LANGUAGES if language == "both" else (language,):
        for prompts in _topics(name).values():
            for_training = set(sorted(prompts, key=_hash)[: (len(prompts) + 1) // 2])
            chosen += [prompt for prompt in prompts if (prompt in for_training) == (half == "for_training")]
    return chosen


def _topics(language: str) -> dict[str, list[str]]:
    """The prompts of each topic of a language."""
    topics: dict[str, list[str]] = {}
    topic = ""
    for line in (HOME / f"{language}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            topic = line[2:]
        elif line.strip():
            topics.setdefault(topic, []).append(line.strip())
    return topics


def _hash(prompt: str) -> bytes:
    return hashlib.sha256(prompt.encode()).digest()
