"""What commands print for people: the summary of a run, samples with their loss mask."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrp.config import Run
from mrp.errors import InputError, Judgement, ManyFaults, nearest
from mrp.report import ConsoleReporter, Reporter, duration_text

if TYPE_CHECKING:
    from mrp.data.tally import Tally


SHOWN_CHARACTERS = 12  # of a balance


def summary_lines(summary: dict[str, Any], run: Run) -> list[str]:
    """The end of `mrp run`: replies before and after, losses, times, places."""
    lines = ["", f'Everybody was asked: "{run.question}"', ""]
    for reply in summary["replies"]:
        name = run.cast[reply["character"]].name
        lines += [name, _paragraph("  before  ", reply["before"]), _paragraph("  after   ", reply["after"]), ""]
    if summary["held_out_loss"]:
        lines.append("Loss on lines that training never saw (nats a token; less is better):")
        lines += _loss_lines(summary["held_out_loss"])
    training = summary["training"]
    lines.append("")
    lines.append(
        f"Training: {training['tokens']:,} tokens in {duration_text(training['seconds'])} "
        f"({training['tokens_per_second']:.0f} a second), {training['steps']} steps, "
        f"epoch {training['chosen_epoch']} kept"
    )
    steps = ", ".join(
        f"{name} {duration_text(seconds)}{' (before)' if name in summary['skipped'] else ''}"
        for name, seconds in summary["seconds"].items()
    )
    lines.append(f"Time by step: {steps}")
    tokens = summary["tokens"]
    lines.append(f"Tokens: {tokens['train']:,} trained, {tokens['measure']:,} measured, {tokens['ask']:,} to ask all")
    lines += ["", f"Model    {summary['paths']['merged']}", f"Adapter  {summary['paths']['adapter']}"]
    lines += [
        f"Summary  {summary['paths']['summary']}",
        f"Talk     {_command_name()} chat {run.folder} --as {run.cast.characters[0].id}",
    ]
    return lines


def _loss_lines(losses: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Of each character: before and after, with voices a table of what the adapter gives and what its voice adds."""
    if not any("adapter" in loss for loss in losses.values()):
        return [f"  {who:12} {loss['before']:.3f} -> {loss['after']:.3f}" for who, loss in losses.items()]
    keys = {"before": "before", "adapter": "adapter", "+ voice": "after"}
    head = "  " + " " * 12 + "".join(f" {title:>8}" for title in keys)
    return [head] + [
        f"  {who:12}" + "".join(f" {loss[key]:8.3f}" for key in keys.values()) for who, loss in losses.items()
    ]


def check_command(
    paths: list[Path],
    cast: Path | None,
    columns: list[str],
    max_errors: int,
    fix: Path | None,
    page: Path | None,
    report: Reporter,
) -> Judgement:
    """`mrp data check`: every fault with file and line, and what was found in all; exit code 2 if there is a fault."""
    from mrp.cast import load_cast
    from mrp.data.check import check_data

    known = load_cast(cast) if cast else None
    found = check_data(paths, known, columns=columns, max_errors=max_errors, fix=fix, report=report)
    report.result(
        f"{found.lines:,} lines, {found.kept:,} of them usable{counts_text(found.formats, '; understood as ')}"
    )
    for reason, count in sorted(found.counts.items()):
        report.result(f"  rejected, {reason}: {count:,}")
    for kind, count in sorted(found.dropped.items()):
        report.result(f"  left out of usable lines, {kind}: {count:,}")
    for reason, count in sorted(found.findings.items()):
        report.result(f"  odd, {reason}: {count:,}")
    for kind, count in sorted(found.repeats.items()):
        report.result(f"  repeated in part, {kind}: {count:,}")
    for line in _balance_lines(found.tally):
        report.result(line)
    for example in found.examples:
        report.line(f"  {example.source}: {example.reason}: {example.detail}")
    if fix is not None:
        report.result(f"wrote {fix}: {found.written:,} scenes{counts_text(found.mended, '; mended ')}")
    if page is not None:
        from mrp.data.report_page import write_report

        title = ", ".join(path.name for path in paths)
        write_report(page, found.tally, found.faults, found.examples, title, cast=known or found.cast)
        report.result(f"wrote {page}")
    total = sum(found.counts.values()) + len(found.problems)
    faults = [*found.problems, *(fault.as_error() for fault in found.faults)]
    if not total:
        return Judgement(found.as_json(), 0)
    all_of_them = ManyFaults(f"the dialogues have {total:,} fault{'s' * (total > 1)}", faults, total)
    report.error(all_of_them)
    return Judgement(found.as_json() | {"error": all_of_them.as_json()}, all_of_them.exit_code)


