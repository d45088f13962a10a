"""Write docs/options.md and docs/cli.md from the program itself: `python docs/make.py`. A test holds them current."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import typer
from pydantic.fields import FieldInfo

from mrp.cast import Cast, Character
from mrp.cli import app
from mrp.config import RunConfig
from mrp.files import replacing
from mrp.lore import LoreEntry
from mrp.play.scene_plan import ScenePlan, Step
from mrp.yamlfile import StrictModel

HERE = Path(__file__).parent
MADE = "<!-- made by docs/make.py -->\n\n"


def options_page() -> str:
    """All keys of a run file and of a cast file, with default and meaning."""
    parts = [MADE, "# Options\n\nUnknown keys are refused. `--set KEY=VALUE` changes an option of the run file.\n"]
    parts.append("\n## The run file (`mrp.yaml`)\n\n| key | default | meaning |\n| --- | --- | --- |\n")
    parts += _rows(RunConfig, "")
    for model, title in (
        (Cast, "The cast file (`cast.yaml`)"),
        (Character, "A character in it"),
        (LoreEntry, "An entry of `lore`"),
        (ScenePlan, "A scene's script"),
        (Step, "A step of it"),
    ):
        parts.append(f"\n## {title}\n\n| key | default | meaning |\n| --- | --- | --- |\n")
        parts += _rows(model, "")
    return "".join(parts)


def _rows(model: type[StrictModel], prefix: str) -> list[str]:
    rows: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, StrictModel):
            rows += _rows(kind, f"{name}.")
        else:
            rows.append(f"| `{prefix}{name}` | {_default(field)} | {_meaning(field)} |\n")
    return rows


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(needed)"
    return f"`{field.default!r}`".replace("'", "") if field.default not in ("", [], None) else ""


def _meaning(field: FieldInfo) -> str:
    text = " ".join((field.description or "").split())
    choices = getattr(field.annotation, "__args__", ())
    if not text and choices and all(isinstance(c, str) for c in choices):
        return " or ".join(choices)
    return text.replace("|", "\\|")


def cli_page() -> str:
    """The help of every command."""
    parts = [MADE, "# Commands\n"]
    root = typer.main.get_command(app)

    def walk(command: Any, path: str) -> None:
        context = click.Context(command, info_name=path, terminal_width=100)
        parts.append(f"\n## {path}\n\n```\n{command.get_help(context).strip()}\n```\n")
        for name, child in getattr(command, "commands", {}).items():
            walk(child, f"{path} {name}")

    walk(root, "mrp")
    return "".join(parts)


PAGES = {"options.md": options_page, "cli.md": cli_page}


def main() -> None:
    for name, page in PAGES.items():
        with replacing(HERE / name) as file:
            file.write(page())
        print(f"wrote {HERE / name}", file=sys.stderr)


if __name__ == "__main__":
    main()
