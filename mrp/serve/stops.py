"""The client's `stop` texts: a reply ends where one begins, and no part of it is given out.

stops = StopTexts(["THE END"])
stops.add("so. THE E")     # "so. "     what could become a stop is held back
stops.add("ND and on")     # ""         stops.stopped is True
"""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Passes text on up to the first of the stop texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text for text in texts if text]
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """What of the text so far can be shown now."""
        if self.stopped:
            return ""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._texts) if at >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((self._begun(stop) for stop in self._texts), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def end(self) -> str:
        """What was held back, when nothing more comes."""
        shown, self._held = self._held, ""
        return shown

    def _begun(self, stop: str) -> int:
        """How many last characters are the beginning of `stop`."""
        return next((k for k in range(min(len(stop) - 1, len(self._held)), 0, -1) if self._held.endswith(stop[:k])), 0)
