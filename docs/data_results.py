"""Write docs/data-results.md and its plots: `python docs/data_results.py SHARED_DATA`, a folder with the real corpora.

What `mrp data check` and `mrp data build` say of each; numbers and pictures only, none of the texts.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from mrp.cast import load_cast
from mrp.config import Run, load_run
from mrp.data.build import build_data
from mrp.data.check import CheckReport, check_data
from mrp.data.tally import EDGES
from mrp.plots import bars, histogram

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
PLOTS = HERE / "plots"
SETS = {  # title -> files, and the example whose cast speaks in them
    "xiyou, four files": (["xiyou/swj.jsonl", "xiyou/swk.jsonl", "xiyou/tsz.jsonl", "xiyou/zbj.jsonl"], "xiyou"),
    "xiyou, whole scenes": (["xiyou/scenes.jsonl"], "xiyou"),
    "xiyou, original samples": (["xiyou-original-samples/samples.jsonl"], "xiyou"),
    "shakespeare, 12 files": (["shakespeare/*.jsonl"], "shakespeare"),
    "shakespeare, the plays": (["shakespeare/input.txt"], "shakespeare"),
    "emollm, aiwei": (["emollm-personas/aiwei.json"], None),
    "emollm, tiangou": (["emollm-personas/tiangou.json"], None),
    "emollm, self_cognition": (["emollm-personas/self_cognition.json"], None),
}
HEAD = """# Data: results on real corpora

Made by `python docs/data_results.py SHARED_DATA` (the corpora are not in this repository). What each count means is in
[data-format.md](data-format.md).

## `mrp data check`

Ratios are those of the largest to the smallest character, by lines, turns and tokens.

| set | lines | usable | understood as | rejected | odd | repeated in part | ratios |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    data = Path(sys.argv[1])
    PLOTS.mkdir(exist_ok=True)
    rows, pictures = [], []
    for title, (patterns, example) in SETS.items():
        paths = [path for pattern in patterns for path in sorted(data.glob(pattern))]
        report = check_data(paths, load_cast(EXAMPLES / example / "cast.yaml") if example else None)
        rows.append(check_row(title, report))
        pictures += draw(title, report)
    text = HEAD + "".join(rows) + "\n" + "\n".join(pictures) + "\n\n" + builds(data)
    (HERE / "data-results.md").write_text(text, encoding="utf-8", newline="\n")


def check_row(title: str, report: CheckReport) -> str:
    balance = report.tally.balance()
    ratios = ", ".join(f"{b.ratio:.1f}" for b in balance.values()) or "one character"
    cells = [title, f"{report.lines:,}", f"{report.kept:,}", said(report.formats), said(report.counts)]
    cells += [said(report.findings), said(report.repeats), ratios]
    return "| " + " | ".join(cells) + " |\n"


def said(counts: Counter[str]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in sorted(counts.items())) or "none"


def draw(title: str, report: CheckReport) -> list[str]:
    """A picture of the sizes and one of the balance of a set, and the lines that show them."""
    stem = title.replace(", ", "-").replace(" ", "-")
    bins = report.tally.scene_tokens
    edges = [edge for edge in EDGES if min(bins) <= edge <= max(bins)]
    after = next(edge for edge in (*EDGES, EDGES[-1] * 2) if edge > edges[-1])
    plots = {"tokens": histogram([*edges, after], [bins[edge] for edge in edges], "Tokens a scene", "tokens")}
    balance = report.tally.balance()
    if balance:
        names = sorted(balance["tokens"].shares, key=lambda name: -balance["tokens"].shares[name])[:12]
        series = {word: [100 * b.shares[name] for name in names] for word, b in balance.items()}
        plots["balance"] = bars(names, series, "Share of each character", "%")
    lines = [f"**{title}**", ""]
    for kind, svg in plots.items():
        alone = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        (PLOTS / f"{stem}-{kind}.svg").write_text(f"{alone}\n", encoding="utf-8", newline="\n")
        lines.append(f"![{title}: {kind}](plots/{stem}-{kind}.svg)")
    return [*lines, ""]


def builds(data: Path) -> str:
    """The examples built as they are, and with near-duplicates left out."""
    text = "## `mrp data build`\n\n"
    text += "| example | options | kept of lines | rejected | train / held out | groups (largest) |\n"
    text += "| --- | --- | --- | --- | --- | --- |\n"
    with tempfile.TemporaryDirectory() as folder:
        for example in ("pilgrims", "xiyou", "shakespeare"):
            for options in ({}, {"data.dedupe": "near"}, {"data.identity": "0.1", "data.upsample": "3"}):
                run = example_run(example, data, Path(folder), options)
                text += build_row(example, options, build_data(run))
    return text


def example_run(example: str, data: Path, folder: Path, options: dict[str, str]) -> Run:
    home = folder / "shared" / "main" / "examples"
    if not (home / example).exists():
        shutil.copytree(EXAMPLES / example, home / example)
        if not (folder / "shared" / "shared").exists():
            (folder / "shared" / "shared").mkdir(parents=True)
            (folder / "shared" / "shared" / "data").symlink_to(data.resolve())
    return load_run(home / example / "mrp.yaml", {"out": str(folder / "run"), **options})


def build_row(example: str, options: dict[str, str], manifest: dict[str, object]) -> str:
    totals = manifest["totals"]
    split = manifest["split"]
    asked = ", ".join(f"`{key.removeprefix('data.')}: {value}`" for key, value in options.items()) or "as it is"
    cells = [example, asked, f"{totals['kept']:,} of {totals['lines']:,}", said(Counter(totals["rejected"]))]
    cells.append(f"{totals['train']['samples']:,} / {totals['held_out']['samples']:,}")
    cells.append(f"{split['groups']:,} ({split['largest_group']})")
    return "| " + " | ".join(cells) + " |\n"


if __name__ == "__main__":
    main()
