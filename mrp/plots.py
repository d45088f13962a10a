"""Plots for reports, as SVG to stand inside an HTML page: bars, histograms, curves, intervals, heat maps.

    bars(["唐三藏", "孙悟空"], {"replies": [671, 1842]}, "replies a character")

Used by pages that `page.py` frames. Text stays text, in the page's font, so that every language shows; colours are the
page's own (`page.css`), so that light and dark both work. The same values give the same bytes on any machine: margins
are reckoned from the labels, not from the fonts that happen to be installed. Needs matplotlib (extra `report`).
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec

from markupsafe import Markup, escape

from mrp.errors import need_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
WIDTH = 460  # of every plot, in its own units; a phone shows them a little smaller, a desk a little larger
FONT, ROW, TOP, BOTTOM = 11, 15, 26, 34  # heights, in the same units
MOST_LABEL = 170  # of the width, for the names at the left
# Colours that matplotlib writes, and what the page makes of them.
_INK, _SOFT, _LINE = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0101{k:02x}" for k in range(2, 8))
_COLOURS = {_INK: "--ink", _SOFT: "--soft", _LINE: "--line"} | {c: f"--c{k}" for k, c in enumerate(SERIES, 1)}


def _with_own_settings(draw: Callable[P, Markup]) -> Callable[P, Markup]:
    """A plot drawn with matplotlib's defaults and ours, whatever the person's own settings are."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Markup:
        try:
            import matplotlib
        except ImportError:
            raise need_extra("report", "matplotlib") from None
        with matplotlib.rc_context(), warnings.catch_warnings():
            matplotlib.rcdefaults()
            matplotlib.rc("svg", fonttype="none", hashsalt="mrp")
            matplotlib.rc("font", family=["DejaVu Sans"])
            matplotlib.rc("text", parse_math=False)  # a name may hold a dollar sign
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has it
            return draw(*args, **kwargs)

    return drawn


@_with_own_settings
def bars(labels: Sequence[str], series: Mapping[str, Sequence[float]], title: str, unit: str = "") -> Markup:
    """Horizontal bars: a row for each label, in it a bar for each series (six at most), its value beside it."""
    thick = len(series)
    step = max(ROW + 7, thick * 11 + 8)
    legend = 18 if thick > 1 else 0
    chart, axes = _chart(len(labels) * step, labels, title, legend, bottom=4)
    most = max((value for values in series.values() for value in values), default=0) or 1
    for k, (name, values) in enumerate(series.items()):
        height = 0.8 / thick
        places = [row - 0.4 + height * (k + 0.5) for row in range(len(labels))]
        axes.barh(places, values, height * 0.92, color=SERIES[k % len(SERIES)], label=name)
        for place, value in zip(places, values, strict=True):
            axes.text(
                value + most * 0.012,
                place,
                f"{_short_number(value)}{unit}",
                va="center",
                color=_SOFT,
                fontsize=FONT - 2,
            )
    axes.set_xlim(0, most * 1.14)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), [_fit(label, MOST_LABEL) for label in labels])
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    if thick > 1:
        _legend(chart, list(series))
    return _svg(chart, title)


