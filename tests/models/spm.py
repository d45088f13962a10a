"""llama.cpp's SentencePiece tokenizer in a few lines, from the fields of a GGUF file: what the scores mean.

ids = SpmReader(fields).ids("Amitabha.")     # as llama_tokenize gives them, control tokens in the text parsed
"""

from __future__ import annotations

import itertools
import re
from typing import Any

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4


class SpmReader:
    """Cuts text at control and user-defined tokens, then joins the neighbours whose union has the best score."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.names = fields["tokenizer.ggml.tokens"]
        self.number = {name: i for i, name in enumerate(self.names)}
        self.scores = fields["tokenizer.ggml.scores"]
        self.add_space = fields["tokenizer.ggml.add_space_prefix"]
        types = fields["tokenizer.ggml.token_type"]
        whole = [n for n, t in zip(self.names, types, strict=True) if t in (UNKNOWN, CONTROL, USER_DEFINED)]
        self.whole = re.compile("(" + "|".join(re.escape(n) for n in sorted(whole, key=len, reverse=True)) + ")")

    def ids(self, text: str) -> list[int]:
        found: list[int] = []
        after_whole = True
        for k, part in enumerate(self.whole.split(text)):
            if k % 2:
                found.append(self.number[part])
                after_whole = True
            elif part:
                found += self._joined((" " if self.add_space and after_whole else "") + part)
                after_whole = False
        return found

    def _joined(self, text: str) -> list[int]:
        symbols = list(text.replace(" ", "▁"))
        while True:
            pairs = [
                (-self.scores[self.number[a + b]], k)
                for k, (a, b) in enumerate(itertools.pairwise(symbols))
                if a + b in self.number
            ]
            if not pairs:
                break
            k = min(pairs)[1]
            symbols[k : k + 2] = [symbols[k] + symbols[k + 1]]
        return [i for s in symbols for i in self._known(s)]

    def _known(self, symbol: str) -> list[int]:
        if symbol in self.number:
            return [self.number[symbol]]
        return [self.number[f"<0x{byte:02X}>"] for byte in symbol.encode()]
