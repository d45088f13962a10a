"""Pages of reports: everything escaped, nothing from elsewhere, the same bytes for the same values."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from mrp.page import Section, examples, figure, figures, page, paragraph, subtitle, table, tiles

pytest.importorskip("matplotlib", reason="the plots of reports need matplotlib (extra report)")

from mrp.plots import MOST_LABEL, WIDTH, _fit, _text_width, bars, heat_map, histogram

EVIL = '<script>alert("x")</script> & <b>$a_b$</b>'


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    EMPTY = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def plots(title: str = "Plot") -> list[Any]:
    return [
        bars(["孙悟空", EVIL], {"lines": [3, 1], EVIL: [0.5, 2]}, title),
        histogram([0, 1, 2, 4], [5, 0, 1], title, "turns"),
        heat_map(["唐三藏", "x"], [1, 2, 4], [[0.25, 0.75], [1, 0]], title, "tokens", edges=True),
        heat_map(["唐三藏", "x"], ["孙悟空", EVIL], [[0.25, 0.75], [0, 0]], title, "said by", edges=False),
    ]


def whole_page() -> str:
    parts = [
        paragraph(EVIL),
        subtitle(EVIL),
        tiles([(EVIL, 1234), ("name", EVIL)]),
        table([EVIL, "number"], [[EVIL, 12345], ["b", 0.25]]),
        examples([(EVIL, EVIL, EVIL), ("f:1", "x", "")]),
        figures([figure(plot, EVIL) for plot in plots(EVIL)]),
    ]
    return page(EVIL, EVIL, [Section(EVIL, parts)])


def test_texts_are_escaped_everywhere() -> None:
    read = Reader(whole_page())
    assert "script" not in read.tags and "b" not in read.tags
    # title, heading, lead, section; paragraph, subtitle, tiles, table, examples, captions, plots
    assert sum(EVIL in text for text in read.texts) >= 20


def test_a_page_needs_nothing_from_elsewhere() -> None:
    text = whole_page()
    assert "http" not in text and "//" not in text.replace("</", "") and "@import" not in text
    read = Reader(text)
    assert not {"script", "link", "img", "iframe", "base", "object"} & set(read.tags)
    links = [value for _, name, value in read.attributes if name in ("href", "src", "xlink:href")]
    assert all(value.startswith("#") for value in links)
    ids = [value for _, name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids)), "plots on one page have ids of their own"
    assert {value.removeprefix("#") for value in links} <= set(ids)


def test_numbers_stand_right_and_are_easy_to_read() -> None:
    text = str(table(["name", "count"], [["a", 1234567], ["b", 0.5]]))
    assert '<td class="number">1,234,567</td>' in text and '<td class="number">0.5</td>' in text
    assert '<td class="number">a' not in text
    assert "<tbody>" in table(["name"], [])


def test_text_of_plots_stays_text_in_the_font_and_colours_of_the_page() -> None:
    for plot in plots():
        read = Reader(str(plot))
        assert "Plot" in "".join(read.texts)
        assert "DejaVu" not in plot and "#0101" not in plot and "#0202" not in plot
        assert "var(--font)" in plot and "var(--ink)" in plot
    assert "孙悟空" in plots()[0] and "唐三藏" in plots()[2] and "75" in Reader(str(plots()[2])).texts


def test_plots_of_nothing_are_plots() -> None:
    assert "<svg" in bars(["a"], {"x": [0]}, "t")
    assert "<svg" in histogram([0, 1], [0], "t", "x")
    assert "<svg" in heat_map(["a"], [0, 1], [[0.0]], "t", "x", edges=True)


def test_long_names_are_cut_to_fit() -> None:
    name = "a very long name of a character " * 4
    assert _text_width(_fit(name, MOST_LABEL)) <= MOST_LABEL < WIDTH / 2
    assert _fit("短", MOST_LABEL) == "短" and _fit(name, MOST_LABEL).endswith("…")


def test_the_same_values_give_the_same_bytes_whatever_the_settings() -> None:
    """In another process, with other hash seeds and with a person's own matplotlib settings."""
    import matplotlib

    first = [str(plot) for plot in plots()]
    with matplotlib.rc_context(
        {"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9, "font.family": "serif"}
    ):
        assert [str(plot) for plot in plots()] == first
        assert matplotlib.rcParams["font.size"] == 30, "a person's settings come back"
    code = "import test_page; print(''.join(map(str, test_page.plots())), end='')"
    path = os.pathsep.join(folder for folder in sys.path if folder)
    env = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True)
    assert other.stdout.decode("utf-8").replace("\r\n", "\n") == "".join(first)


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from mrp.errors import SetupError

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SetupError, match=r"matplotlib") as caught:
        bars(["a"], {"x": [1]}, "t")
    assert "mrp-llm[report]" in str(caught.value)
