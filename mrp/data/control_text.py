"""Pieces of chat templates that were left in the text of a dialogue: <|im_start|>, [INST], </s>, <end_of_turn>.

    control_text("Ha!<|im_end|>\\n<|im_start|>user\\nWho?")               # "<|im_end|>"
    without_control_text("Ha!<|im_end|>\\n<|im_start|>user\\nWho?")       # "Ha!"

Used by `lint.py` and `fix.py`. Training would never take them for control tokens (`plain_text.py`): it would teach them
as text.
"""

from __future__ import annotations

import re

_ROLE = r"(?:system|user|assistant|model|tool|human|bot|observation)"
_SEPARATORS = (  # what begins or ends a turn, with the role beside it
    rf"<\|(?:im_start|start)\|>(?:{_ROLE}\b)?[ \t]*(?:\n|<\|message\|>)?",
    r"<\|start_header_id\|>\s{0,4}\w{0,20}\s{0,4}<\|end_header_id\|>",
    rf"<start_of_turn>(?:{_ROLE}\b)?",
    rf"<\|{_ROLE}\|>:?",
    r"<\|(?:im_end|end|eot_id|eom_id|endoftext|end_of_text|end_of_turn|eos|EOT|return)\|>",
    r"<end_of_turn>|<eo[ahsu]>|<(?:bos|eos)>|\[/?INST\]|\[UNUSED_TOKEN_14[56]\]",
    r"<｜(?:User|Assistant|end▁of▁sentence|begin▁of▁sentence)｜>",
    r"\A\s*<s>|</s>\s*\Z|</s>\s*(?=<s>|\[INST)|<s>\s*(?=\[INST)",
)
_OTHERS = r"<\|[A-Za-z][\w/ ]{0,30}\|>|<</?SYS>>|\[UNUSED_TOKEN_\d+\]|\[gMASK\]|<reserved_\d+>|<｜[\w▁ ]{1,30}｜>"
_SEPARATOR = re.compile("|".join(_SEPARATORS), re.IGNORECASE)
_ANY = re.compile("|".join((*_SEPARATORS, _OTHERS)), re.IGNORECASE)
_OTHER = re.compile(_OTHERS)
_OPENED, _CLOSED = re.compile(r"(?:\s*<s>)+"), re.compile(r"(?:\s*>s/<)+")  # the second for a text read backwards


def control_text(text: str) -> str:
    """The first piece of a chat template in `text`, or ""."""
    if "<" not in text and "[" not in text:
        return ""
    found = _ANY.search(text)
    return found.group().strip() if found else ""


def without_control_text(text: str) -> str:
    """`text` without pieces of templates, up to where the next turn begins.

    "" where nothing is left, and where the text holds several turns from its start on: which of them is meant, nobody
    can tell.
    """
    first, *rest = (_OTHER.sub("", part).strip() for part in _SEPARATOR.split(_inside(text)))
    turns = [part for part in rest if part]
    if first or not turns:
        return first
    return turns[0] if len(turns) == 1 else ""


def _inside(text: str) -> str:
    """`text` without any <s> at its start and </s> at its end. (All at once: a pattern for the end takes too long.)"""
    start, end = _OPENED.match(text), _CLOSED.match(text[::-1])
    return text[start.end() if start else 0 : len(text) - (end.end() if end else 0)]
