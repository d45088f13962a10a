"""`mrp eval`: all measures of a run, base + persona prompt beside the tuned model, kept in RUN/eval/.

    results = evaluate(Path("mrp.yaml"))            # results.json, report.md and report.html in RUN/eval/

What models answered and predicted is kept line by line (`kept.py`): a killed evaluation goes on, and a repeated one
only reckons. The same run, options and seed give the same bytes. Routing and scenes have no measures here yet: they
would be two more methods of `_Evaluation`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mrp.config import KEPT_RUN_FILE, RUN_FILE, Run, load_run
from mrp.data.identity import Language
from mrp.data.manifest import HELD_OUT, MANIFEST, TRAIN
from mrp.errors import InputError, nearest
from mrp.evaluate.asking import Answer, Ask, answer_all, ask_line, ask_turns, to_answer
from mrp.evaluate.counts import Counts, counts_for
from mrp.evaluate.drift import drift_figures, hold_talks
from mrp.evaluate.generation import generation_figures
from mrp.evaluate.identity import Judge, Score, identity_difference, identity_figures, score_identities, tokens_to_score
from mrp.evaluate.identity import rows_of as identity_rows
from mrp.evaluate.intervals import equal_shares, estimate
from mrp.evaluate.kept import Kept
from mrp.evaluate.lines import Line, by_character, read_lines, spread
from mrp.evaluate.lore import lore_figures, lore_questions
from mrp.evaluate.questions import KINDS, check, probes
from mrp.evaluate.retention import compare_on_replies, render_replies, retention_figures
from mrp.evaluate.voice import Said, Voices, signature_rates, swapped_figures, topic_leak, voice_figures
from mrp.evaluate.voice import rows_of as voice_rows
from mrp.evaluate.words import words
from mrp.files import folder_lock, read_json, sha256_file, write_json
from mrp.report import SILENT, Progress, Reporter

FOLDER, RESULTS = "eval", "results.json"
PARTS = ("identity", "voice", "questions", "lore", "drift", "retention")
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
    run = _run_of(path, flags or {})
    set_threads(run.config.train.threads)
    with folder_lock(run.folder):
        work = _Evaluation(run, flags or {}, counts_for(run.cast, full, replies, lines), seed, threads, report)
        work.languages = ["en", "zh"] if both_languages else [run.cast.language]
        results = work.measure([part for part in PARTS if not only or part in only], kept or run.folder / FOLDER)
        results["command"] = command
        folder = run.folder / FOLDER
        write_json(folder / RESULTS, results)
        write_reports(folder, results)
    return results | {"folder": str(run.folder)}


def _run_of(path: Path, flags: dict[str, str]) -> Run:
    """The run at `path`; says what a model folder lacks."""
    is_run = path.is_file() or (path / KEPT_RUN_FILE).exists() or (path / RUN_FILE).exists()
    if path.is_dir() and not is_run and any(path.glob("*.safetensors")):
        what = "this is a model's folder, and an evaluation needs the held-out lines of its run"
        raise InputError(what, str(path), "name the run file, or the run folder (`mrp eval RUN`)")
    return load_run(path, flags)


class _Evaluation:
    """One evaluation at work: the lines it measures with, and a method for each part of a side."""

    languages: list[Language]

    def __init__(
        self, run: Run, flags: dict[str, str], counts: Counts, seed: int, threads: int, report: Reporter
    ) -> None:
        from mrp.evaluate.sides import sides

        self.run, self.cast, self.counts, self.seed = run, run.cast, counts, seed
        self.threads, self.report = threads, report
        self._check_cast_and_data()
        self.train = read_lines(run.data / TRAIN, run.cast)
        self.held = read_lines(run.data / HELD_OUT, run.cast)
        if not self.held:
            what = "no line of any character is held out, so there is nothing to measure with"
            fix = "set data.held_out: 0.1 (or add dialogues), then build and train anew: `mrp run RUN`"
            raise InputError(what, str(run.data / HELD_OUT), fix)
        self.sides = sides(run, flags)
        self.ids = [c.id for c in run.cast]
        self.held_by = by_character(self.held, run.cast)
        self.voices = Voices(self.train, run.cast, seed)
        self.real = [Said(line.character, line.text, line.scene) for line in self.held]
        self.answers: dict[str, dict[str, Any]] = {}
        self.scores: dict[str, list[Score]] = {}

    def _check_cast_and_data(self) -> None:
        run = self.run
        if len(run.cast.characters) < 2:
            what = "the cast has one character, and whom the model plays is told from somebody else"
            fix = "add a second character; the held-out loss of one stands in summary.json (`mrp run`)"
            raise InputError(what, str(run.cast_path), fix)
        if not (run.data / MANIFEST).is_file():
            raise InputError("no data is built here", str(run.data), f"mrp run {run.name_again}")
        if run.record.is_file():
            trained = read_json(run.record).get("data", {})
            for name in (TRAIN, HELD_OUT):
                if name in trained and trained[name] != sha256_file(run.data / name):
                    what = f"{name} is not what the model was trained with: lines held out now may have been trained"
                    raise InputError(what, str(run.data / name), f"mrp train {run.name_again} --restart")

    # -- the whole ------------------------------------------------------------------------------------------------

    def measure(self, parts: Sequence[str], folder: Path) -> dict[str, Any]:
        """All figures of `parts`; what models answer is kept in `folder`."""
        found: dict[str, Any] = {}
        with Kept(folder / "losses.jsonl") as losses, Kept(folder / "replies.jsonl") as replies:
            for side in self.sides:
                found[side.id] = self._judged(side, parts, losses)
            for side in self.sides:
                found[side.id] |= self._played(side, parts, replies)
        return self._results(parts, found)

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
            "sides": found,
            "difference": differences,
            "samples": self._samples() if "voice" in parts else [],
        }

    def _counted(self) -> dict[str, Any]:
        return {
            "train_lines": len(self.train),
            "held_out_lines": len(self.held),
            "held_out_scenes": len({line.scene for line in self.held}),
            "without_held_out": [who for who, own in self.held_by.items() if not own],
        }

    def _ceiling(self) -> dict[str, Any]:
        """What real held-out lines reach, what the question alone tells, and the words that mark each character."""
        return {
            "voice": voice_figures(self.voices, self.real, self.seed),
            "topic": topic_leak(self.voices, self.held, self.seed),
            "signature": self.voices.signature,
            "signature_rates": signature_rates(self.voices, self.real),
        }

    def _samples(self) -> list[dict[str, Any]]:
        """The same held-out questions to both sides, with the real line."""
        shown = []
        for who in self.ids:
            own = [k for k, ask in enumerate(self.answers["tuned"]["own_lines"]) if ask.character == who]
            for k in [k for k in own if self.answers["tuned"]["own_lines"][k].question][:SAMPLES]:
                line: Line = self.answers["tuned"]["own_lines"][k]
                shown.append(
                    {"character": who, "question": line.question, "real": line.text, "source": line.sample.source}
                    | {side: self.answers[side]["own"][k].text for side in ("base", "tuned")}
                )
        return shown

    # -- from losses ----------------------------------------------------------------------------------------------

    def _judged(self, side: Any, parts: Sequence[str], kept: Kept) -> dict[str, Any]:
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
                with self._progress(f"lines under each identity, {side.id}", total, "tokens") as update:
                    scores = score_identities(judge, template, chosen, self.cast, kept, update)
                self.scores[side.id] = scores
                found["identity"] = identity_figures(scores, self.cast, self.seed) | {"lines": identity_rows(scores)}
            if "retention" in parts and side.id == "tuned":
                found["retention"] = self._retention(judge, template, kept)
        return found

    def _scored_lines(self, judge: Judge, template: Any) -> list[Line]:
        """As many held-out lines of each character as the counts allow."""
        most, tokens = self.counts.lines, self.counts.line_tokens
        if tokens:
            some = [line for own in self.held_by.values() for line in spread(own, 8, self.seed)]
            each = tokens_to_score(judge, template, some, self.cast) / len(some)
            most = max(2, int(tokens / (each * len(self.ids))))
        return [line for own in self.held_by.values() for line in spread(own, most, self.seed)]

    def _retention(self, judge: Judge, template: Any, kept: Kept) -> dict[str, Any] | None:
        """Loss and KL on the base's own replies to everyday prompts that training never held."""
        from mrp.data.own_replies import own_replies
        from mrp.data.plain import plain_prompts
        from mrp.evaluate.sides import judging
        from mrp.models.bases import cache_folder

        prompts = plain_prompts(self.cast.language, "held_out")[: self.counts.plain]
        base_side = self.sides[0]
        home = cache_folder() / "own-replies"
        scenes = own_replies(base_side.folder, prompts, home, self.report, self.counts.plain_tokens)
        replies = render_replies(template, scenes, judge.max_tokens)
        done = itertools.count(1)
        with self._progress("what was forgotten", len(replies), "replies") as update:
            args = (judge, base_side.name, replies, kept, lambda: update(next(done)))
            if self.sides[1].adapter:  # the base is the tuned model without its adapter
                sums = compare_on_replies(None, *args)
            else:
                with judging(base_side) as base:
                    sums = compare_on_replies(base, *args)
        return retention_figures(sums, self.seed)

    # -- from replies ---------------------------------------------------------------------------------------------

    def _played(self, side: Any, parts: Sequence[str], kept: Kept) -> dict[str, Any]:
        """What the model says when it plays."""
        if not set(parts) & {"voice", "questions", "lore", "drift"}:
            return {}
        with self.report.waiting(f"loading the {side.id} model"):
            player = side.player()
        self.answers[side.id] = {}
        found: dict[str, Any] = {}
        try:
            for part in ("voice", "questions", "lore", "drift"):
                if part in parts:
                    found |= getattr(self, f"_{part}")(side, player, kept)
        finally:
            player.engine.close()
        return found

    def _answer(self, side: Any, player: Any, kept: Kept, asks: Sequence[Ask], label: str) -> list[Answer]:
        done, total = itertools.count(1), to_answer(player, side.name, asks, kept)
        with self._progress(f"{label}, {side.id}", total, "replies") as update:
            return answer_all(player, side.name, asks, kept, self.threads, lambda: update(next(done)))

    def _voice(self, side: Any, player: Any, kept: Kept) -> dict[str, Any]:
        """Replies in the place of held-out lines: under the own identity, and told to be another."""
        lines = [line for own in self.held_by.values() for line in _repeated(own, self.counts.replies, self.seed)]
        asks = [ask_line(player, line, line.character, self.seed, number) for number, line in enumerate(lines)]
        own = self._answer(side, player, kept, asks, "replies")
        self.answers[side.id] |= {"own": own, "own_lines": lines}
        said = [Said(ask.character, answer.text, ask.unit) for ask, answer in zip(asks, own, strict=True)]
        scenes = [line for line in self.held if line.question]
        told = self._swaps(scenes)
        swapped_asks = [ask_line(player, line, who, self.seed) for line, who in told]
        swapped = self._answer(side, player, kept, swapped_asks, "told to be another")
        pretended = [Said(a.character, reply.text, a.unit) for a, reply in zip(swapped_asks, swapped, strict=True)]
        real_words = {
            who: sum(len(words(line.text)) for line in mine) / len(mine)
            for who, mine in by_character(self.train, self.cast).items()
            if mine
        }
        characters, units = [one.character for one in said], [one.unit for one in said]
        return {
            "voice": voice_figures(self.voices, said, self.seed, self.real)
            | {"replies": voice_rows(self.voices, said)},
            "signature_rates": signature_rates(self.voices, said),
            "swapped": swapped_figures(self.voices, pretended, [line.character for line, _ in told], self.seed)
            | {"replies": voice_rows(self.voices, pretended)},
            "generation": generation_figures(own, characters, units, real_words, self.seed),
        }

    def _swaps(self, scenes: Sequence[Line]) -> list[tuple[Line, str]]:
        """For each character the same number of scenes of others, in which it shall speak."""
        told = []
        for who in self.ids:
            others = [line for line in scenes if line.character != who]
            told += [(line, who) for line in spread(others, self.counts.swapped, self.seed)]
        return told

    def _questions(self, side: Any, player: Any, kept: Kept) -> dict[str, Any]:
        asked = [p for who in self.ids for p in probes(self.cast, who, self.languages, self.counts.questions)]
        from mrp.cast import OTHER
        from mrp.dialogue import Turn

        asks = [
            ask_turns(player, p.character, [Turn(OTHER, p.question)], f"{p.character} {p.question}", self.seed)
            for p in asked
        ]
        answers = self._answer(side, player, kept, asks, "who they are")
        checked = [check(self.cast, p, a.text) for p, a in zip(asked, answers, strict=True)]
        units = [ask.unit for ask in asks]

        def rate(values: Sequence[float], chosen: Sequence[int]) -> dict[str, Any] | None:
            shares = equal_shares([asked[k].character for k in chosen])
            figure = estimate([values[k] for k in chosen], [units[k] for k in chosen], self.seed, shares, is_rate=True)
            return figure.as_json() if figure else None

        passed, claims = [float(c.passed) for c in checked], [float(bool(c.claims)) for c in checked]
        disclaims = [float(c.disclaims) for c in checked]
        everything = range(len(asked))
        return {
            "questions": {
                "all": {
                    "passed": rate(passed, everything),
                    "claims_another": rate(claims, everything),
                    "disclaims": rate(disclaims, everything),
                },
                "kinds": {
                    kind: rate(passed, ks) for kind in KINDS if (ks := [k for k in everything if asked[k].kind == kind])
                },
                "characters": {
                    who: {"passed": rate(passed, ks), "claims_another": rate(claims, ks)}
                    for who in self.ids
                    if (ks := [k for k in everything if asked[k].character == who])
                },
                "answers": [
                    {"character": p.character, "kind": p.kind, "question": p.question, "answer": a.text}
                    | {"passed": c.passed, "claims": c.claims}
                    for p, a, c in zip(asked, answers, checked, strict=True)
                ],
            }
        }

    def _lore(self, side: Any, player: Any, kept: Kept) -> dict[str, Any]:
        from mrp.cast import OTHER
        from mrp.dialogue import Turn

        questions = lore_questions(self.cast)
        asks = [ask_turns(player, q.character, [Turn(OTHER, q.question)], q.question, self.seed) for q in questions]
        answers = self._answer(side, player, kept, asks, "lore") if asks else []
        return {"lore": lore_figures(questions, [a.text for a in answers], self.seed)}

    def _drift(self, side: Any, player: Any, kept: Kept) -> dict[str, Any]:
        asked = [line for line in spread(self.held, len(self.held), self.seed) if line.question]
        asked += [line for line in spread(self.train, 3 * self.counts.drift_turns, self.seed) if line.question]
        questions = list(dict.fromkeys(line.question for line in asked))[: self.counts.drift_turns]
        if not questions:
            return {"drift": None}
        characters, turns = self.ids[: self.counts.drift_characters], self.counts.drift_turns
        done = itertools.count(1)
        with self._progress(f"{turns} turns, {side.id}", len(characters) * (turns + 1), "replies") as update:

            def answer(asks: Sequence[Ask]) -> list[Answer]:
                return answer_all(player, side.name, asks, kept, self.threads, lambda: update(next(done)))

            talks = hold_talks(player, characters, questions, turns, self.seed, answer)
        return {"drift": drift_figures(talks, self.voices, self.cast, self.seed)}

    def _progress(self, label: str, total: float, unit: str) -> AbstractContextManager[Progress]:
        return self.report.progress(label, total, unit)


def _repeated(lines: Sequence[Line], count: int, seed: int) -> list[Line]:
    """`count` places to answer: each line once, then all again (with other seeds) as often as it takes."""
    ordered = spread(lines, len(lines), seed)
    return [ordered[k % len(ordered)] for k in range(count)] if ordered else []


def _versions(precision: str) -> dict[str, str]:
    import sklearn  # type: ignore[import-untyped]

    from mrp.train.record import versions

    return {**{k: str(v) for k, v in versions().items()}, "scikit-learn": sklearn.__version__, "precision": precision}
