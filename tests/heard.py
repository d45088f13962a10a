"""A reporter that keeps what it is told."""

from __future__ import annotations

from mrp.report import Reporter


class Heard(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def line(self, text: object = "") -> None:
        self.lines.append(str(text))

    def warn(self, text: str) -> None:
        self.warnings.append(text)
