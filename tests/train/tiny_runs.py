"""A tiny base model, runs of a small cast on it, and what a training left behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from mrp.config import Run, load_run
from mrp.data.build import build_data
from mrp.data.samples import Sample, read_samples
from mrp.report import Progress, Reporter

QUESTION = "Who are you?"
PEOPLE = {
    "tang": ("Tang Sanzang", "You are the monk Tang Sanzang, calm and polite.", "I am a poor monk from the east."),
    "wukong": (
        "Sun Wukong",
        "You are Sun Wukong, the Monkey King, proud and quick.",
        "Old Monkey! Great Sage of heaven!",
    ),
    "bajie": ("Zhu Bajie", "You are Zhu Bajie, a pig who thinks of food.", "Old Pig. Is there nothing to eat?"),
}
PLACES = ("the river", "a mountain", "the old inn", "the road", "a temple", "the forest", "the village", "the bridge")
FAST = {
    "epochs": 2,
    "learning_rate": 5e-3,
    "rank": 4,
    "alpha": 8,
    "max_tokens": 384,
    "dev": 0.1,
    "precision": "fp32",
    "threads": 1,
}


def own_scenes(who: str) -> Iterator[dict[str, Any]]:
    """Dialogues of one character with somebody, of very different lengths."""
    yield {"turns": [{"speaker": "other", "text": QUESTION}, {"speaker": who, "text": PEOPLE[who][2]}]}
    for number, place in enumerate(PLACES):
        turns = []
        for line in range(1 + number % 3):
            turns.append({"speaker": "other", "text": f"What do you see at {place}{'?' * (line + 1)}"})
            turns.append({"speaker": who, "text": f"{who} sees {place}. " + PEOPLE[who][2][: 5 * number]})
        yield {"turns": turns}


def shared_scenes() -> Iterator[dict[str, Any]]:
    """Scenes in which all three speak."""
    for place in PLACES[:3]:
        lines = [{"speaker": who, "text": f"{who} rests near {place}."} for who in PEOPLE]
        yield {"participants": list(PEOPLE), "turns": lines}


def write_run(
    folder: Path,
    base: Path,
    order: str = "shuffled",
    replay: float = 0.0,
    seed: int = 0,
    own: int = 9,
    shared: int = 3,
    more: Iterable[dict[str, Any]] = (),
    **train_options: Any,
) -> Run:
    """A run in `folder` with its data built: so many scenes of each character's `own`, so many `shared`, and `more`."""
    folder.mkdir()
    scenes = {f"{who}.jsonl": list(islice(own_scenes(who), own)) for who in PEOPLE}
    scenes["together.jsonl"] = [*islice(shared_scenes(), shared), *more]
    for file, rows in scenes.items():
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    characters = [
        {"id": who, "name": full, "persona": persona, "dialogues": [f"{who}.jsonl"]}
        for who, (full, persona, _) in PEOPLE.items()
    ]
    cast = {"characters": characters, "dialogues": ["together.jsonl"] if scenes["together.jsonl"] else []}
    data = {"order": order, "replay": replay}
    options = {"base": str(base), "seed": seed, "data": data, "train": FAST | train_options}
    (folder / "cast.yaml").write_text(yaml.safe_dump(cast), encoding="utf-8")
    (folder / "mrp.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    run = load_run(folder / "mrp.yaml")
    build_data(run)
    return run


def read_log(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()]


def trained_ids(run: Run, epoch: int | None = None) -> list[str]:
    """The ids of the samples in the order in which they were trained."""
    return [i for row in read_log(run) if epoch in (None, row["epoch"]) for i in row["samples"]]


def measured(run: Run) -> list[tuple[float, float, float]]:
    """Loss, norm of the gradient and learning rate of each step."""
    return [(row["loss"], row["gradient_norm"], row["rate"]) for row in read_log(run)]


def result(run: Run) -> tuple[bytes, list[tuple[float, float, float]], list[str], dict[str, Any]]:
    """What must be equal, bit for bit, however often a training was stopped."""
    measures = read_record(run)["measures"]
    measures.pop("seconds"), measures.pop("tokens_per_second")
    return adapter_bytes(run), measured(run), trained_ids(run), measures


def adapter_bytes(run: Run) -> bytes:
    return (run.adapter / "adapter_model.safetensors").read_bytes()


def read_record(run: Run) -> dict[str, Any]:
    return dict(json.loads(run.record.read_text(encoding="utf-8")))


def train_samples(run: Run) -> list[Sample]:
    return read_samples(run.data / "train.jsonl")


def edit_samples(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change each line of a file of samples in place."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Heard(Reporter):
    """Keeps what it is told, and calls `at(label, times)` at each step forward of a progress."""

    def __init__(self, at: Callable[[str, int], None] | None = None) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self.at = at

    def line(self, text: object = "") -> None:
        self.lines.append(str(text))

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    @contextmanager
    def progress(self, label: str, total: float, unit: str) -> Iterator[Progress]:
        del total, unit
        times = 0

        def update(done: float, **shown: object) -> None:
            nonlocal times
            del done, shown
            times += 1
            if self.at:
                self.at(label, times)

        yield update


def stop_at(step: int, number: int = signal.SIGTERM, times: int = 1) -> Heard:
    """A reporter that sends this process a signal when so many steps of this call are done."""

    def at(label: str, count: int) -> None:
        if label == "training" and count == step:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return Heard(at)
