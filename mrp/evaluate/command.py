"""The commands `mrp eval` and `mrp compare`: what they say, and the command line that the report shows.

eval_command(Path("mrp.yaml"), {}, report, full=False, replies=0, ...)
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

from mrp.errors import Stopped
from mrp.evaluate.counts import PUBLISHED
from mrp.evaluate.evaluation import FOLDER, evaluate
from mrp.evaluate.findings import findings
from mrp.report import Reporter, duration_text


def eval_command(path: Path, flags: dict[str, str], report: Reporter, **options: Any) -> dict[str, Any]:
    """Evaluate, and tell what was found and where the report lies; returns the figures with those places."""
    began = time.monotonic()
    if not options["full"]:
        report.line(f"as much as fits a laptop; --full makes {PUBLISHED} replies a character, for figures to publish")
    command = _command(path, flags, options)
    try:
        results = evaluate(path, flags, **options, command=command, report=report)
    except KeyboardInterrupt:
        raise Stopped("the evaluation was stopped; what is done is kept", str(path), command) from None
    report.line()
    for text in findings(results):
        report.result(f"- {text}")
    folder = Path(results["folder"]) / FOLDER
    paths = {name: str((folder / f).resolve()) for name, f in FILES.items()}
    report.line()
    report.line(f"report   {folder / 'report.html'}   ({duration_text(time.monotonic() - began)})")
    left_out = ("folder", "samples", "sides")  # long; they stand in results.json
    return {name: value for name, value in results.items() if name not in left_out} | {"paths": paths}


def compare_command(path: Path, report: Reporter, threads: int, bits: str) -> dict[str, Any]:
    """Do what is missing of an experiment, and tell what was found."""
    from mrp.evaluate.compare import compare
    from mrp.evaluate.compare_findings import conclusions

    command = shlex.join(["mrp", "compare", str(path), *(["--bits", bits] if bits != "auto" else [])])
    try:
        results = compare(path, command, report, threads, bits)
    except KeyboardInterrupt:
        raise Stopped("the comparison was stopped; what is done is kept", str(path), command) from None
    report.line()
    for text in conclusions(results):
        report.result(f"- {text}")
    folder = Path(results["folder"])
    report.line()
    report.line(f"report   {folder / 'compare.html'}")
    shown = {key: value for key, value in results.items() if key != "folder"}
    return shown | {"paths": {kind: str((folder / f"compare.{kind}").resolve()) for kind in ("html", "md", "json")}}


FILES = {"results": "results.json", "page": "report.html", "markdown": "report.md"}


def _command(path: Path, flags: dict[str, str], options: dict[str, Any]) -> str:
    """The command line that does the same again."""
    words = ["mrp", "eval", str(path)]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "only":
            words += [word for part in value for word in (flag, part)]
        elif value is True:
            words.append(flag)
        elif value and name != "threads" and (name, value) != ("bits", "auto"):
            words += [flag, str(value)]
    for key, text in flags.items():
        words += ["--set", f"{key}={text}"]
    return shlex.join(words)
