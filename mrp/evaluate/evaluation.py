"""`mrp eval`: all measures of a run, base + persona prompt beside the tuned model, kept in RUN/eval/.

    results = evaluate(Path("mrp.yaml"))            # results.json, report.md and report.html in RUN/eval/

What models answered and predicted is kept line by line (`kept.py`): a killed evaluation goes on, and a repeated one
only reckons. The same run, options and seed give the same bytes.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrp.data.identity import Language
from mrp.data.manifest import HELD_OUT, MANIFEST, TRAIN
from mrp.errors import InputError, nearest
from mrp.evaluate.counts import counts_for
from mrp.evaluate.identity import (
    Judge,
    Score,
    identity_difference,
    identity_figures,
    rows_of,
    score_identities,
    tokens_to_score,
)
from mrp.evaluate.kept import Kept
from mrp.evaluate.lines import Line, spread
from mrp.evaluate.material import Material, read_material, run_of
from mrp.evaluate.playing import Playing
from mrp.evaluate.retention import compare_on_replies, keep_base, render_replies, retention_figures
from mrp.evaluate.routing import router_part
from mrp.evaluate.voice import signature_rates, topic_leak, voice_figures
from mrp.files import folder_lock, read_json, sha256_file, write_json
from mrp.report import SILENT, Reporter

if TYPE_CHECKING:
    from mrp.dialogue import Scene
    from mrp.evaluate.sides import Side
    from mrp.render import ChatTemplate

FOLDER, RESULTS = "eval", "results.json"
PLAYED = ("voice", "questions", "lore", "drift", "scenes")  # the methods of `Playing`
PARTS = ("identity", *PLAYED, "retention", "router")
SAMPLES = 3  # of each character, shown side by side
VERSION = 1


def evaluate(
    path: Path,
    flags: dict[str, str] | None = None,
    *,
    full: bool = False,
    replies: int = 0,
    lines: int = 0,
    only: Sequence[str] = (),
    both_languages: bool = False,
    seed: int = 0,
    threads: int = 8,
    bits: str = "auto",
    command: str = "",
    kept: Path | None = None,
    report: Reporter = SILENT,
) -> dict[str, Any]:
    """Measure, write the report, and return the results. `kept`: the folder of what models answered, if it is shared.

    Raises `InputError` where there is no run, no trained model, no held-out line, or one character alone.
    """
    from mrp.evaluate.report import write_reports
    from mrp.models.load import set_threads

    if wrong := sorted(set(only) - set(PARTS)):
        raise InputError(f"no part of an evaluation is called {wrong[0]!r}", "--only", nearest(wrong[0], PARTS))
    run = run_of(path, flags or {})
    set_threads(run.config.train.threads)
    with folder_lock(run.folder):
        languages: list[Language] = ["en", "zh"] if both_languages else [run.cast.language]
        material = read_material(run, counts_for(run.cast, full, replies, lines), seed, languages)
        work = _Evaluation(material, flags or {}, threads, report, bits)
        results = work.measure([part for part in PARTS if not only or part in only], kept or run.folder / FOLDER)
        results["command"] = command
        folder = run.folder / FOLDER
        write_json(folder / RESULTS, results)
        work.write_said(folder, results)
        write_reports(folder, results)
    return results | {"folder": str(run.folder)}


class _Evaluation:
    """One evaluation at work."""

    def __init__(
        self, material: Material, flags: dict[str, str], threads: int, report: Reporter, bits: str = "auto"
    ) -> None:
        from mrp.evaluate.sides import sides

        self.material, self.threads, self.report = material, threads, report
        self.run, self.cast, self.counts, self.seed = material.run, material.cast, material.counts, material.seed
        self.sides = sides(material.run, flags, bits, threads)
        self.scores: dict[str, list[Score]] = {}
        self.played: dict[str, Playing] = {}
        self.plain: list[Scene] = []

    # -- the whole ------------------------------------------------------------------------------------------------

    def measure(self, parts: Sequence[str], folder: Path) -> dict[str, Any]:
        """All figures of `parts`; what models answer is kept in `folder`."""
        found: dict[str, Any] = {}
        self.plain = self._plain_scenes() if "retention" in parts else []
        with Kept(folder / "losses.jsonl") as losses, Kept(folder / "replies.jsonl") as replies:
            for side in self.sides:
                found[side.id] = self._judged(side, parts, losses)
            for side in self.sides:
                found[side.id] |= self._play(side, parts, replies)
        return self._results(parts, found)

    def write_said(self, folder: Path, results: dict[str, Any]) -> None:
        """What was said, for a judge (`mrp judge`)."""
        from mrp.evaluate.judge_material import said_of
        from mrp.judge.said import FILE, write_said

        if "voice" in results["parts"]:
            write_said(folder / FILE, said_of(self.material, self.played, results["sides"]))

    def _results(self, parts: Sequence[str], found: dict[str, Any]) -> dict[str, Any]:
        run = self.run
        differences: dict[str, Any] = {}
        if "identity" in parts:
            differences["identity"] = identity_difference(self.scores["tuned"], self.scores["base"], self.seed)
        return {
            "version": VERSION,
            "seed": self.seed,
            "parts": list(parts),
            "run": run.folder.name,
            "base": Path(run.config.base).name,
            "characters": [{"id": c.id, "name": c.name} for c in run.cast],
            "counts": asdict(self.counts) | self._counted(),
            "data": {name: sha256_file(run.data / name) for name in (TRAIN, HELD_OUT)}
            | {"fingerprint": read_json(run.data / MANIFEST)["fingerprint"]},
            "trained": read_json(run.record).get("fingerprint", "") if run.record.is_file() else "",
            "models": {side.id: side.name for side in self.sides},
            "versions": _versions(self.sides[0].on.precision),
            "ceiling": self._ceiling() if "voice" in parts else None,
            "router": router_part(run, self.seed) if "router" in parts else None,
            "sides": found,
            "difference": differences,
            "samples": self._samples() if "voice" in parts else [],
        }

    def _counted(self) -> dict[str, Any]:
        return {
            "train_lines": len(self.material.train),
            "held_out_lines": len(self.material.held),
            "held_out_scenes": len({line.scene for line in self.material.held}),
            "without_held_out": [who for who, own in self.material.held_by.items() if not own],
        }

    def _ceiling(self) -> dict[str, Any]:
        """What real held-out lines reach, what the question alone tells, and the words that mark each character."""
        voices, real = self.material.voices, self.material.real
        return {
            "voice": voice_figures(voices, real, self.seed),
            "topic": topic_leak(voices, self.material.held, self.seed),
            "signature": voices.signature,
            "signature_rates": signature_rates(voices, real),
        }

    def _samples(self) -> list[dict[str, Any]]:
        """The same held-out questions to both sides, with the real line."""
        shown = []
        lines = self.played["tuned"].own_lines
        for who in self.material.ids:
            for k in [k for k, line in enumerate(lines) if line.character == who and line.question][:SAMPLES]:
                shown.append(
                    {"character": who, "question": lines[k].question, "real": lines[k].text}
                    | {"source": lines[k].sample.source}
                    | {side: playing.own[k].text for side, playing in self.played.items()}
                )
        return shown

    # -- from replies ---------------------------------------------------------------------------------------------

    def _play(self, side: Side, parts: Sequence[str], kept: Kept) -> dict[str, Any]:
        """What the model says when it plays."""
        wanted = [part for part in parts if part in PLAYED]
        if not wanted:
            return {}
        with self.report.waiting(f"loading the {side.id} model"):
            player = side.player()
        self.played[side.id] = playing = Playing(self.material, side, player, kept, self.threads, self.report)
        found: dict[str, Any] = {}
        try:
            for part in wanted:
                found |= getattr(playing, part)()
        finally:
            player.engine.close()
        return found

    # -- from losses ----------------------------------------------------------------------------------------------

    def _judged(self, side: Side, parts: Sequence[str], kept: Kept) -> dict[str, Any]:
        """What the model itself predicts. It is loaded once for all of it."""
        from mrp.evaluate.sides import judging
        from mrp.models.load import load_tokenizer
        from mrp.render import ChatTemplate

        wanted = "identity" in parts or ("retention" in parts and side.id == "tuned")
        if not wanted:
            return {}
        template = ChatTemplate(load_tokenizer(side.folder), where=str(side.folder))
        found: dict[str, Any] = {}
        with judging(side) as judge:
            if "identity" in parts:
                chosen = self._scored_lines(judge, template)
                total = tokens_to_score(judge, template, chosen, self.cast, kept)
                with self.report.progress(f"lines under each identity, {side.id}", total, "tokens") as update:
                    scores = score_identities(judge, template, chosen, self.cast, kept, update)
                self.scores[side.id] = scores
                found["identity"] = identity_figures(scores, self.cast, self.seed) | {"lines": rows_of(scores)}
            if "retention" in parts and side.id == "tuned" and not self._apart:
                found["retention"] = self._retention(judge, template, kept)
        if "retention" in parts and side.id == "tuned" and self._apart:
            found["retention"] = self._retention_apart(template, kept)
        return found

    @property
    def _apart(self) -> bool:
        """Whether two models would have to be on the GPU at once, since no adapter tells them apart."""
        return self.sides[1].on.device == "cuda" and self.sides[1].adapter is None

    def _scored_lines(self, judge: Judge, template: ChatTemplate) -> list[Line]:
        """As many held-out lines of each character as the counts allow."""
        most, tokens = self.counts.lines, self.counts.line_tokens
        if tokens:
            some = [line for own in self.material.held_by.values() for line in spread(own, 8, self.seed)]
            each = tokens_to_score(judge, template, some, self.cast) / len(some)
            most = max(2, int(tokens / (each * len(self.material.ids))))
        return [line for own in self.material.held_by.values() for line in spread(own, most, self.seed)]

    def _plain_scenes(self) -> list[Scene]:
        """The base's own replies to everyday prompts that training never held; made with no other model loaded."""
        from mrp.data.own_replies import own_replies
        from mrp.data.plain import plain_prompts
        from mrp.models.bases import cache_folder

        prompts = plain_prompts(self.cast.language, "held_out")[: self.counts.plain]
        base, home = self.sides[0], cache_folder() / "own-replies"
        return own_replies(base.folder, prompts, home, self.report, self.counts.plain_tokens, bits=base.bits)

    def _retention_apart(self, template: ChatTemplate, kept: Kept) -> dict[str, Any] | None:
        """The same with one model in memory at a time."""
        from mrp.evaluate.sides import judging

        base_side, tuned_side = self.sides
        with tempfile.TemporaryDirectory(dir=self.run.folder) as name:
            with judging(base_side) as base:
                replies = render_replies(template, self.plain, base.max_tokens)
                keep_base(base, tuned_side.name, replies, kept, Path(name))
            with judging(tuned_side) as judge:
                sums = compare_on_replies(Path(name), judge, base_side.name, replies, kept)
        return retention_figures(sums, self.seed)

    def _retention(self, judge: Judge, template: ChatTemplate, kept: Kept) -> dict[str, Any] | None:
        """Loss and KL on the base's own replies."""
        from mrp.evaluate.sides import judging

        base_side = self.sides[0]
        replies = render_replies(template, self.plain, judge.max_tokens)
        done = itertools.count(1)
        with self.report.progress("what was forgotten", len(replies), "replies") as update:
            args = (judge, base_side.name, replies, kept, lambda: update(next(done)))
            if self.sides[1].adapter:  # the base is the tuned model without its adapter
                sums = compare_on_replies(None, *args)
            else:
                with judging(base_side) as base:
                    sums = compare_on_replies(base, *args)
        return retention_figures(sums, self.seed)


def _versions(precision: str) -> dict[str, str]:
    import sklearn  # type: ignore[import-untyped]

    from mrp.train.record import versions

    return {**{k: str(v) for k, v in versions().items()}, "scikit-learn": sklearn.__version__, "precision": precision}
