"""What a report is made of: texts, tables, matrices, quotations; each can be written for a page and in Markdown.

    html(Table(["character", "right"], [["Tang", "62 %"]])); markdown(Text("Brackets hold intervals."))

Used by `report.py`; the frame of the page is `page.py`, the plots (on the page alone) come from `plots.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mrp.page import bullets, examples, figure, figures, paragraph, side_by_side, subtitle, table, tiles
from mrp.plots import curves, heat_map, intervals

WIDE = 12  # characters up to which a confusion matrix stands in Markdown too


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Title:
    """A heading inside a section."""

    text: str


@dataclass(frozen=True)
class List:
    """Sentences, each for itself."""

    items: list[str]


@dataclass(frozen=True)
class Table:
    """Rows under a head; all cells are texts."""

    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Tiles:
    """A few figures to begin with: (label, value) each."""

    values: list[tuple[str, str]]


@dataclass(frozen=True)
class Matrices:
    """Confusion matrices beside each other: (title, rows of shares) each, with one caption."""

    names: list[str]
    several: list[tuple[str, list[list[float]]]]
    axis: str
    caption: str


@dataclass(frozen=True)
class Curves:
    """Plots of lines over `axis`: (title, points of each line) each, with one caption; on the page alone."""

    several: list[tuple[str, dict[str, list[tuple[int, float]]]]]
    axis: str
    caption: str


@dataclass(frozen=True)
class Intervals:
    """Plots of points with their intervals: (title, (value, low, high) of each row) each, with one caption; on the page
    alone."""

    several: list[tuple[str, dict[str, tuple[float, float | None, float | None]]]]
    caption: str


@dataclass(frozen=True)
class Quotes:
    """(who, question, answer) each."""

    items: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Compared:
    """A question, and what several say to it: (who, text) each."""

    question: str
    said: list[tuple[str, str]]


Block = Text | Title | List | Table | Tiles | Matrices | Curves | Intervals | Quotes | Compared


def html(block: Block) -> Markup:
    """A block as a piece of a page."""
    if isinstance(block, Text):
        return paragraph(block.text)
    if isinstance(block, Title):
        return subtitle(block.text)
    if isinstance(block, List):
        return bullets(block.items)
    if isinstance(block, Table):
        cells = [[_unbroken(cell) for cell in row] for row in block.rows]
        return table(block.head, cells, whole=any("[" in cell for row in cells for cell in row))
    if isinstance(block, Tiles):
        return tiles(block.values)
    if isinstance(block, Compared):
        return side_by_side(block.question, block.said)
    if isinstance(block, Quotes):
        return examples(block.items)
    if isinstance(block, Curves):
        values = [value for _, series in block.several for line in series.values() for _, value in line]
        span = (min(values), max(values)) if values else None  # the same for all, so that heights can be compared
        lines = [curves(series, title, block.axis, span=span) for title, series in block.several]
        return figures([figure(plot, "") for plot in lines]) + paragraph(block.caption)
    if isinstance(block, Intervals):
        points = [intervals(rows, title) for title, rows in block.several]
        return figures([figure(plot, "") for plot in points]) + paragraph(block.caption)
    plots = [heat_map(block.names, block.names, rows, title, block.axis, edges=False) for title, rows in block.several]
    return figures([figure(plot, "") for plot in plots]) + paragraph(block.caption)


def markdown(block: Block) -> list[str]:
    """A block as lines of Markdown; a matrix of many characters stands on the page alone."""
    if isinstance(block, Text):
        return [block.text, ""]
    if isinstance(block, Title):
        return [f"### {block.text}", ""]
    if isinstance(block, List):
        return [*(f"- {item}" for item in block.items), ""]
    if isinstance(block, Table):
        return [*_markdown_table(block.head, block.rows), ""]
    if isinstance(block, Compared):
        return [f"> {_cell(block.question)}", "", *(f"- **{who}**: {_cell(text)}" for who, text in block.said), ""]
    if isinstance(block, Tiles):
        return [*(f"- {label}: **{value}**" for label, value in block.values), ""]
    if isinstance(block, Quotes):
        return [*(f"- **{who}**, asked {_cell(q)!r}: {_cell(text)}" for who, q, text in block.items), ""]
    if isinstance(block, Curves | Intervals) or len(block.names) > WIDE:
        return []
    lines = []
    for title, rows in block.several:
        cells = [[name, *(f"{100 * value:.0f}" for value in row)] for name, row in zip(block.names, rows, strict=True)]
        lines += [f"{title}, {block.axis} (per cent of the row):", "", *_markdown_table(["", *block.names], cells), ""]
    return lines


def _unbroken(cell: str) -> str:
    """A cell whose interval stays on one line."""
    return re.sub(r"\[[^\]]*\]| %", lambda found: found.group().replace(" ", "\u00a0"), cell)


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(_cell(cell) for cell in cells)} |"

    return [line(head), line(["---"] * len(head)), *map(line, rows)]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
