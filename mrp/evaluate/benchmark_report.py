"""What a benchmark found, in words and tables: report.html and report.md in its folder.

write_benchmark_report(folder, results)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrp.evaluate.benchmark_files import HOMES
from mrp.evaluate.blocks import Block, Compared, List, Table, Text, html, markdown
from mrp.evaluate.findings import SIDE_NAMES, number, percent, surely
from mrp.files import replacing
from mrp.page import Section, page

SHOWN_GROUPS = 40
OWN_SCORER = {
    "charactereval": "CharacterEval's own marks come from its reward model: copy {file} to its `results/`, then run its"
    " `transform_format.py`, `run_char_rm.py` and `compute_score.py`.",
    "rolebench": "{file} holds the answers as rows of RoleBench, for other scorers.",
    "coser": "CoSER's own marks come from its judge: copy {file} to its `exp/simulation/test_set_MODEL.json`, then run"
    " `gca_evaluation/main.py --actor_model MODEL`. Who speaks when, and what the environment does, is the real"
    " scene's.",
}
FILES = {"charactereval": "generation.jsonl", "rolebench": "generated.jsonl", "coser": "simulation.json"}


def benchmark_findings(results: dict[str, Any]) -> list[str]:
    """What the figures say, each with its figure."""
    return list(_sentences(results))


def _sentences(results: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{results['items']} of {results['of']} places of {results['benchmark']} were played, by {results['roles']}"
        f" roles, of the run's own cast {len(results['own_roles'])}."
    )
    if results["too_long"]:
        yield f"{results['too_long']} places did not fit the context and are left out (chat.context_tokens)."
    tuned, base = (results["sides"][side] for side in ("tuned", "base"))
    if tuned["rouge_l"]:
        how = {1: "nearer to", -1: "farther from"}.get(surely(results["difference"]), "not surely nearer to")
        yield (
            f"The tuned model's words are {how} the references than the base's: ROUGE-L {number(tuned['rouge_l'])}"
            f" against {number(base['rouge_l'])}, difference {number(results['difference'], sign=True)}."
        )
    yield (
        f"Of its replies {percent(tuned['empty'])} are empty (base {percent(base['empty'])}), {percent(tuned['cut'])}"
        f" were cut for length (base {percent(base['cut'])})."
    )


def benchmark_blocks(results: dict[str, Any]) -> list[tuple[str, list[Block]]]:
    """The sections of the report."""
    name = results["benchmark"]
    sides = [(SIDE_NAMES[side], results["sides"][side]) for side in ("base", "tuned")]
    rows = [[text, *(percent(own[key]) for _, own in sides)] for key, text in _RATES.items()]
    if results["sides"]["tuned"]["rouge_l"]:
        rows.insert(0, ["ROUGE-L", *(number(own["rouge_l"]) for _, own in sides)])
    blocks: list[Block] = [Table(["", *(side for side, _ in sides)], rows)]
    groups = list(results["sides"]["tuned"]["groups"])
    if groups:
        table = [[one, *(number(own["groups"].get(one)) for _, own in sides)] for one in groups[:SHOWN_GROUPS]]
        blocks.append(Table(["ROUGE-L of", *(side for side, _ in sides)], table))
    if len(groups) > SHOWN_GROUPS:
        blocks.append(Text(f"{len(groups) - SHOWN_GROUPS} more stand in results.json."))
    blocks.append(Text(OWN_SCORER[name].format(file=FILES[name])))
    made = [
        ["command", results["command"]],
        ["benchmark", f"{name} ({HOMES[name]}), {results['path']}"],
        ["run", results["run"]],
        ["seed", str(results["seed"])],
        ["models", ", ".join(f"{side} {one[:16]}" for side, one in results["models"].items())],
        ["of the run's own cast", ", ".join(results["own_roles"]) or "none"],
    ]
    found: list[Block] = [List(benchmark_findings(results)), Text(_NOTE)]
    shown: list[Block] = [Compared(f"{s['role']}: {s['question']}", _said(s)) for s in results["samples"]]
    parts = [("What was found", found), ("Figures", blocks), ("The same place, side by side", shown)]
    return [*parts, ("How it was made", [Table(["what", "value"], made)])]


def _said(sample: dict[str, Any]) -> list[tuple[str, str]]:
    """What stands in the benchmark, where it has an answer, and what both sides said."""
    real = [] if sample["real"] is None else [("reference", sample["real"])]
    return real + [(SIDE_NAMES[side], sample[side] or "(nothing)") for side in ("base", "tuned")]


_RATES = {"empty": "empty", "cut": "cut for length", "speaks_for_others": "begin another's line"}
_NOTE = (
    "Brackets hold 95 % intervals by a bootstrap over scenes or questions; each role (of CoSER: each book) counts the"
    " same. These are some places, played with our prompts: not figures to set beside a benchmark's published table."
)


def write_benchmark_report(folder: Path, results: dict[str, Any]) -> None:
    """Write report.html and report.md, each whole or not at all."""
    title = f"{results['benchmark']} played by {results['run']}"
    parts = benchmark_blocks(results)
    sections = [Section(name, [html(block) for block in blocks]) for name, blocks in parts]
    with replacing(folder / "report.html") as file:
        file.write(page(title, benchmark_findings(results)[0], sections))
    lines = [f"# {title}", ""]
    for name, blocks in parts:
        lines += [f"## {name}", "", *(line for block in blocks for line in markdown(block))]
    with replacing(folder / "report.md") as file:
        file.write("\n".join(lines).rstrip() + "\n")
