"""`mrp import xtuner CONFIG.py OUT_DIR`: a config as a run file and a cast to begin with.

    result = import_xtuner(Path("xiyou.py"), Path("xiyou"))      # writes xiyou/mrp.yaml and xiyou/cast.yaml

The config is read, never run (`config.py`), its options are taken over, mended or named (`options.py`), and the cast is
made of the names that the data speaks with (`people.py`). Files that are there already are never written over.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mrp.config import RUN_FILE, load_run, moved_path
from mrp.errors import InputError, raise_all
from mrp.files import replacing
from mrp.report import SILENT, Reporter
from mrp.xtuner.config import XtunerConfig, read_config
from mrp.xtuner.options import data_files, is_internlm2, local_name, plan_run
from mrp.xtuner.people import cast_text, find_people
from mrp.xtuner.table import Plan, Row, shown
from mrp.yamlfile import dump_yaml

CAST_FILE = "cast.yaml"
HEADS = {
    "same": "taken as it is",
    "mended": "mended",
    "none": "without counterpart",
    "unread": "could not be read (nothing of a config is run, and nothing is guessed)",
}


def import_xtuner(config_path: Path, out: Path, report: Reporter = SILENT) -> dict[str, Any]:
    """Write OUT/mrp.yaml and OUT/cast.yaml for an XTuner config; returns the table and the resolved config.

    Raises `InputError` where the config is no Python, builds on files that are missing, or where a file to write is
    there already.
    """
    config = read_config(config_path)
    run_file, cast_file = out / RUN_FILE, out / CAST_FILE
    taken = [
        InputError(f"{path.name} exists already", str(path), "choose another folder, or move the file away")
        for path in (run_file, cast_file)
        if path.exists()
    ]
    raise_all(f"{out} has files of that name", taken)
    plan = plan_run(config)
    people = find_people(config, data_files(config))
    with _together(run_file, cast_file):
        with replacing(cast_file) as file:
            file.write(cast_text(people, out))
        with replacing(run_file) as file:
            file.write(run_text(plan, config, out))
        load_run(run_file)
    _tell(plan, config, people.notes, run_file, report)
    return {
        "files": [str(run_file), str(cast_file)],
        "options": plan.options,
        "table": [row.as_json() for row in plan.rows],
        "unread": [{"where": u.where, "reason": u.reason, "keys": u.keys} for u in config.unread],
        "characters": [{"id": c["id"], "name": c["name"]} for c in people.characters],
        "notes": people.notes,
        "resolved": config.as_json(),
    }


@contextmanager
def _together(*paths: Path) -> Iterator[None]:
    """Files that are all there when the block ends, or none of them if it fails."""
    folder = paths[0].parent
    is_new = not folder.exists()
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise


# -- the run file ------------------------------------------------------------------------------------------------------


def run_text(plan: Plan, config: XtunerConfig, out: Path) -> str:
    """The run file, each option with where it comes from; what has no place in it stands in comments."""
    options = {"cast": CAST_FILE, "out": "run"} | plan.options
    if "base" in plan.options:
        options["base"] = moved_path(plan.options["base"], Path(), out)
    lines = [f"# Made of XTuner's {config.path.name} by `mrp import xtuner`. What it says is read, never run."]
    for row in plan.rows:
        if row.kind == "unread":
            lines += _comment(f"COULD NOT BE READ: {row.option} ({row.why})")
    for key in ("base", "cast", "out", "seed", "question"):
        if key in options:
            lines += _option(key, options[key], plan, "")
    for section in dict.fromkeys(key.partition(".")[0] for key in options if "." in key):
        lines.append(f"{section}:")
        for key, value in options.items():
            if key.startswith(f"{section}."):
                lines += _option(key, value, plan, "  ")
    return "\n".join(lines) + "\n"


def _option(key: str, value: Any, plan: Plan, indent: str) -> Iterator[str]:
    row = next((row for row in plan.rows if row.ours == key), None)
    if row is not None and row.kind == "mended":
        yield from (indent + line for line in _comment(f"{row.option}: {row.why}"))
    source = f"  # {row.option}" if row is not None and row.kind == "same" else ""
    yield indent + dump_yaml({key.rpartition(".")[2]: value}, width=2**30).strip() + source


def _comment(text: str) -> list[str]:
    clean = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return [f"# {line}" for line in textwrap.wrap(clean, 116, break_long_words=False, break_on_hyphens=False)]


# -- the table ---------------------------------------------------------------------------------------------------------


def _tell(plan: Plan, config: XtunerConfig, notes: list[str], run_file: Path, report: Reporter) -> None:
    for kind, head in HEADS.items():
        rows = [row for row in plan.rows if row.kind == kind]
        if rows:
            report.line(f"{head}:")
        for row in rows:
            report.line(f"  {_row_text(row)}")
    for unread in (row for row in plan.rows if row.kind == "unread"):
        report.warn(f"{unread.option} could not be read: {unread.why}")
    if config.unread:
        report.warn(f"write the values into {config.path.name} and import it anew, or set them in {run_file}")
    for note in notes:
        report.warn(note)
    report.line(f"wrote {run_file} and {run_file.with_name(CAST_FILE)}")
    base = config.find("model.llm.pretrained_model_name_or_path", "")
    if isinstance(base, str) and is_internlm2(base):
        folder = local_name(base)
        report.line(f"next: `mrp convert internlm2-to-llama {folder} {folder}-llama` (once)")
    report.line(f"next: write the personas in {run_file.with_name(CAST_FILE)}, then `mrp run {run_file}`")


def _row_text(row: Row) -> str:
    value = "" if row.value is None or row.kind == "unread" else f" = {shown(row.value)}"
    ours = f" -> {row.ours}" if row.ours else ""
    if row.ours and row.our_value is not None:
        ours += f": {shown(row.our_value)}"
    return f"{row.option}{value}{ours}" + (f" ({row.why})" if row.why else "")