@_with_own_settings
def histogram(edges: Sequence[int], counts: Sequence[float], title: str, axis: str) -> Markup:
    """Counts by bin as bars of one width; `edges` has one more than `counts`, and each stands where its bin begins."""
    chart, axes = _chart(150, [_short_number(max(counts, default=0))], title)
    axes.bar([k + 0.5 for k in range(len(counts))], counts, 0.94, color=SERIES[0])
    _edge_ticks(axes, edges, axis)
    axes.set_ylim(0, (max(counts, default=0) or 1) * 1.05)
    axes.yaxis.set_major_formatter(lambda value, _: _short_number(value))
    axes.locator_params(axis="y", nbins=4, integer=True)
    axes.grid(axis="y", color=_LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    return _svg(chart, title)


@_with_own_settings
def curves(
    series: Mapping[str, Sequence[tuple[int, float]]],
    title: str,
    axis: str,
    span: tuple[float, float] | None = None,
) -> Markup:
    """A line for each series through its points (whole number on the axis, value); its name stands at its end.

    `span`: the lowest and highest value to make room for, where several plots share it; else those of the series.
    """
    places = [place for line in series.values() for place, _ in line]
    values = [value for line in series.values() for _, value in line]
    low, high = span or ((min(values), max(values)) if values else (0.0, 1.0))
    chart, axes = _chart(190, [f"{high:.2f}"], title)
    first, last = min(places, default=0), max(places, default=1)
    width = max(last - first, 1)
    ends: list[tuple[float, str, str]] = []
    for k, (name, line) in enumerate(series.items()):
        colour = SERIES[k % len(SERIES)]
        axes.plot([x for x, _ in line], [y for _, y in line], color=colour, linewidth=1.6, marker="o", markersize=3)
        if line:
            ends.append((line[-1][1], _fit(name, 110), colour))
    height = (high - low) or 1.0
    place = -float("inf")
    for value, name, colour in sorted(ends):  # names that would cover each other move up
        place = max(value, place + height * 0.07)
        axes.text(last + 0.04 * width, place, name, color=colour, fontsize=FONT - 2, va="center")
    axes.set_xlim(first - 0.05 * width, last + 0.42 * width)
    axes.set_ylim(low - height * 0.06, max(high, place) + height * 0.08)
    axes.set_xlabel(axis, color=_SOFT)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.set_xticks([tick for tick in axes.get_xticks() if first <= tick <= last])
    axes.locator_params(axis="y", nbins=5)
    axes.grid(axis="y", color=_LINE, linewidth=0.7)
    return _svg(chart, title)


@_with_own_settings
def intervals(rows: Mapping[str, tuple[float, float | None, float | None]], title: str) -> Markup:
    """A point for each row at its value, a line from its low to its high end (None: no interval), the value beside."""
    chart, axes = _chart(len(rows) * (ROW + 7), list(rows), title, bottom=BOTTOM - 14)
    ends = [end for row in rows.values() for end in row if end is not None]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    span = (high - low) or 1.0
    digits = 0 if span >= 20 else 1 if span >= 2 else 2 if span >= 0.2 else 3
    for place, (value, least, most) in enumerate(rows.values()):
        if least is not None and most is not None:
            axes.plot([least, most], [place, place], color=SERIES[0], linewidth=5, alpha=0.35, solid_capstyle="round")
        axes.plot([value], [place], color=SERIES[0], marker="o", markersize=6)
        axes.text(high + span * 0.06, place, f"{value:.{digits}f}", va="center", color=_INK, fontsize=FONT - 1)
    axes.set_xlim(low - span * 0.06, high + span * 0.3)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [_fit(label, MOST_LABEL) for label in rows])
    axes.locator_params(axis="x", nbins=5)
    axes.set_xticks([tick for tick in axes.get_xticks() if low - span * 0.06 <= tick <= high + span * 0.01])
    axes.grid(axis="x", color=_LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    return _svg(chart, title)


@_with_own_settings
def heat_map(
    rows: Sequence[str],
    columns: Sequence[object],
    values: Sequence[Sequence[float]],
    title: str,
    axis: str,
    edges: bool,
) -> Markup:
    """A cell for each row and column, the stronger the larger its value (0 to 1), with the value in per cent.

    `edges`: the columns are bins, and `columns` has one more than there are: where each begins.
    """
    from matplotlib.patches import Rectangle

    chart, axes = _chart(len(rows) * (ROW + 7), rows, title)
    strongest = max((value for row in values for value in row), default=0) or 1
    wide = max((len(row) for row in values), default=1)
    for r, row in enumerate(values):
        for c, value in enumerate(row):
            if value > 0:
                strength = round(0.08 + 0.62 * value / strongest, 3)
                cell = Rectangle((c + 0.03, r - 0.46), 0.94, 0.92, facecolor=SERIES[0], alpha=strength, linewidth=0)
                axes.add_patch(cell)
            if round(100 * value) and wide <= 20:
                axes.text(c + 0.5, r, f"{100 * value:.0f}", ha="center", va="center", color=_INK, fontsize=FONT - 3)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [_fit(row, MOST_LABEL) for row in rows])
    if edges:
        _edge_ticks(axes, [int(str(edge)) for edge in columns], axis)
    else:
        axes.set_xlim(0, wide)
        axes.set_xticks([c + 0.5 for c in range(wide)], [_fit(str(c), WIDTH // (wide + 2)) for c in columns])
        axes.set_xlabel(axis, color=_SOFT)
    return _svg(chart, title)


def _chart(
    height: float, labels: Sequence[str], title: str, legend: int = 0, bottom: int = BOTTOM
) -> tuple[Figure, Axes]:
    """A figure with one plain pair of axes, margins made for these labels at the left."""
    from matplotlib.figure import Figure

    left = min(max((_text_width(label) for label in labels), default=0), MOST_LABEL) + 12
    whole = TOP + legend + height + bottom
    chart = Figure(figsize=(WIDTH / 72, whole / 72))
    axes = chart.add_axes((left / WIDTH, bottom / whole, (WIDTH - left - 10) / WIDTH, height / whole))
    chart.text(0, 1 - 13 / whole, title, color=_INK, fontsize=FONT + 1, fontweight="bold", ha="left")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.tick_params(length=0, colors=_SOFT, labelsize=FONT - 1)
    return chart, axes


def _legend(chart: Figure, names: Sequence[str]) -> None:
    """Names of the series beside patches of their colours, below the title."""
    from matplotlib.patches import Rectangle

    whole = chart.get_figheight() * 72
    at = 0.0
    for name, colour in zip(names, SERIES, strict=False):
        place = (at / WIDTH, 1 - (TOP + 7) / whole)
        chart.add_artist(Rectangle(place, 9 / WIDTH, 9 / whole, facecolor=colour, linewidth=0))
        chart.text(place[0] + 13 / WIDTH, place[1] + 0.5 / whole, name, color=_SOFT, fontsize=FONT - 1, ha="left")
        at += 13 + _text_width(name) + 16


def _edge_ticks(axes: Axes, edges: Sequence[int], axis: str) -> None:
    """Where the bins begin, as many as can be read."""
    every = max(1, -(-len(edges) * 26 // 330))
    shown = range(0, len(edges), every)
    axes.set_xlim(0, len(edges) - 1)
    axes.set_xticks(list(shown), [_short_number(edges[k]) for k in shown])
    axes.set_xlabel(axis, color=_SOFT)


def _svg(chart: Figure, title: str) -> Markup:
    """The figure as an SVG element for a page: the page's colours and font, ids of its own, nothing from elsewhere."""
    buffer = io.StringIO()
    chart.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None  # matplotlib always writes one
    inner = text[text.index(">", box.end()) + 1 : text.rindex("</svg>")]
    inner = re.sub(r"<metadata>.*?</metadata>", "", inner, flags=re.DOTALL).strip()
    prefix = f"p{_stable_hash(title, inner)}-"
    inner = re.sub(r'\bid="', f'id="{prefix}', inner)
    inner = re.sub(r'xlink:href="#', f'href="#{prefix}', inner).replace("url(#", f"url(#{prefix}")
    inner = re.sub("'DejaVu Sans'(?:, [^;\"]*)?", "var(--font)", inner)
    for colour, name in _COLOURS.items():
        inner = inner.replace(colour, f"var({name})")
    return Markup(f'<svg {box.group()} role="img" aria-label="{escape(title)}">\n{inner}\n</svg>')


def _stable_hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]


def _text_width(text: str) -> float:
    """About the width of `text` in the units of a plot."""
    return sum(FONT * (1.0 if unicodedata.east_asian_width(c) in "WF" else 0.58) for c in text)


def _fit(text: str, most: float) -> str:
    """`text`, its end cut where it would be too wide."""
    if _text_width(text) <= most:
        return text
    while text and _text_width(text) > most - FONT:
        text = text[:-1]
    return text.rstrip() + "…"


def _short_number(value: Any) -> str:
    """A number in few characters: 950, 1.2k, 14k, 3M."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            short = value / size
            return f"{short:.0f}{letter}" if short >= 10 or short == int(short) else f"{short:.1f}{letter}"
    return f"{value:.0f}" if value == int(value) or value >= 10 else f"{value:.1f}"
