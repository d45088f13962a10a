"""A lore entry: a fact, and the keys that bring it up. Where it lies in a cast file; who uses it: `play/lore.py`.

    entry = LoreEntry(keys=["staff", "/cudgels?/i"], text="His staff weighs 13,500 jin.")
    entry.found_in("Where is your staff?")    # "staff"

Keys are people's words. A pattern of theirs is refused (when it is read, not while it runs) unless the number of ways
in which it can match a line is small, so no line of a chat can hang the program; see `MOST_WAYS`.
"""

from __future__ import annotations

import functools
import re
from re import _constants, _parser  # type: ignore[attr-defined]  # the one way to look at a pattern before it runs
from typing import Any, Literal, Self

import pydantic
from pydantic import Field

from mrp.yamlfile import StrictModel

SCANNED = 1000  # characters of a line, its last ones, that keys are looked for in
LONGEST_PATTERN = 200  # characters
MOST_WAYS = 5_000  # in which a pattern may match from one place: `.*` alone has `SCANNED` of them, `.*x.*` a million
IN_SLASHES = re.compile(r"/(.+)/([a-z]*)", re.DOTALL)  # /pattern/flags, as SillyTavern writes patterns
FLAGS = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "g": 0, "u": 0}

Logic = Literal["and_any", "and_all", "not_any", "not_all"]


class LoreEntry(StrictModel):
    """A fact that a character knows, and the words that bring it up."""

    keys: list[str]
    text: str = Field(min_length=1)
    constant: bool = False
    """Known always, whatever is talked about; `keys` may be empty then."""
    secondary: list[str] = []
    """Further keys, which `logic` asks for beside one of `keys`."""
    logic: Logic = "and_any"
    """Of `secondary` must be found: any, all, none (not_any), or not all of them."""
    regex: bool = False
    """The keys are patterns (Python's `re`); keys written as /PATTERN/i are patterns anyhow."""
    whole_words: bool = True
    """"ear" is not found in "hear"; without meaning for Chinese, which has no spaces."""
    case_sensitive: bool = False
    scan_depth: int = Field(4, ge=1, le=100)
    """The last so many lines are looked through."""
    order: int = 100
    """Higher: kept first where the budget is short, and told nearer to the reply."""
    sticky: int = Field(0, ge=0)
    """Stays for so many further replies of the character once it came up."""
    cooldown: int = Field(0, ge=0)
    """Then rests for so many replies."""
    probability: float = Field(100.0, ge=0, le=100)
    """Percent; how often it comes in when it is brought up."""

    @pydantic.model_validator(mode="after")
    def _something_brings_it_up(self) -> Self:
        if not self.keys and not self.constant:
            raise ValueError("`keys` should have at least 1 item|add a word that brings it up, or `constant: true`")
        for key in (*self.keys, *self.secondary):
            self._pattern(key)
        return self

    def found_in(self, text: str) -> str:
        """The key that `text` brings the entry up by, its secondary keys considered; "" if it does not."""
        found = next((key for key in self.keys if self._pattern(key).search(text)), "")
        if not found or not self.secondary:
            return found
        hits = [bool(self._pattern(key).search(text)) for key in self.secondary]
        wanted = {"and_any": any(hits), "and_all": all(hits), "not_any": not any(hits), "not_all": not all(hits)}
        return found if wanted[self.logic] else ""

    def _pattern(self, key: str) -> re.Pattern[str]:
        return key_pattern(key, self.regex, self.whole_words, self.case_sensitive)


@functools.lru_cache(maxsize=4096)
def key_pattern(key: str, regex: bool, whole_words: bool, case_sensitive: bool) -> re.Pattern[str]:
    """What finds a key. Raises ValueError ("what|fix") for a pattern that is none, or that could take too long."""
    flags = re.RegexFlag(0) if case_sensitive else re.IGNORECASE
    slashes = IN_SLASHES.fullmatch(key)
    if slashes:
        unknown = set(slashes[2]) - set(FLAGS)
        if unknown:
            raise ValueError(f"the pattern {key!r} has unknown flags {sorted(unknown)}|take of i, m, s, g, u")
        flags = re.RegexFlag(0)
        for letter in slashes[2]:
            flags |= FLAGS[letter]
        return _guarded(slashes[1], flags)
    if regex:
        return _guarded(key, flags)
    text = re.escape(key.strip())
    if not text:
        return re.compile(r"(?!)")  # a blank key brings up nothing
    if whole_words:  # borders only beside letters that words are made of, which are no CJK
        wordlike = r"[A-Za-z0-9_\u00c0-\u024f\u0370-\u052f]"
        first, last = key.strip()[0], key.strip()[-1]
        text = (rf"(?<!{wordlike})" if re.match(wordlike, first) else "") + text
        text += rf"(?!{wordlike})" if re.match(wordlike, last) else ""
    return re.compile(text, flags)


def _guarded(pattern: str, flags: int) -> re.Pattern[str]:
    fix = "write it simpler: one `*` or `+` at most, others as {0,20}, none inside another, or list plain keys"
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"the pattern {pattern[:40]!r}... has over {LONGEST_PATTERN} characters|{fix}")
    try:
        parsed = _parser.parse(pattern, flags)
        ways = _ways(parsed)
        if ways <= MOST_WAYS:
            return re.compile(pattern, flags)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"the pattern {pattern!r} is none: {error}|correct it, or list plain keys") from None
    raise ValueError(f"the pattern {pattern!r} could take very long on some lines|{fix}")


def _ways(parsed: Any) -> int:
    """In how many ways a parsed pattern may match from one place, at most (an upper bound, cut off above the limit).

    A product over what stands in a row, a sum over alternatives, a power for what is repeated: what a backtracking
    matcher may have to try. Unbounded means `SCANNED`, the longest text.
    """
    total = 1
    for op, value in parsed:
        if op in (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT):
            least, most = int(value[0]), min(int(value[1]), SCANNED)
            inner = _ways(value[2])
            ways = max(most - least, 0) + 1
            total *= ways if inner == 1 else min(sum(inner ** min(k, 20) for k in range(least, most + 1)), 10**9)
        elif op is _constants.BRANCH:
            total *= sum(_ways(branch) for branch in value[1])
        elif op is _constants.SUBPATTERN:
            total *= _ways(value[3])
        elif op in (_constants.ASSERT, _constants.ASSERT_NOT):
            total *= _ways(value[1])
        elif op is _constants.ATOMIC_GROUP:
            total *= _ways(value)
        elif op is _constants.GROUPREF_EXISTS:
            total *= _ways(value[1]) + (_ways(value[2]) if value[2] else 1)
        elif op is _constants.GROUPREF:
            total *= 2  # as long as what it repeats
        total = min(total, 10**9)
    return total
