"""What every command has in common: how it is registered, how it ends, what its errors look like.

    @command(app, "init")
    def init(folder: Annotated[Path, typer.Argument()], report: Reporter) -> Any: ...

Used by `cli.py`, where the commands are.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mrp.errors import InputError, LostError, MrpError, Stopped
from mrp.report import ConsoleReporter

RUN = Annotated[Path, typer.Argument(help="A run file, or the folder of a run.", show_default=False)]
SET = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change an option of the run file, e.g. --set train.epochs=2."),
]
BITS = Annotated[str, typer.Option(metavar="auto|16|8|4", help="Of the weights; auto: as the GPU allows.")]
HERE = Path()


def command(group: typer.Typer, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a command: `report` is given to it, --json, --debug and -q are added."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(as_json: bool, debug: bool, quiet: bool, **given: Any) -> None:
            # With --json only the result goes to standard output; what people read goes to standard error.
            report = ConsoleReporter(sys.stderr if as_json else sys.stdout, quiet)
            report.flags = [f for f, on in (("--json", as_json), ("--debug", debug), ("-q", quiet)) if on]
            _finish(functools.partial(function, report=report, **given), report, as_json, debug)

        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "report"]
        option = inspect.Parameter.KEYWORD_ONLY
        common = [
            inspect.Parameter(n, option, default=False, annotation=Annotated[bool, typer.Option(*flags, help=text)])
            for n, flags, text in (
                ("as_json", ("--json",), "Print the result as JSON, on the last line of standard output."),
                ("debug", ("--debug",), "Show the traceback of an error."),
                ("quiet", ("-q", "--quiet"), "Print errors and results only."),
            )
        ]
        own = [p.replace(kind=option) for p in own]
        run.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in [*own, *common]}
        group.command(name)(run)
        return function

    return register


def _finish(work: Callable[[], Any], report: ConsoleReporter, as_json: bool, debug: bool) -> None:
    """Run a command and turn what happens into output and an exit code."""
    if os.environ.get("RANK", "0") != "0":
        _finish_one_of_many(work, as_json, debug)
        return
    try:
        with warnings.catch_warnings():
            if not debug:  # what libraries say to their own developers
                warnings.filterwarnings("ignore", module=r"(torch|transformers|peft)\b")
                # PEFT loads bitsandbytes where it is installed, which then misses kernels that mrp never asks for
                logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
            result = work()
    except BrokenPipeError:
        raise  # who read our output has seen enough; typer ends quietly
    except typer.Exit:
        raise  # the processes of a training have told how they ended
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        fault = _fault(error)
        if isinstance(fault, LostError) and "MRP_STARTED_WITH" in os.environ:
            raise typer.Exit(fault.exit_code) from None  # who started us tells what the other one said
        report.err.print(str(fault) if isinstance(fault, Stopped) else f"error: {fault}")
        if as_json:
            print(json.dumps({"error": fault.as_json()}, ensure_ascii=False))
        raise typer.Exit(fault.exit_code) from None
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    if code := getattr(result, "exit_code", 0):  # a `Judgement`
        raise typer.Exit(code)


def _finish_one_of_many(work: Callable[[], Any], as_json: bool, debug: bool) -> None:
    """Run a process of a training that is not the first: it talks only of what it alone knows."""
    try:
        work()
    except (Exception, KeyboardInterrupt) as error:
        fault = _fault(error)
        if fault.shared or isinstance(fault, Stopped):
            return  # the first process tells it, and has the exit code
        if isinstance(fault, LostError):
            raise typer.Exit(fault.exit_code) from None
        if debug:
            traceback.print_exc()
        print(f"error: process {os.environ['RANK']}: {fault}", file=sys.stderr)
        if as_json:
            print(json.dumps({"error": fault.as_json()}, ensure_ascii=False))
        raise typer.Exit(fault.exit_code) from None


def _fault(error: BaseException) -> MrpError:
    """`error` as one that can be told: what, where, fix."""
    from mrp.files import disk_error

    if isinstance(error, KeyboardInterrupt):
        return Stopped("interrupted; the same command again does the rest")
    if isinstance(error, OSError) and error.errno:
        error = disk_error(error, Path(error.filename or "a file"))
    if isinstance(error, MrpError):
        return error
    fix = "this is a fault of mrp; please report it with what `--debug` shows"
    return MrpError(f"{type(error).__name__}: {error}", fix=fix)


def settings_given(settings: list[str] | None) -> dict[str, str]:
    """--set KEY=VALUE as a mapping."""
    given: dict[str, str] = {}
    for setting in settings or []:
        key, mark, value = setting.partition("=")
        if not mark:
            raise InputError(f"--set wants KEY=VALUE, not {setting!r}", "--set", "for example --set train.epochs=2")
        given[key.strip()] = value.strip()
    return given


def load(path: Path, settings: list[str] | None = None) -> Any:
    from mrp.config import load_run

    return load_run(path, settings_given(settings))
