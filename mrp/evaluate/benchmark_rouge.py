"""ROUGE-L (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"): the longest common word sequence.

    rouge_l("Ha! Old Monkey", "Old Monkey is here")      # F1 over words: 2 * 2 / (3 + 4)

For English the figures are those of the package rouge-score without stemming; that one knows no Chinese, where each
character is a word here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")


def rouge_l(text: str, reference: str) -> float:
    """The F-measure of the common subsequence, from 0 to 1; 0 where either has no word."""
    mine, theirs = (_WORD.findall(one.lower()) for one in (text, reference))
    common = common_subsequence(mine, theirs)
    return 2 * common / (len(mine) + len(theirs)) if common else 0.0


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence, a row of the table in one integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for k, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << k
    whole = (1 << len(a)) - 1
    row = whole
    for word in b:
        found = row & places.get(word, 0)
        row = (row + found | row - found) & whole
    return len(a) - row.bit_count()
