"""Rows of dialogue files, in few words."""

from __future__ import annotations

from typing import Any


def pair(prompt: Any, reply: Any, **more: Any) -> dict[str, Any]:
    """One record of XTuner's format with one turn."""
    return {"conversation": [{"input": prompt, "output": reply, **more}]}


def scene(*lines: tuple[str, str] | str, **more: Any) -> dict[str, Any]:
    """One scene of our format: (speaker, text) for a line, a name alone for an entrance."""
    turns = [{"enter": line} if isinstance(line, str) else {"speaker": line[0], "text": line[1]} for line in lines]
    return {"turns": turns, **more}
