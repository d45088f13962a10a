"""The commands of `mrp data` and `mrp card`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mrp.command_line import HERE, RUN, SET, command, load
from mrp.report import Reporter

data = typer.Typer(help="Dialogues: check them, build samples, look at them.", no_args_is_help=True)
card = typer.Typer(help="Character cards (V1, V2, V3): into a cast, and out of it again.", no_args_is_help=True)


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
