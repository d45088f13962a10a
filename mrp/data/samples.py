"""A sample: one scene as one character sees it. The lines of `train.jsonl` and `held-out.jsonl`.

    {"id":"...","character":"wukong","scene":"...","participants":["wukong","other"],
     "turns":[{"speaker":"other","text":"Who are you?","loss":false},{"speaker":"wukong","text":"Ha!","loss":true}],
     "source":"wukong.jsonl:1"}

Speakers are ids of the cast, names of others, or "other". Somebody who comes in later has a turn {"enter": NAME}.
Roles and token ids are made from it when they are needed (`data/view.py`, `render.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrp.cast import Cast
from mrp.dialogue import Turn, read_json_lines
from mrp.errors import InputError, MrpError, raise_all

FIELDS = {"id", "character", "scene", "participants", "turns", "source"}
OPTIONAL = {"scenario"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One scene from `character`'s side; `loss[i]` says whether training learns turn i (one of its own lines)."""

    id: str
    character: str
    scene: str
    participants: tuple[str, ...]
    turns: tuple[Turn, ...]
    loss: tuple[bool, ...]
    source: str
    scenario: str = ""

    def as_json(self) -> dict[str, Any]:
        turns = [
            {"enter": turn.speaker} if turn.enters else {"speaker": turn.speaker, "text": turn.text, "loss": loss}
            for turn, loss in zip(self.turns, self.loss, strict=True)
        ]
        row: dict[str, Any] = {"id": self.id, "character": self.character, "scene": self.scene}
        row |= {"participants": list(self.participants), "turns": turns, "source": self.source}
        if self.scenario:
            row["scenario"] = self.scenario
        return row


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file that `mrp data build` wrote; raises `InputError` for lines that are none."""
    samples: list[Sample] = []
    faults: list[MrpError] = []
    for line in read_json_lines(path):
        where = f"{path}:{line.number}"
        try:
            if line.fault:
                raise ValueError(line.fault)
            samples.append(_sample(line.value))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            faults.append(InputError(f"not a sample: {error!r}", where, "build the data anew: `mrp data build RUN`"))
    raise_all(path.name, faults)
    return samples


def _sample(row: dict[str, Any]) -> Sample:
    unknown = set(row) - FIELDS - OPTIONAL
    if unknown:
        raise ValueError(f"unknown keys {sorted(unknown)}")
    turns = tuple(
        Turn(t["enter"], enters=True) if "enter" in t else Turn(t["speaker"], t["text"]) for t in row["turns"]
    )
    loss = tuple(bool(t.get("loss", False)) for t in row["turns"])
    participants = tuple(row["participants"])
    return Sample(
        row["id"], row["character"], row["scene"], participants, turns, loss, row["source"], row.get("scenario", "")
    )


def in_order(samples: Iterable[Sample], order: str, seed: int, epoch: int) -> list[Sample]:
    """The order in which an epoch trains samples; epoch 0 of it is the order of `train.jsonl`.

    sequential: as given. shuffled: by a hash of (seed, epoch, id), so the same on every machine and for every
    library version, and new in each epoch.
    """
    rows = list(samples)
    if order == "sequential":
        return rows
    return sorted(rows, key=lambda s: hashlib.sha256(f"{seed}:{epoch}:{s.id}".encode()).digest())


def natural_order(samples: Iterable[Sample], cast: Cast) -> list[Sample]:
    """Character after character, each with its files and lines as the cast and its files are written."""
    characters = {c.id: k for k, c in enumerate(cast)}
    files: dict[str, int] = {}
    for name in [*(f for c in cast for f in c.dialogues), *cast.dialogues]:
        files.setdefault(name, len(files))

    def place(sample: Sample) -> tuple[int, int, int, int]:
        file, _, at = sample.source.rpartition(":")
        line, _, number = at.partition("#")  # LINE, or LINE#NUMBER for one of several on a line
        return characters[sample.character], files.get(file, len(files)), int(line), int(number or 1)

    return sorted(samples, key=place)
