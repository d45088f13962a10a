"""`mrp judge`: what it says before it asks, and what it leaves behind.

    judge_command(Path("mrp.yaml"), JudgeFlags(base_url="https://HOST/v1", model="NAME"), report)

Replies come from RUN/eval/said.json (or a benchmark's); answers are kept in judge.jsonl beside it, results go to
judge.json, judge.html and judge.md, and into the report of `mrp eval`.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrp.errors import InputError, Stopped, nearest
from mrp.evaluate.benchmark import FOLDER as BENCHMARKS
from mrp.evaluate.benchmark_files import HOMES
from mrp.evaluate.evaluation import FOLDER, RESULTS
from mrp.evaluate.kept import Kept
from mrp.evaluate.material import run_of
from mrp.files import folder_lock, read_json, sha256_file, write_json
from mrp.judge.budget import Budget, Prices
from mrp.judge.judging import KINDS, Judging
from mrp.judge.report import JUDGE_FILE, judge_findings, write_judge_report
from mrp.judge.said import FILE, Said, against, read_said
from mrp.judge.server import JudgeServer
from mrp.report import Reporter

KEPT = "judge.jsonl"


@dataclass(frozen=True)
class JudgeFlags:
    """The options of the command. Prices are of a million tokens; 0 replies: all there are."""

    base_url: str
    model: str
    by: tuple[str, ...] = KINDS
    against: Path | None = None
    benchmark: str | None = None
    replies: int = 0
    key_env: str = "MRP_JUDGE_KEY"
    price_in: float | None = None
    price_out: float | None = None
    max_cost: float | None = None
    max_requests: int = 1000
    dry_run: bool = False
    seed: int = 0
    threads: int = 4
    max_tokens: int = 1024  # of an answer
    timeout_s: float = 120.0


def judge_command(path: Path, flags: JudgeFlags, report: Reporter) -> dict[str, Any]:
    """Ask the judge and tell what it found; returns the results with the places of the reports."""
    if wrong := sorted(set(flags.by) - set(KINDS)):
        raise InputError(f"a judge does not judge by {wrong[0]!r}", "--by", nearest(wrong[0], KINDS))
    budget = Budget(Prices(flags.price_in, flags.price_out), flags.max_requests, flags.max_cost)
    if flags.benchmark is not None and flags.benchmark not in HOMES:
        raise InputError(f"no benchmark is called {flags.benchmark!r}", "--benchmark", nearest(flags.benchmark, HOMES))
    if flags.benchmark is not None and flags.against is not None:
        raise InputError("a benchmark's replies are judged of one run", "--against", "leave out one of the two")
    run = run_of(path, {})
    folder = run.folder / FOLDER if flags.benchmark is None else run.folder / BENCHMARKS / flags.benchmark
    command = _command(path, flags)
    server = JudgeServer(
        flags.base_url,
        flags.model,
        _key(flags),
        seed=flags.seed,
        max_tokens=flags.max_tokens,
        timeout_s=flags.timeout_s,
    )
    try:
        with folder_lock(run.folder):
            said, name, sides = _said(path, folder, flags, report)
            with Kept(folder / KEPT) as kept:
                work = Judging(said, server, kept, flags.by, flags.replies, sides, flags.seed)
                plan = work.plan()
                _tell_plan(plan, flags, budget, report)
                budget.check(plan["to_ask"], plan["tokens_in"], plan["tokens_out"])
                if flags.dry_run:
                    return {"plan": plan, "cost": budget.prices.cost(plan["tokens_in"], plan["tokens_out"])}
                results = work.ask(budget, flags.threads, report)
            cost = budget.prices.cost(results["answers"]["tokens_in"], results["answers"]["tokens_out"])
            results |= {"title": said.title, "command": command, "cost": cost, "said": sha256_file(folder / FILE)}
            if flags.against is not None:
                results["names"] = dict(zip(sides, _told_apart(path, flags.against), strict=True))
            write_json(folder / f"{name}.json", results)
            write_judge_report(folder / name, results)
            if name == Path(JUDGE_FILE).stem and flags.benchmark is None:
                _into_report(folder)
    except KeyboardInterrupt:
        raise Stopped("the judging was stopped; what was answered is kept", str(path), command) from None
    finally:
        server.close()
    _tell_results(results, budget, report)
    paths = {kind: str((folder / f"{name}.{kind}").resolve()) for kind in ("json", "html", "md")}
    report.line(f"report   {folder / f'{name}.html'}")
    return results | {"spent": vars(budget.spent) | {"cost": budget.cost}, "paths": paths}


def _said(path: Path, folder: Path, flags: JudgeFlags, report: Reporter) -> tuple[Said, str, tuple[str, str]]:
    """The replies, the name of the results, and the two sides."""
    if flags.benchmark is not None:
        fix = f"mrp benchmark {shlex.quote(str(path))} {flags.benchmark}=PATH"
        return read_said(folder / FILE, fix), "judge", ("tuned", "base")
    said = _evaluated(path, folder)
    if flags.against is None:
        return said, "judge", ("tuned", "base")
    other = _evaluated(flags.against, run_of(flags.against, {}).folder / FOLDER)
    both, alone = against(said, other, str(flags.against))
    if alone:
        report.warn(f"{alone} replies stand in one of the two evaluations alone and are not compared")
    if both.models["tuned"] == both.models["other"]:
        raise InputError("both runs have the same model", "--against", "name another run")
    return both, f"judge-against-{both.models['other'][:8]}", ("tuned", "other")


def _told_apart(one: Path, other: Path) -> list[str]:
    """Two runs by what differs in their paths."""
    common = Path(os.path.commonpath([one.resolve(), other.resolve()]))
    return [path.resolve().relative_to(common).as_posix() for path in (one, other)]


def _evaluated(path: Path, folder: Path) -> Said:
    """The replies of an evaluation that is of the run as it is now."""
    fix = f"mrp eval {shlex.quote(str(path))}"
    said = read_said(folder / FILE, fix)
    record, results = folder.parent / "run.json", read_json(folder / RESULTS)
    trained = read_json(record).get("fingerprint", "") if record.is_file() else ""
    if results.get("trained", "") != trained or results.get("models") != said.models:
        raise InputError("the run was trained anew since its replies were made", str(folder / FILE), fix)
    return said


def _key(flags: JudgeFlags) -> str | None:
    """The key, from the environment alone."""
    key = os.environ.get(flags.key_env, "").strip()
    if not key and flags.key_env != JudgeFlags.key_env:
        what = f"the environment variable {flags.key_env} is not set"
        raise InputError(what, "--key-env", f"export {flags.key_env}=..., or leave --key-env out for a server without")
    if not (key.isascii() and key.isprintable()):
        raise InputError("the key holds characters that no key has", flags.key_env, "set it anew")
    return key or None


def _tell_plan(plan: dict[str, int], flags: JudgeFlags, budget: Budget, report: Reporter) -> None:
    cost = budget.prices.cost(plan["tokens_in"], plan["tokens_out"])
    price = "" if cost is None else f", about {cost:.4g} at the prices given"
    asked = f"{flags.model}: {plan['questions']:,} questions"
    if not plan["to_ask"]:
        report.line(f"{asked}, all answered before: nothing is asked")
        return
    report.line(
        f"{asked}, {plan['to_ask']:,} not answered yet: about {plan['tokens_in']:,} tokens to the judge and"
        f" {plan['tokens_out']:,} back{price}"
    )
    if cost is None:
        report.line("(--price-in and --price-out, of a million tokens, tell the cost; --max-cost limits it)")


def _tell_results(results: dict[str, Any], budget: Budget, report: Reporter) -> None:
    report.line()
    for text in judge_findings(results):
        report.result(f"- {text}")
    report.line()
    spent = budget.spent
    told = f"{spent.requests:,} requests now, {spent.tokens_in:,} tokens to the judge, {spent.tokens_out:,} back"
    if spent.estimated:
        told += f" (of {spent.estimated:,} the server told no tokens: estimated)"
    report.line(told if budget.cost is None else f"{told}, cost {budget.cost:.4g}")


def _into_report(folder: Path) -> None:
    """Write the report of the evaluation anew, now with the judge's section."""
    from mrp.evaluate.report import write_reports

    write_reports(folder, read_json(folder / RESULTS))


def _command(path: Path, flags: JudgeFlags) -> str:
    """The command line that does the same again."""
    words = ["mrp", "judge", str(path), "--base-url", flags.base_url, "--model", flags.model]
    default = JudgeFlags("", "")
    if flags.by != default.by:
        words += [word for kind in flags.by for word in ("--by", kind)]
    for name in (
        "against",
        "benchmark",
        "replies",
        "key_env",
        "price_in",
        "price_out",
        "max_cost",
        "max_tokens",
        "seed",
    ):
        value = getattr(flags, name)
        if value != getattr(default, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)
