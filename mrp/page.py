"""The frame of a report: one HTML file that opens from a disk, without network, in light and dark, on paper and phone.

    text = page("Data report", "1,531 lines, all usable.", [Section("Sizes", [table(["file", "lines"], [["a", 3]])])])

Used by `data/report_page.py` and `evaluate/blocks.py`. Every text is escaped here; the pieces (`table`, `figure` ...)
give `Markup`, so that nothing is escaped twice and nothing is forgotten. Plots come from `plots.py` as inline SVG.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_PARTS = {
    "page": """<!DOCTYPE html>
<html lang="{{ language }}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
{{ style }}</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
</header>
<main>
{% for section in sections %}
<section>
<h2>{{ section.title }}</h2>
{% for part in section.parts %}
{{ part }}
{% endfor %}
</section>
{% endfor %}
</main>
</body>
</html>
""",
    "paragraph": "<p>{{ text }}</p>",
    "subtitle": "<h3>{{ text }}</h3>",
    "table": """<div class="table{{ ' whole' if whole }}"><table>
<thead><tr>
{% for name, number in columns %}
<th{% if number %} class="number"{% endif %}>{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for cell, number in row %}<td{% if number %} class="number"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>""",
    "tiles": """<dl class="tiles">
{% for label, value in tiles %}
<div><dt>{{ label }}</dt><dd>{{ value }}</dd></div>
{% endfor %}
</dl>""",
    "figure": "<figure>{{ svg }}<figcaption>{{ caption }}</figcaption></figure>",
    "figures": '<div class="figures">{% for one in figures %}{{ one }}{% endfor %}</div>',
    "examples": """<ul class="examples">
{% for where, what, text in examples %}
<li><code>{{ where }}</code> <span>{{ what }}</span>{% if text %}<q>{{ text }}</q>{% endif %}</li>
{% endfor %}
</ul>""",
    "bullets": "<ul>{% for item in items %}<li>{{ item }}</li>{% endfor %}</ul>",
    "side_by_side": """<div class="sides"><p>{{ question }}</p>
{% for who, text in said %}
<div><b>{{ who }}</b><q>{{ text }}</q></div>
{% endfor %}
</div>""",
}


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page with a heading."""

    title: str
    parts: Sequence[Markup]


def page(title: str, lead: str, sections: Iterable[Section], language: str = "en") -> str:
    """The whole HTML file. `lead` is the result in a sentence or two."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return str(_fill("page", title=title, lead=lead, sections=list(sections), language=language, style=Markup(style)))


def paragraph(text: str) -> Markup:
    return _fill("paragraph", text=text)


def subtitle(text: str) -> Markup:
    return _fill("subtitle", text=text)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], whole: bool = False) -> Markup:
    """A table; a column whose cells are all numbers stands to the right, with thousands separated.

    `whole`: words are never broken, however narrow the page is; the table is then moved sideways.
    """
    body = [list(row) for row in rows]
    numbers = [bool(body) and all(isinstance(row[k], int | float) for row in body) for k in range(len(head))]
    shown = [[(_number(cell), number) for cell, number in zip(row, numbers, strict=True)] for row in body]
    return _fill("table", columns=list(zip(head, numbers, strict=True)), rows=shown, whole=whole)


def tiles(values: Iterable[tuple[str, Any]]) -> Markup:
    """A few large numbers with their labels."""
    return _fill("tiles", tiles=[(label, _number(value)) for label, value in values])


def figure(svg: Markup, caption: str) -> Markup:
    """A plot of `plots.py` with a sentence that says what to see in it."""
    return _fill("figure", svg=svg, caption=caption)


def figures(several: Iterable[Markup]) -> Markup:
    """Figures beside each other where there is room."""
    return _fill("figures", figures=list(several))


def examples(items: Iterable[tuple[str, str, str]]) -> Markup:
    """A list of (where, what, text): a place such as FILE:LINE, a remark, and a quotation or ""."""
    return _fill("examples", examples=list(items))


def bullets(items: Iterable[str]) -> Markup:
    """A plain list of sentences."""
    return _fill("bullets", items=list(items))


def side_by_side(question: str, said: Iterable[tuple[str, str]]) -> Markup:
    """What several (who, text) say to one question, beside each other where there is room."""
    return _fill("side_by_side", question=question, said=list(said))


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.DictLoader(_PARTS), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )


def _fill(name: str, **values: Any) -> Markup:
    return Markup(_environment().get_template(name).render(**values))  # escaped by jinja2
