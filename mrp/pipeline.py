"""`mrp run`: pull, build, train, merge, a short evaluation, and `summary.json`.

    summary = run_all(load_run(Path("mrp.yaml")), report)

Each step is skipped when what it needs has not changed since it was done; a killed run goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mrp.config import Run, keep_run
from mrp.errors import InputError
from mrp.files import fingerprint, folder_lock, read_json, write_json
from mrp.report import SILENT, Reporter, duration_text

EVALUATION = "evaluation.json"
SUMMARY = "summary.json"


def run_all(run: Run, report: Reporter = SILENT) -> dict[str, Any]:
    """Do every step that is due, and write and return the summary."""
    with folder_lock(run.folder):
        pipeline = _Pipeline(run, report)
        pipeline.step("pull", pipeline.pull)
        pipeline.step("build", pipeline.build)
        pipeline.step("train", pipeline.train)
        pipeline.step("merge", pipeline.merge)
        pipeline.step("evaluate", pipeline.evaluate)
        return pipeline.summary()


class _Pipeline:
    def __init__(self, run: Run, report: Reporter) -> None:
        self.run, self.report = run, report
        self.seconds: dict[str, float] = {}
        self.skipped: list[str] = []

    def step(self, name: str, work: Callable[[], bool]) -> None:
        """Do one step; `work` says whether there was something to do."""
        self.report.line(f"== {name}")
        began = time.monotonic()
        done = work()
        self.seconds[name] = round(time.monotonic() - began, 2)
        if done:
            self.report.line(f"   {duration_text(self.seconds[name])}")
        else:
            self.skipped.append(name)

    def pull(self) -> bool:
        from mrp.models.bases import KNOWN_BASES, find_base, is_pulled
        from mrp.models.pull import pull

        name = self.run.config.base
        is_folder = (self.run.path.parent / name).is_dir()
        if not is_folder and name in KNOWN_BASES and not is_pulled(KNOWN_BASES[name]):
            pull(name, report=self.report)
            return True
        self.report.line(f"   {find_base(name, self.run.path.parent)} is here")
        return False

    def build(self) -> bool:
        from mrp.data.build import build_data, is_built

        fresh = not is_built(self.run)
        self.manifest = build_data(self.run, self.report)
        keep_run(self.run)
        if not fresh:
            self.report.line(f"   unchanged ({self.run.data})")
        return fresh

    def train(self) -> bool:
        from mrp.train.loop import train

        before = self.run.record.stat().st_mtime_ns if self.run.record.is_file() else 0
        self.record = train(self.run, resume=True, report=self.report)
        return self.run.record.stat().st_mtime_ns != before

    def merge(self) -> bool:
        from mrp.models.merge import is_merged, merge_run

        if is_merged(self.run):
            self.report.line(f"   unchanged ({self.run.merged})")
            return False
        merge_run(self.run, self.report)
        return True

    def evaluate(self) -> bool:
        """One reply of each character, base + persona prompt beside tuned; kept in evaluation.json."""
        from mrp.evaluate.replies import ask_everybody
        from mrp.models.bases import find_base
        from mrp.play.open import load_player

        run = self.run
        path = run.folder / EVALUATION
        inputs = {"training": self.record["fingerprint"], "question": run.question, "seed": run.config.seed}
        key = fingerprint(inputs | {"chat": run.config.chat.model_dump()})
        if path.is_file() and read_json(path).get("fingerprint") == key:
            self.replies = read_json(path)["replies"]
            self.report.line(f"   unchanged ({path})")
            return False
        answers = {}
        base = find_base(run.config.base, run.path.parent)
        for when, folder in (("before", base), ("after", run.merged)):
            player = load_player(folder, None, run.cast, run.config.chat, run.config.train.precision)
            answers[when] = ask_everybody(player, run.question, run.config.seed)
            del player
        self.replies = [
            {
                "character": c.id,
                "question": run.question,
                "before": answers["before"][c.id],
                "after": answers["after"][c.id],
            }
            for c in run.cast
        ]
        write_json(path, {"fingerprint": key, "replies": self.replies})
        return True

    def summary(self) -> dict[str, Any]:
        """Write summary.json and tell it."""
        run, measures = self.run, self.record["measures"]
        summary = {
            "replies": self.replies,
            "held_out_loss": measures["held_out_loss"],
            "seconds": self.seconds,
            "skipped": self.skipped,
            "training": {k: measures[k] for k in ("seconds", "tokens", "tokens_per_second", "steps", "chosen_epoch")},
            "paths": {
                "run": str(run.folder),
                "data": str(run.data),
                "adapter": str(run.adapter),
                "merged": str(run.merged),
                "record": str(run.record),
                "summary": str(run.folder / SUMMARY),
            },
        }
        write_json(run.folder / SUMMARY, summary)
        self._tell(summary)
        return summary

    def _tell(self, summary: dict[str, Any]) -> None:
        from mrp.console import summary_lines

        for line in summary_lines(summary, self.run):
            self.report.line(line)


def last_summary(run: Run) -> dict[str, Any]:
    """The summary that the last `mrp run` left."""
    path = run.folder / SUMMARY
    if not path.is_file():
        raise InputError("no finished run here", str(path), f"mrp run {run.path}")
    return dict(read_json(path))
