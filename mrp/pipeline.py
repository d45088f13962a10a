"""`mrp run`: pull, build, train, merge, a short evaluation, and `summary.json`.

    summary = run_all(load_run(Path("mrp.yaml")), report)

Each step is skipped when what it needs has not changed since it was done; a killed run goes on where it stopped.
"""

from __future__ import annotations

import itertools
import shlex
import time
from pathlib import Path
from typing import Any

from mrp.config import Run, keep_run
from mrp.errors import MrpError, Stopped
from mrp.files import fingerprint, folder_lock, read_json, write_json
from mrp.report import SILENT, Reporter, duration_text

STEPS = ("pull", "build", "train", "merge", "evaluate")
EVALUATION = "evaluation.json"
SUMMARY = "summary.json"
SECONDS = "seconds.json"  # of each step, from the last time that it was done


def run_all(run: Run, report: Reporter = SILENT, restart: bool = False) -> dict[str, Any]:
    """Do every step that is due, and write and return the summary. `restart` trains anew, whatever is there."""
    with folder_lock(run.folder):
        pipeline = _Pipeline(run, report, restart)
        for name in STEPS:
            pipeline.step(name)
        return pipeline.summary()


class _Pipeline:
    def __init__(self, run: Run, report: Reporter, restart: bool) -> None:
        self.run, self.report, self.restart = run, report, restart
        self.seconds: dict[str, float] = _read(run.folder / SECONDS)
        self.skipped: list[str] = []

    def step(self, name: str) -> None:
        """Do one step, the method of its name; that says whether there was something to do."""
        self.report.line(f"== {name}")
        began = time.monotonic()
        done = getattr(self, name)()
        took = round(time.monotonic() - began, 2)
        if not done:
            self.skipped.append(name)
            self.seconds.setdefault(name, took)
            return
        self.seconds[name] = took
        write_json(self.run.folder / SECONDS, self.seconds)
        self.report.line(f"   {duration_text(took)}")

    def pull(self) -> bool:
        from mrp.models.bases import find_base, is_missing
        from mrp.models.pull import pull

        name = self.run.config.base
        if is_missing(name, self.run.path.parent):
            pull(name, report=self.report)
            return True
        self.report.line(f"   {find_base(name, self.run.path.parent)} is here")
        return False

    def build(self) -> bool:
        from mrp.data.build import build_data, is_built

        fresh = not is_built(self.run)
        self.manifest = build_data(self.run, self.report)
        keep_run(self.run)
        self._router()
        if not fresh:
            self.report.line(f"   unchanged ({self.run.data})")
        return fresh

    def _router(self) -> None:
        """The classifier of `mrp route` and `mrp chat --as auto`; a run is whole without it."""
        from mrp.play.route import ensure_classifier

        try:
            ensure_classifier(self.run)
        except MrpError as error:
            self.report.line(f"   no classifier for the router: {error.what}")

    def train(self) -> bool:
        from mrp.plan.command import warn_if_too_large
        from mrp.train.checkpoint import checkpoint_folder
        from mrp.train.loop import train

        warn_if_too_large(self.run, self.report)
        before = self.run.record.stat().st_mtime_ns if self.run.record.is_file() else 0
        resume = not self.restart and checkpoint_folder(self.run.folder).is_dir()
        try:
            self.record = train(self.run, resume=resume, restart=self.restart, report=self.report)
        except Stopped as stopped:
            again = f"mrp run {shlex.quote(str(self.run.name_again))}"
            raise Stopped(stopped.what, stopped.where, again) from None
        return self.run.record.stat().st_mtime_ns != before

    def merge(self) -> bool:
        from mrp.models.merge import is_merged, merge_run
        from mrp.models.model_card import write_card

        if is_merged(self.run):
            write_card(self.run.merged, self.run.folder.name, self.run)  # the records may say more by now
            self.report.line(f"   unchanged ({self.run.merged})")
            return False
        merge_run(self.run, self.report)
        return True

    def evaluate(self) -> bool:
        """One reply of each character, base + persona prompt beside tuned; kept in evaluation.json."""
        from mrp.evaluate.replies import ask_everybody, tokens_asked
        from mrp.models.bases import find_base
        from mrp.play.open import load_player

        run = self.run
        path = run.folder / EVALUATION
        inputs = {"training": self.record["fingerprint"], "question": run.question, "seed": run.config.seed}
        key = fingerprint(inputs | {"chat": run.config.chat.model_dump()})
        kept = _read(path)
        if kept.get("fingerprint") == key:
            self.replies, self.tokens_asked = kept["replies"], kept.get("tokens", 0)
            self.report.line(f"   unchanged ({path})")
            return False
        answers, self.tokens_asked = {}, 0
        base = find_base(run.config.base, run.path.parent)
        done = itertools.count(1)
        with self.report.progress("asking everybody", 2 * len(run.cast.characters), "replies") as update:
            for when, folder in (("before", base), ("after", run.merged)):
                voices = run.voices if when == "after" else None
                precision = run.config.train.precision
                player = load_player(folder, None, run.cast, run.config.chat, precision, voices=voices)
                answers[when] = ask_everybody(player, run.question, run.config.seed, lambda: update(next(done)))
                self.tokens_asked += tokens_asked(player, run.question, answers[when])
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
        write_json(path, {"fingerprint": key, "replies": self.replies, "tokens": self.tokens_asked})
        return True

    def summary(self) -> dict[str, Any]:
        """Write summary.json and tell it."""
        run, measures = self.run, self.record["measures"]
        summary = {
            "replies": self.replies,
            "held_out_loss": measures["held_out_loss"],
            "seconds": {name: self.seconds[name] for name in STEPS},
            "tokens": {"train": measures["tokens"], "measure": measures["measured_tokens"], "ask": self.tokens_asked},
            "skipped": self.skipped,
            "training": {k: measures[k] for k in ("seconds", "tokens", "tokens_per_second", "steps", "chosen_epoch")},
            "paths": {
                name: str(path.resolve())
                for name, path in {
                    "run": run.folder,
                    "data": run.data,
                    "adapter": run.adapter,
                    **({"voices": run.voices} if run.voices.is_dir() else {}),
                    "merged": run.merged,
                    "record": run.record,
                    "summary": run.folder / SUMMARY,
                }.items()
            },
        }
        write_json(run.folder / SUMMARY, summary)
        self._tell(summary)
        return summary

    def _tell(self, summary: dict[str, Any]) -> None:
        from mrp.console import summary_lines

        for line in summary_lines(summary, self.run):
            self.report.result(line)


def _read(path: Path) -> dict[str, Any]:
    """What an earlier run left in `path`; nothing if that is not there, or broken."""
    try:
        return dict(read_json(path))
    except (MrpError, ValueError, TypeError):
        return {}
