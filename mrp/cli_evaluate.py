"""The commands that measure: `mrp eval`, `benchmark`, `judge` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mrp.command_line import BITS, HERE, RUN, SET, command, settings_given
from mrp.report import Reporter

app = typer.Typer()  # its commands stand beside those of cli.py


@command(app, "eval")
def eval_command(
    report: Reporter,
    run: RUN = HERE,
    full: Annotated[bool, typer.Option("--full", help="As much as a published figure wants (hours on a CPU).")] = False,
    replies: Annotated[int, typer.Option(min=0, help="Generated replies a character; 0: fitting the cast.")] = 0,
    lines: Annotated[int, typer.Option(min=0, help="Held-out lines a character; 0: fitting the cast.")] = 0,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this part: identity, voice, questions, lore, drift, retention.")
    ] = None,
    both_languages: Annotated[bool, typer.Option("--both-languages", help="Ask in English and Chinese.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal reports.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Replies asked for at once.")] = 8,
    bits: BITS = "auto",
    set_: SET = None,
) -> Any:
    """Measure who the model plays, how well, and what it forgot, beside the base with the persona prompt alone."""
    from mrp.evaluate.command import eval_command

    counts = {"full": full, "replies": replies, "lines": lines, "only": only or ()}
    more = {"both_languages": both_languages, "seed": seed, "threads": threads, "bits": bits}
    return eval_command(run, settings_given(set_), report, **counts, **more)


@command(app, "benchmark")
def benchmark_command(
    run: Annotated[Path, typer.Argument(help="A run file, or the folder of a run.", show_default=False)],
    named: Annotated[
        list[str], typer.Argument(metavar="NAME=PATH...", help="charactereval, rolebench or coser, and its files.")
    ],
    report: Reporter,
    items: Annotated[int, typer.Option(min=0, help="Places to speak in, spread over the roles; 0: all.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal reports.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Replies asked for at once.")] = 8,
    set_: SET = None,
) -> Any:
    """Play the roles of a benchmark, from its own files, and write the replies for its own scorer and for a judge."""
    from mrp.evaluate.benchmark import BenchmarkFlags, benchmark_command

    return benchmark_command(run, named, settings_given(set_), BenchmarkFlags(items, seed, threads), report)


@command(app, "judge")
def judge_command(
    report: Reporter,
    base_url: Annotated[str, typer.Option(help="An OpenAI-compatible server, such as https://HOST/v1.")],
    model: Annotated[str, typer.Option(help="The judge's name there.")],
    run: RUN = HERE,
    by: Annotated[list[str] | None, typer.Option(help="pairs, marks; both if left out.")] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Compare with this run's model, not with the base.")
    ] = None,
    benchmark: Annotated[str | None, typer.Option(help="Judge the replies of `mrp benchmark`.")] = None,
    replies: Annotated[int, typer.Option(min=0, help="Replies a character; 0: all that were evaluated.")] = 0,
    key_env: Annotated[
        str, typer.Option(metavar="NAME", help="The environment variable with the API key.")
    ] = "MRP_JUDGE_KEY",
    price_in: Annotated[float | None, typer.Option(min=0, help="Price of a million tokens to the judge.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="Price of a million tokens back.")] = None,
    max_cost: Annotated[float | None, typer.Option(min=0, help="Refuse to spend more.")] = None,
    max_requests: Annotated[int, typer.Option(min=0, help="Refuse to ask more often; 0: any number.")] = 1000,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer; a judge that thinks first needs more.")
    ] = 1024,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and ask nothing.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal reports.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Questions asked at once.")] = 4,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for an answer.")] = 120,
) -> Any:
    """Let another model judge what `mrp eval` made the characters say: pairs in both orders, and marks by a rubric."""
    from mrp.judge.command import JudgeFlags, judge_command
    from mrp.judge.judging import KINDS

    flags = JudgeFlags(
        base_url=base_url,
        model=model,
        by=tuple(by or KINDS),
        against=against,
        benchmark=benchmark,
        replies=replies,
        key_env=key_env,
        price_in=price_in,
        price_out=price_out,
        max_cost=max_cost,
        max_requests=max_requests,
        max_tokens=max_tokens,
        dry_run=dry_run,
        seed=seed,
        threads=threads,
        timeout_s=timeout,
    )
    return judge_command(run, flags, report)


@command(app, "compare")
def compare_command(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="Arms, seeds and the run they share.")],
    report: Reporter,
    threads: Annotated[int, typer.Option(min=1, help="Replies asked for at once.")] = 8,
    bits: BITS = "auto",
) -> Any:
    """Train and measure several ways of one run, with several seeds, and compare them pair by pair."""
    from mrp.evaluate.command import compare_command

    return compare_command(experiment, report, threads, bits)
