"""A sample: one scene as one character sees it. The lines of `train.jsonl` and `held-out.jsonl`.

    {"id":"...","character":"wukong","scene":"...","participants":["wukong","other"],
     "turns":[{"speaker":"other","text":"Who are you?","loss":false},{"speaker":"wukong","text":"Ha!","loss":true}],
     "source":"wukong.jsonl:1"}

Speakers are ids of the cast, names of others, or "other". Somebody who comes in later has a turn {"enter": NAME}.
Roles and token ids are made from it when they are needed (`data/view.py`, `render.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrp.config import Run
from mrp.data.order import mixed, permutation
from mrp.data.sources import dialogue_files
from mrp.dialogue import Scene, Turn, read_json_lines
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
        scene = Scene("", self.participants, (), self.scenario, self.source)
        return sample_row(self.id, self.character, self.scene, scene, self.turns, self.loss)


def sample_row(
    sample_id: str, character: str, scene_id: str, scene: Scene, turns: Sequence[Turn], loss: Sequence[bool]
) -> dict[str, Any]:
    """A sample as it is written: what `turns` of a scene show to `character`, and which of them are learnt."""
    rows = [
        {"speaker": turn.speaker, "text": turn.text, "loss": learnt} if turn.is_line else turn.row()
        for turn, learnt in zip(turns, loss, strict=True)
    ]
    row: dict[str, Any] = {"id": sample_id, "character": character, "scene": scene_id}
    row |= {"participants": scene.participants, "turns": rows, "source": scene.source}
    if scene.scenario:
        row["scenario"] = scene.scenario
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


def _turn(row: dict[str, Any]) -> Turn:
    if "enter" in row:
        return Turn(row["enter"], enters=True)
    return Turn(row["leave"], leaves=True) if "leave" in row else Turn(row["speaker"], row["text"])


def _sample(row: dict[str, Any]) -> Sample:
    unknown = set(row) - FIELDS - OPTIONAL
    if unknown:
        raise ValueError(f"unknown keys {sorted(unknown)}")
    turns = tuple(_turn(t) for t in row["turns"])
    loss = tuple(bool(t.get("loss", False)) for t in row["turns"])
    participants = tuple(row["participants"])
    return Sample(
        row["id"], row["character"], row["scene"], participants, turns, loss, row["source"], row.get("scenario", "")
    )


def order_key(seed: int, epoch: int, sample_id: str) -> int:
    """64 bits by which a sample finds its place in an epoch. A copy (ID#2) has a key made of its sample's."""
    base, mark, copy = sample_id.rpartition("#")
    if mark and "@" in base and copy.isdecimal():
        return int(mixed(order_key(seed, epoch, base), int(copy)))
    return int.from_bytes(hashlib.sha256(f"{seed}:{epoch}:{sample_id}".encode()).digest()[:8], "big")


def in_order(samples: Iterable[Sample], run: Run, epoch: int) -> list[Sample]:
    """The order in which an epoch of the run trains samples; epoch 0 of it is the order of `train.jsonl`.

    `samples` come in any order. One that is seen again in an epoch (`order.permutation`, blocked) is in the result
    more than once.
    """
    options, seed = run.config.data, run.config.seed
    rows = natural_order(samples, run)
    places = {c.id: k for k, c in enumerate(run.cast)}
    character = np.array([places.get(s.character, len(places)) for s in rows], np.int64)
    key = np.array([order_key(seed, epoch, s.id) for s in rows], np.uint64)
    return [rows[number] for number in permutation(options.order, character, key, options.replay)]


def natural_order(samples: Iterable[Sample], run: Run) -> list[Sample]:
    """Each sample once, character after character, each with its files and lines as the cast and its files are
    written, then what mrp made itself, then copies; after all characters the plain replies, which are nobody's.
    """
    characters = {c.id: k for k, c in enumerate(run.cast)}
    files: dict[str, int] = {}
    for file in dialogue_files(run):
        files.setdefault(file.name, len(files))

    def place(sample: Sample) -> tuple[int, int, int, int, int, str]:
        file, _, at = sample.source.rpartition(":")
        line, _, number = at.partition("#")  # LINE, or LINE#NUMBER for one of several on a line
        copy = sample.id[len(f"{sample.scene}@{sample.character}#") :]
        where = files.get(file, len(files)), int(line), int(number or 0)
        return characters.get(sample.character, len(characters)), int(copy or 1), *where, sample.id

    return sorted({sample.id: sample for sample in samples}.values(), key=place)