def _balance_lines(tally: Tally) -> list[str]:
    """How evenly the characters share lines, turns and tokens: a table of those with most, and the ratios."""
    balance = tally.balance()
    if not balance:
        return []
    words = list(balance)
    names = sorted(balance["tokens"].shares, key=lambda name: -balance["tokens"].shares[name])
    lines = [f"  {'share of':24} " + " ".join(f"{word:>7}" for word in words)]
    for name in names[:SHOWN_CHARACTERS]:
        short = name if len(name) <= 24 else name[:23] + "…"
        lines.append(f"  {short:24} " + " ".join(f"{balance[word].shares[name]:7.1%}" for word in words))
    if len(names) > SHOWN_CHARACTERS:
        lines.append(f"  ... and {len(names) - SHOWN_CHARACTERS:,} more")
    lines.append(f"  {'largest to smallest':24} " + " ".join(f"{balance[word].ratio:6.1f}x" for word in words))
    return lines


def counts_text(counts: Mapping[str, int], before: str) -> str:
    """Counts by kind in a few words, behind `before`; "" for none."""
    return before + ", ".join(f"{kind} {count:,}" for kind, count in sorted(counts.items())) if counts else ""


def _paragraph(label: str, text: str) -> str:
    """A reply behind its label, wrapped to a readable width (Chinese, without blanks, stays as it is)."""
    words = " ".join(text.split()) or "(nothing)"
    indent = " " * len(label)
    wrap = textwrap.TextWrapper(100, initial_indent=label, subsequent_indent=indent, break_long_words=False)
    return wrap.fill(words)


def _command_name() -> str:
    """How to call mrp again: by its name if it is on the PATH, else as it was called."""
    return "mrp" if shutil.which("mrp") else Path(sys.argv[0]).as_posix()


def show_command(run: Run, character: str | None, count: int, held_out: bool, report: Reporter) -> dict[str, Any]:
    """`mrp data show`: samples as the model of this run sees them."""
    from mrp.data.samples import read_samples
    from mrp.data.show import show_samples
    from mrp.models.bases import find_base
    from mrp.models.load import load_tokenizer
    from mrp.render import ChatTemplate, render_sample

    path = run.data / ("held-out.jsonl" if held_out else "train.jsonl")
    if not path.is_file():
        raise InputError("the data is not built", str(path), f"run `mrp data build {run.path}`")
    samples = read_samples(path)
    if character is not None:
        wanted = run.cast.find(character, "--character").id
        samples = [s for s in samples if s.character == wanted]
        if not samples:
            raise InputError(f"no samples of {wanted!r}", str(path), nearest(wanted, [c.id for c in run.cast]))
    base = find_base(run.config.base, run.path.parent)
    tokenizer = load_tokenizer(base)
    template = ChatTemplate(tokenizer, where=str(base))

    def rendered(sample: Any) -> list[tuple[str, bool]]:
        pieces = render_sample(template, run.cast, sample, run.config.train.max_tokens)[0]
        return [(text, learnt) for piece in pieces for text, learnt in template.texts(piece)]

    chosen = samples[:count]
    colour = isinstance(report, ConsoleReporter) and report.out.is_terminal
    for text in show_samples(chosen, rendered, colour):
        report.result(text)
    return {"samples": [s.as_json() for s in chosen], "file": str(path)}
