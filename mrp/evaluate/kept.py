"""What models answered and predicted, kept line by line: a killed evaluation goes on, a second one asks nothing again.

    with Kept(folder / "replies.jsonl") as kept:
        if key not in kept: kept.add(key, {"text": "Ha!"})

A key is a hash of everything that the value depends on (model, ids, sampling), so values never go stale.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mrp.files import disk_error, write_jsonl


class Kept:
    """A JSONL file of values by key, appended to. Several threads may add."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        self._lock = threading.Lock()
        for line in path.read_bytes().splitlines() if path.is_file() else []:
            try:  # a line that a kill cut off is no value
                row = json.loads(line)
                self._values[row["key"]] = row["value"]
            except (ValueError, TypeError, KeyError):
                continue

    def __enter__(self) -> Self:
        write_jsonl(self.path, ({"key": k, "value": v} for k, v in self._values.items()))  # without such a line
        try:
            self._file = self.path.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise disk_error(error, self.path) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def add(self, key: str, value: Any) -> None:
        """Keep `value`; it is in the file when this returns. Raises `SetupError` if the disk is full."""
        with self._lock:
            self._values[key] = value
            try:
                self._file.write(
                    json.dumps({"key": key, "value": value}, ensure_ascii=False, separators=(",", ":")) + "\n"
                )
                self._file.flush()
            except OSError as error:
                raise disk_error(error, self.path) from error
