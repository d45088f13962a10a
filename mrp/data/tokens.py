"""How many tokens a text has, about, without a tokenizer: one a Chinese character, one for four Latin letters.

    estimated_tokens("俺老孙来也")       # 5
    estimated_tokens("Who goes there?")  # 3

For lint and for statistics of dialogues, where a tokenizer would take longer than all the rest. Training counts by the
real tokenizer.
"""

from __future__ import annotations


def estimated_tokens(text: str) -> int:
    """About how many tokens `text` has: (3 x UTF-8 bytes - characters) / 8, at least 1 for a text that is not empty.

    That is a quarter for an ASCII character, 1 for a CJK one (3 bytes), 5/8 for Greek or Cyrillic, 11/8 for an emoji.
    """
    characters = len(text)
    if text.isascii():
        return -(-characters // 4)
    return -(-(3 * len(text.encode("utf-8", "surrogatepass")) - characters) // 8)
