"""The table of an import: what became of every option of an XTuner config, row by row.

    to = Mapping(config, files)
    to.take("optim_wrapper.optimizer.lr", "train.learning_rate", 1e-3, float)      # taken as it is
    to.rows, to.options

A row is `same` (taken as it is), `mended` (ours differs on purpose, and why), `none` (no counterpart, and why) or
`unread` (it could not be read, so our default stays). `options.py` fills it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pydantic

from mrp.config import RunConfig
from mrp.xtuner.config import XtunerConfig
from mrp.xtuner.scope import Unread
from mrp.xtuner.statements import MISSING

Kind = Literal["same", "mended", "none", "unread"]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    option: str  # XTuner's
    value: Any
    kind: Kind
    ours: str = ""  # an option of the run file, or a command
    our_value: Any = None
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            **{"option": self.option, "value": shown(self.value), "kind": self.kind},
            **{"ours": self.ours, "our_value": self.our_value, "why": self.why},
        }


@dataclass
class Plan:
    """The run file that a config amounts to."""

    options: dict[str, Any] = field(default_factory=dict)  # by dotted key of the run file
    rows: list[Row] = field(default_factory=list)


def shown(value: Any) -> Any:
    """A value for the table: plain, and never longer than a line."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        text = ", ".join(f"{key}={shown(item)}" for key, item in value.items())
    elif isinstance(value, list | tuple):
        text = ", ".join(str(shown(item)) for item in value)
    else:
        text = " ".join(str(value).split())
    return text if len(text) <= 90 else f"{text[:87]}..."


def known_options() -> dict[str, Any]:
    """Every option of a run file by dotted key, with its default."""
    found: dict[str, Any] = {}
    for key, value in RunConfig().model_dump().items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            found[key] = value
    return found


class Mapping:
    """The table while it is made: which keys of the config were looked at, and what became of them."""

    def __init__(self, config: XtunerConfig, files: list[str]) -> None:
        self.config, self.files = config, files
        self.options: dict[str, Any] = {}
        self.rows: list[Row] = []
        self.seen: set[str] = set()
        self.known = known_options()

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the config, which counts as looked at; `Unread` where it could not be read."""
        self.seen.add(key)
        found = self.config.find(key, MISSING)
        return default if found is MISSING else found

    def has(self, key: str) -> bool:
        return self.config.find(key, MISSING) is not MISSING

    def row(self, kind: Kind, option: str, value: Any, ours: str = "", our_value: Any = None, why: str = "") -> None:
        self.rows.append(Row(option, value, kind, ours, our_value, why))

    def take(self, key: str, ours: str, default: Any, turn: Callable[[Any], Any] = lambda v: v, why: str = "") -> None:
        """`key` as our option `ours`: XTuner's `default` where the config is silent; `turn` gives our form of it."""
        value = self.get(key, default)
        if isinstance(value, Unread):
            self.unread(key, value, ours)
            return
        try:
            ours_value = turn(value)
        except (TypeError, ValueError):
            ours_value = None
        fault = "it is no value that can be taken" if ours_value is None else self.fault(ours, ours_value)
        if fault:
            default_value = self.known.get(ours)
            self.row("none", key, value, ours, default_value, f"{fault}; the default stays")
            return
        self.options[ours] = ours_value
        self.row("mended" if why else "same", key, value, ours, ours_value, why)

    def mend(self, option: str, value: Any, ours: str, our_value: Any, why: str) -> None:
        """Something that ours does otherwise on purpose."""
        if ours in self.known and not self.fault(ours, our_value):
            self.options[ours] = our_value
        self.row("mended", option, value, ours, our_value, why)

    def none(self, key: str, why: str) -> None:
        """`key`, if the config has it, has no counterpart."""
        if self.has(key):
            value = self.get(key)
            if isinstance(value, Unread):
                self.unread(key, value, "")
            else:
                self.row("none", key, value, why=why)

    def unread(self, key: str, value: Unread, ours: str) -> None:
        default = self.known.get(ours)
        stays = f"; the default stays: {ours}: {default}" if ours in self.known else ""
        self.row("unread", key, value, ours, default, f"{value.where}: {value.reason}{stays}")

    def fault(self, ours: str, value: Any) -> str:
        """Why the run file would not take this value; "" if it does."""
        if ours not in self.known:
            return "the run file has no such option in this version"
        section, _, name = ours.rpartition(".")
        try:
            RunConfig.model_validate({section: {name: value}} if section else {name: value})
        except pydantic.ValidationError as error:
            return str(error.errors(include_url=False)[0]["msg"]).partition("|")[0]
        return ""
