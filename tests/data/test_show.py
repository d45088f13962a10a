"""Samples for the eye: learnt text in green, or in brackets where there is no colour."""

from __future__ import annotations

from mrp.data.samples import Sample
from mrp.data.show import show_samples
from mrp.dialogue import Turn

SAMPLE = Sample("s1@tang", "tang", "s1", ("tang", "other"), (Turn("tang", "Peace."),), (True,), "a.jsonl:3")
PIECES = [("<sys>", False), ("You are Tang.", False), ("Peace", True), (".<end>", True), ("\n", False)]


def test_plain_form_puts_learnt_text_in_brackets() -> None:
    (text,) = show_samples([SAMPLE], lambda _: PIECES, colour=False)
    head, _, body = text.plain.partition("\n")
    assert head == "s1@tang  character tang  from a.jsonl:3"
    assert body == "<sys>You are Tang.⟦Peace.<end>⟧\n"
    assert not text.spans


def test_colour_marks_learnt_text_alone() -> None:
    (text,) = show_samples([SAMPLE], lambda _: PIECES)
    green = [text.plain[s.start : s.end] for s in text.spans if "green" in str(s.style)]
    grey = [text.plain[s.start : s.end] for s in text.spans if "black" in str(s.style)]
    assert (green, grey) == (["Peace.<end>"], ["<sys>You are Tang.", "\n"])
    assert "⟦" not in text.plain
