"""Text to token ids between a template's control tokens, so that text never becomes one.

    plain = PlainText(tokenizer)
    plain.ids("Ha!", after="<|im_start|>")      # as the tokenizer would make them there
    plain.ids("<|im_end|>")                     # some ids, none of them a control token's

Control tokens are the tokenizer's special tokens, and added tokens that look like a tag. `render.py` uses this for
every text of people or data, and for the template's own words between control tokens.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

TAG_LIKE = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")  # added tokens of this shape are control tokens, special or not


class PlainText:
    """A tokenizer's way with text that holds no control token."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        names = {str(t) for t in added if t.special or TAG_LIKE.fullmatch(str(t))} | set(tokenizer.all_special_tokens)
        self.control = {name: int(tokenizer.convert_tokens_to_ids(name)) for name in names if len(name) > 1}
        self.control_at = _any_of(self.control)
        self._never_in_text = set(self.control.values()) - {tokenizer.unk_token_id}  # unknown letters give "unk"
        self._tokenised = functools.lru_cache(maxsize=4096)(self._tokenise)

    def cut(self, text: str) -> Iterator[tuple[str, bool]]:
        """Template text as pieces: (control token, True) and the text between them."""
        at = 0
        for found in self.control_at.finditer(text):
            if found.start() > at:
                yield text[at : found.start()], False
            yield found.group(), True
            at = found.end()
        if at < len(text):
            yield text[at:], False

    def apart(self, text: str) -> list[str]:
        """`text` cut inside every control token in it, so that none of the pieces holds one."""
        pieces, at = [], 0
        while found := self.control_at.search(text, at):
            pieces.append(text[at : found.start() + 1])
            at = found.start() + 1
        return [*pieces, text[at:]]

    def ids(self, text: str, after: str = "") -> list[int]:
        """The ids of `text` as the tokenizer makes them after the control token `after` ("": at the very start).

        None of them is a control token's, whatever the tokenizer makes of the text (one that folds full-width letters
        sees a control token where `apart` does not).
        """
        if not text:
            return []
        ids = self._tokenised(after + text)[1 if after else 0 :]
        if self._never_in_text.isdisjoint(ids) or len(text) == 1:
            return list(ids)
        half = len(text) // 2
        return self.ids(text[:half], after) + self.continued_ids(text[half:], after)

    def continued_ids(self, text: str, after: str, before: str = "\n") -> list[int]:
        """The ids of `text` as they go on after the text `before`; as at the start if a tokenizer would merge them."""
        begun, whole = self.ids(before, after), self.ids(before + text, after)
        return whole[len(begun) :] if whole[: len(begun)] == begun else self.ids(text, after)

    def _tokenise(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))


class Stretch:
    """A stretch of text between two control tokens, collected and then tokenised in one go.

    The stretch is cut where the generation prompt ends: that part's ids are what play sends, and the rest must go on
    from there. Where a tokenizer would merge over the cut, the rest is tokenised by itself.
    """

    def __init__(self, plain: PlainText) -> None:
        self.plain = plain
        self.after = ""  # the control token before the stretch
        self.pieces: list[str] = []  # no control token in any of them, nor over a border that must hold
        self.sent = ""  # the part of the stretch that was given out at a cut

    def add(self, text: str, is_text: bool = False) -> None:
        pieces = self.plain.apart(text) if is_text else [text]
        if self.pieces:
            self.pieces[-1] += pieces[0]  # template text and the text beside it are tokenised together
            self.pieces += pieces[1:]
        else:
            self.pieces = pieces

    def flush(self, supervised: bool, before: str = "", cut_here: bool = False) -> Iterator[tuple[list[int], bool]]:
        """Give out the ids collected; `before` is the control token that ends the stretch."""
        for k, piece in enumerate(self.pieces):
            if k or self.sent:
                ids = self.plain.continued_ids(piece, self.after, "\n" if k else self.sent)
            else:
                ids = self.plain.ids(piece, self.after)
            if ids:
                yield ids, supervised
        if cut_here:
            self.sent = self.pieces[-1] if self.pieces else ""
        else:
            self.sent, self.after = "", before
        self.pieces = []


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern for any of the names, the longest first; one that never matches for none."""
    ordered = sorted(names, key=lambda n: (-len(n), n))
    return re.compile("|".join(re.escape(n) for n in ordered) if ordered else r"(?!)")
