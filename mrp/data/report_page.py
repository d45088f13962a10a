"""What a check or build found, as one HTML page to look at: numbers, faults with examples, plots.

    write_report(Path("report.html"), tally, rejected, examples, "My dialogues", cast)

Last in the flow of `mrp data check --report FILE`; the numbers come from `tally.py`, the frame from `page.py`, the
plots from `plots.py` (extra `report`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from markupsafe import Markup

from mrp.cast import Cast
from mrp.data.lint import FINDINGS, Example
from mrp.data.record import REASONS, Rejected
from mrp.data.tally import EDGES, LARGE_IMBALANCE, REST, Share, Tally, bin_end
from mrp.files import replacing
from mrp.page import Section, examples, figure, figures, page, paragraph, subtitle, table, tiles
from mrp.plots import bars, heat_map, histogram

SHOWN = 3  # examples of each reason
SHOWN_TEXT = 160  # characters of a rejected line
SHOWN_CHARACTERS = 14  # in plots and tables; of more, those with most tokens
SHOWN_STRANGERS = 20
KINDS = {  # of duplicates
    "exact": "the same scene once more; it is not used",
    "normalised": "the same but for case, width and punctuation",
    "near": "mostly the same words",
    "same-question": "it begins with the line with which another scene begins",
}
Reported = TypeVar("Reported", Rejected, Example)


class Shown(NamedTuple):
    """A character as plots and tables show it."""

    id: str
    name: str
    share: Share


def write_report(
    path: Path,
    tally: Tally,
    rejected: Iterable[Rejected],
    findings: Iterable[Example],
    title: str,
    cast: Cast | None = None,
) -> None:
    """Write the page, whole or not at all. Of `rejected` and `findings` the first few of each reason are shown.

    With a cast its characters are called by their names, else by their ids. Raises `SetupError` if matplotlib is
    missing.
    """
    largest, found = _largest(tally, cast), _first_of_each(findings)
    sections = [
        _overview(tally),
        _rejected(tally, rejected),
        _findings(tally, found),
        _sizes(tally, largest),
        _balance(tally, largest),
        _duplicates(tally, found),
        _strangers(tally),
    ]
    text = page(title, _lead(tally), [section for section in sections if section.parts])
    with replacing(path) as file:
        file.write(text)


def _lead(tally: Tally) -> str:
    """The result in a few sentences."""
    lost = sum(tally.rejected.values())
    people = len([name for name in tally.by_character if name != REST])
    odd = sum(tally.findings.values()) + len(tally.imbalances())
    return (
        f"{_count(tally.lines, 'line')} read, {f'{tally.lines - lost:,}' if lost else 'all'} usable. They hold"
        f" {_count(tally.replies, 'reply', 'replies')} of {_count(people, 'character')}, about {tally.tokens:,} tokens"
        f" in all. {_count(odd, 'thing') + ' may be' if odd else 'Nothing in them seems'} worth a look."
    )


def _overview(tally: Tally) -> Section:
    numbers = [
        ("lines", tally.lines),
        ("not used", sum(tally.rejected.values())),
        ("scenes", tally.scenes),
        ("turns", tally.turns),
        ("replies", tally.replies),
        ("tokens (about)", tally.tokens),
    ]
    parts = [tiles(numbers)]
    if tally.formats:
        parts += [subtitle("Understood as"), table(["format", "lines"], sorted(tally.formats.items()))]
    if +tally.dropped_turns:
        rows = [(kind.replace("_", " "), count) for kind, count in _by_count(tally.dropped_turns)]
        parts += [subtitle("Left out of lines that are used"), table(["what", "how many"], rows)]
    note = "Tokens are an estimate, without a tokenizer: one for a Chinese character, one for four Latin letters."
    return Section("In numbers", [*parts, paragraph(note)])


def _rejected(tally: Tally, rejected: Iterable[Rejected]) -> Section:
    title = "Lines that are not used"
    rows = [(reason, count, REASONS.get(reason, "")) for reason, count in _by_count(tally.rejected)]
    if not rows:
        return Section(title, [paragraph("Every line can be used.")])
    parts = [table(["reason", "lines", "how to mend it"], rows)]
    shown = _first_of_each(rejected)
    for reason, _, _ in rows:
        if reason in shown:
            parts += [subtitle(reason), examples((r.source, r.detail, _cut(r.text)) for r in shown[reason])]
    return Section(title, parts)


def _findings(tally: Tally, found: Mapping[str, Sequence[Example]]) -> Section:
    title = "What may be wrong in lines that are used"
    counts = _by_count(tally.findings)
    if not counts:
        return Section(title, [paragraph("Lint found nothing.")])
    rows = [(reason, count, tally.scenes_with[reason], FINDINGS[reason].meaning) for reason, count in counts]
    parts = [table(["finding", "times", "scenes", "what it means"], rows)]
    for reason, _ in counts:
        known = FINDINGS[reason]
        mended = f" With --fix: {known.mended}." if known.mended else ""
        parts += [subtitle(reason), paragraph(f"What to do: {known.fix}.{mended}")]
        if reason in found:
            parts.append(examples((e.source, e.detail, e.text) for e in found[reason]))
    return Section(title, parts)


def _sizes(tally: Tally, largest: Sequence[Shown]) -> Section:
    if not tally.scenes:
        return Section("Sizes", [])
    plots = [
        _bins_plot(tally.scene_turns, "Turns a scene", "turns"),
        _bins_plot(tally.scene_tokens, "Tokens a scene", "tokens"),
    ]
    if largest:
        used = [edge for one in largest for edge in one.share.reply_tokens]
        edges = [edge for edge in EDGES if min(used) <= edge <= max(used)]
        cells = [[one.share.reply_tokens[edge] / one.share.replies for edge in edges] for one in largest]
        ends = [*edges, bin_end(edges[-1])]
        plot = heat_map(
            [one.name for one in largest], ends, cells, "Tokens a reply, by character", "tokens", edges=True
        )
        caption = "The share of each character's replies (in per cent) that are so long; a bin begins at its number."
        plots.append(figure(plot, caption + _only(tally, largest)))
    return Section("Sizes", [figures(plots)])


def _balance(tally: Tally, largest: Sequence[Shown]) -> Section:
    balance = tally.balance()
    if not balance:
        return Section("Balance", [])
    ratios = [f"{b.ratio:,.1f} times the {word}" for word, b in balance.items()]
    text = f"The largest character has {', '.join(ratios[:-1])} and {ratios[-1]} of the smallest."
    if tally.imbalances():
        text += f" More than {LARGE_IMBALANCE:.0f} times is a finding (imbalance): {FINDINGS['imbalance'].fix}."
    series = {word: [100 * b.shares[one.id] for one in largest] for word, b in balance.items()}
    plot = bars([one.name for one in largest], series, "Share of each character", " %")
    caption = "Lines: in which the character speaks. Turns and tokens: its own replies."
    rows = [
        (o.name, o.share.scenes, o.share.replies, o.share.tokens, o.share.tokens / o.share.replies) for o in largest
    ]
    numbers = table(["character", "lines", "turns", "tokens", "a turn"], rows)
    return Section("Balance", [paragraph(text + _only(tally, largest)), figures([figure(plot, caption), numbers])])


def _duplicates(tally: Tally, found: Mapping[str, Sequence[Example]]) -> Section:
    kinds = _by_count(tally.duplicates)
    if not kinds:
        return Section("Duplicates", [paragraph("None were found.")])
    plot = bars([kind for kind, _ in kinds], {"lines": [count for _, count in kinds]}, "Duplicates by kind")
    rows = [(kind, count, f"{100 * count / max(tally.lines, 1):.1f} %", KINDS.get(kind, "")) for kind, count in kinds]
    numbers = table(["kind", "lines", "of all", "what it means"], rows)
    parts = [figures([figure(plot, "Lines that repeat an earlier one, wholly or in part."), numbers])]
    for kind in (kind for kind in found if kind not in FINDINGS):
        parts += [subtitle(kind), examples((e.source, e.detail, e.text) for e in found[kind])]
    return Section("Duplicates", parts)


def _strangers(tally: Tally) -> Section:
    top = tally.top_strangers(SHOWN_STRANGERS)
    if not top:
        return Section("Strangers", [])
    more = len(tally.strangers) - len(top)
    text = "They speak, and are not of the cast: their lines are what characters answer, and are not learnt."
    parts = [paragraph(text), table(["name", "turns"], top)]
    if more > 0:
        parts.append(paragraph(f"And {more:,} more."))
    return Section("Strangers", parts)


def _bins_plot(counts: Mapping[int, int], title: str, axis: str) -> Markup:
    """A histogram of all bins between the first and the last that hold something, with the median in words."""
    edges = [edge for edge in EDGES if min(counts) <= edge <= max(counts)]
    plot = histogram([*edges, bin_end(edges[-1])], [counts.get(edge, 0) for edge in edges], title, axis)
    below = 0
    for edge in edges:
        below += counts.get(edge, 0)
        if 2 * below >= sum(counts.values()):
            break
    last = bin_end(edge) - 1
    span = f"{edge:,}" if last == edge else f"{edge:,} to {last:,}"
    return figure(plot, f"The scene in the middle has {span} {axis}.")


def _largest(tally: Tally, cast: Cast | None) -> list[Shown]:
    """The characters with most tokens, the largest first."""
    named = [
        Shown(who, cast.display_name(who) if cast else who, share)
        for who, share in tally.by_character.items()
        if who != REST
    ]
    return sorted(named, key=lambda one: (-one.share.tokens, one.id))[:SHOWN_CHARACTERS]


def _only(tally: Tally, largest: Sequence[Shown]) -> str:
    more = len(tally.by_character) - len(largest)
    return f" The {len(largest)} largest are shown, of {len(tally.by_character):,}." if more > 0 else ""


def _first_of_each(items: Iterable[Reported]) -> dict[str, list[Reported]]:
    """The first `SHOWN` of each reason."""
    shown: dict[str, list[Reported]] = {}
    for item in items:
        some = shown.setdefault(item.reason, [])
        if len(some) < SHOWN:
            some.append(item)
    return shown


def _by_count(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(((name, count) for name, count in counts.items() if count), key=lambda pair: (-pair[1], pair[0]))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_TEXT else text[: SHOWN_TEXT - 1] + "…"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
