"""What was read is kept: keys and values of finished sequences, until memory is short.

    parked = Parked(limit=2**30)
    kept = parked.take(ids, voice="wukong")     # holds the longest beginning of `ids` that was read for that voice
    parked.park(kept)                           # when the reply has ended

A character's next prompt begins with its last one, so it reads only what was said since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from mrp.play.kv import KeysValues

REST = 64  # tokens that a sequence may lose when it is taken up for another one; if more, a copy is taken


class Parked:
    """Keys and values by least recent use, at most `limit` bytes of them together with those in use."""

    def __init__(self, limit: int, on_drop: Callable[[KeysValues], None]) -> None:
        self.limit, self.on_drop = limit, on_drop
        self.kept: list[KeysValues] = []  # the least recently used first

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.kept)

    def take(self, ids: Sequence[int], voice: str | None, in_use: Iterable[KeysValues] = ()) -> KeysValues:
        """Storage that holds the longest beginning of `ids` known for `voice`, never all of it: the last token must be
        read, or nothing would follow. A sequence in use, or one that goes on otherwise, is copied."""
        users = [one for one in in_use if one.voice == voice]
        own = [one for one in reversed(self.kept) if one.voice == voice]
        best, length = None, 0
        for one in [*own, *users]:
            if (shared := shared_beginning(one.ids, ids[:-1])) > length:
                best, length = one, shared
        if best is None:
            return KeysValues(voice)
        if best in users or (len(best.ids) - length > REST and self._has_room(best, length, users)):
            if best in self.kept:
                self._touch(best)
            return best.copy(length)
        self.kept = [one for one in self.kept if one is not best]
        del best.ids[length:]
        return best

    def park(self, one: KeysValues, in_use: int = 0) -> None:
        """Keep it; those not used for longest are dropped if there are more than the limit beside `in_use` bytes.

        One that another begins with is not kept twice.
        """
        if not one.ids:
            return
        same = [k for k in self.kept if k.voice == one.voice]
        if any(shared_beginning(k.ids, one.ids) == len(one.ids) for k in same):
            return
        within = {id(k) for k in same if shared_beginning(k.ids, one.ids) == len(k.ids)}
        self.kept = [*(k for k in self.kept if id(k) not in within), one]
        self.make_room(in_use)

    def make_room(self, wanted: int) -> None:
        """Drop the least recently used until `wanted` bytes more are within the limit, or nothing is left."""
        while self.kept and self.bytes + wanted > self.limit:
            self.on_drop(self.kept.pop(0))

    def drop_all(self) -> None:
        self.make_room(self.limit + 1)

    def _touch(self, one: KeysValues) -> None:
        self.kept = [*(k for k in self.kept if k is not one), one]

    def _has_room(self, one: KeysValues, length: int, users: Iterable[KeysValues]) -> bool:
        copied = one.bytes * length // max(len(one.ids), 1)
        return self.bytes + sum(user.bytes for user in users) + copied <= self.limit


def shared_beginning(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    longest = min(len(a), len(b))
    if list(a[:longest]) == list(b[:longest]):
        return longest
    return next(k for k in range(longest) if a[k] != b[k])
