"""`mrp benchmark`: what base and tuned model say in the places of a benchmark, and what no judge is needed for.

    benchmark_command(Path("mrp.yaml"), ["rolebench=PATH"], {}, report)

Results lie in RUN/benchmarks/NAME/: results.json, report.html, report.md; said.json for `mrp judge --benchmark NAME`;
and for each side the file that the benchmark's own scorer reads.
"""

from __future__ import annotations

import hashlib
import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrp.errors import InputError, Stopped, nearest
from mrp.evaluate.asking import Answer, answer_all, to_answer
from mrp.evaluate.benchmark_cast import Players, ask_item, cast_of, player_of
from mrp.evaluate.benchmark_files import HOMES, Benchmark, Item, read_benchmark
from mrp.evaluate.benchmark_rouge import rouge_l
from mrp.evaluate.intervals import difference, equal_shares, estimate
from mrp.evaluate.kept import Kept
from mrp.evaluate.material import run_of
from mrp.files import folder_lock, sha256_file, write_json
from mrp.judge.said import FILE, KEPT_TURNS, Person, Place, Said, write_said
from mrp.report import Reporter

if TYPE_CHECKING:
    from mrp.evaluate.sides import Side
    from mrp.play.reply import Player

FOLDER = "benchmarks"
SHOWN = 6  # places, side by side in the report
ITEMS_A_SCENE = 10  # of CoSER: for so many places one scene is played whole as well


@dataclass(frozen=True)
class BenchmarkFlags:
    """The options of the command; 0 items: all."""

    items: int = 40
    seed: int = 0
    threads: int = 8


def benchmark_command(
    path: Path, named: Sequence[str], settings: dict[str, str], flags: BenchmarkFlags, report: Reporter
) -> dict[str, Any]:
    """Play the benchmarks NAME=PATH; returns the results of each by its name."""
    given = _given(named)
    run = run_of(path, settings)
    benchmarks = {name: read_benchmark(name, place) for name, place in given.items()}
    command = shlex.join(["mrp", "benchmark", str(path), *named])
    found: dict[str, Any] = {}
    try:
        with folder_lock(run.folder):
            for name, benchmark in benchmarks.items():
                work = _Playing(benchmark, given[name], run, settings, flags, report)
                found[name] = work.play(run.folder / FOLDER / name, command)
    except KeyboardInterrupt:
        raise Stopped("the benchmark was stopped; what was answered is kept", str(path), command) from None
    return found


def _given(named: Sequence[str]) -> dict[str, Path]:
    if not named:
        raise InputError("no benchmark is named", "NAME=PATH", f"for example coser=PATH; {nearest('', HOMES)}")
    found: dict[str, Path] = {}
    for one in named:
        name, mark, place = one.partition("=")
        if not mark or not place:
            raise InputError(f"{one!r} does not name a benchmark and its files", "NAME=PATH", nearest(name, HOMES))
        if name in found:
            raise InputError(f"{name} is named twice", one, "play one after the other")
        found[name] = Path(place)
    return found


def some_items(benchmark: Benchmark, count: int, seed: int) -> list[Item]:
    """At most `count` items (0: all), of as many groups as can be: one of each, then a second."""
    ordered = sorted(benchmark.items, key=lambda item: hashlib.sha256(f"{seed}:{item.id}".encode()).digest())
    if not count:
        return list(benchmark.items)
    rounds: dict[str, int] = {}
    ranked = []
    for place, item in enumerate(ordered):
        group = benchmark.people[item.person].group
        rounds[group] = turn = rounds.get(group, -1) + 1
        ranked.append((turn, place, item))
    return [item for _, _, item in sorted(ranked, key=lambda entry: entry[:2])][:count]


class _Playing:
    """One benchmark played by both sides."""

    def __init__(
        self,
        benchmark: Benchmark,
        place: Path,
        run: Any,
        settings: dict[str, str],
        flags: BenchmarkFlags,
        report: Reporter,
    ) -> None:
        from mrp.evaluate.sides import sides
        from mrp.models.load import set_threads

        set_threads(run.config.train.threads)
        self.benchmark, self.place, self.run, self.flags, self.report = benchmark, place, run, flags, report
        self.players: Players = cast_of(benchmark, run.cast, str(place))
        self.sides = sides(run, settings)
        self.items = some_items(benchmark, flags.items, flags.seed)
        self.answers: dict[str, list[Answer]] = {}
        self.too_long: list[str] = []

    def play(self, folder: Path, command: str) -> dict[str, Any]:
        """Ask both sides, write all files of the benchmark, and return the results."""
        from mrp.evaluate.benchmark_report import benchmark_findings, write_benchmark_report

        name = self.benchmark.name
        with Kept(folder / "replies.jsonl") as kept:
            for side in self.sides:
                with self.report.waiting(f"loading the {side.id} model"):
                    player = player_of(side.player(), self.players)
                try:
                    self._play(side, player, kept, folder)
                finally:
                    player.engine.close()
        write_said(folder / FILE, self._said())
        results = self._results() | {"command": command}
        write_json(folder / "results.json", results)
        write_benchmark_report(folder, results)
        for text in benchmark_findings(results):
            self.report.result(f"- {text}")
        self.report.line(f"report   {folder / 'report.html'}")
        self.report.line(
            f"for a judge: mrp judge {shlex.quote(str(self.run.path))} --benchmark {name} --base-url URL ..."
        )
        return results | {"folder": str(folder)}

    def _play(self, side: Side, player: Player, kept: Kept, folder: Path) -> None:
        if not self.answers:
            self._leave_out_too_long(player)
        asks = [ask_item(self.players, item, self.flags.seed) for item in self.items]
        done, total = itertools.count(1), to_answer(player, side.name, asks, kept)
        label = f"{self.benchmark.name}, {side.id}"
        with self.report.progress(label, total, "replies") as update:
            told = answer_all(player, side.name, asks, kept, self.flags.threads, lambda: update(next(done)))
        self.answers[side.id] = told
        self._write_own(side, player, kept, folder / side.id)

    def _leave_out_too_long(self, player: Player) -> None:
        """Both sides have one tokenizer and one context: what one cannot read, the other cannot."""
        budget = player.options.context_tokens - player.options.max_new_tokens
        fitting = []
        for item in self.items:
            ask = ask_item(self.players, item, self.flags.seed)
            try:
                player.template.prompt_within(ask.messages, budget, ask.opening)
                fitting.append(item)
            except InputError:
                self.too_long.append(item.id)
        if not fitting:
            what = f"no place of {self.benchmark.name} fits a context of {player.options.context_tokens} tokens"
            raise InputError(what, str(self.place), "raise it: --set chat.context_tokens=4096")
        self.items = fitting

    def _write_own(self, side: Side, player: Player, kept: Kept, folder: Path) -> None:
        """What the benchmark's own scorer reads."""
        from mrp.evaluate import benchmark_charactereval, benchmark_rolebench
        from mrp.evaluate.benchmark_simulation import simulate, turns_to_play, write_simulation

        said = {item.id: answer.text for item, answer in zip(self.items, self.answers[side.id], strict=True)}
        if self.benchmark.name == benchmark_charactereval.NAME:
            benchmark_charactereval.write(folder, self.benchmark, said)
        elif self.benchmark.name == benchmark_rolebench.NAME:
            benchmark_rolebench.write(folder, self.benchmark, said)
        else:
            scenes = list(dict.fromkeys(item.unit for item in self.items))
            if self.flags.items:
                scenes = scenes[: max(1, self.flags.items // ITEMS_A_SCENE)]
            done = itertools.count(1)
            total = turns_to_play(self.benchmark, scenes)
            with self.report.progress(f"{self.benchmark.name}, whole scenes, {side.id}", total, "replies") as update:
                played = simulate(
                    *(player, side.name, self.players, self.benchmark, scenes, kept),
                    *(self.flags.threads, self.flags.seed, lambda: update(next(done))),
                )
            write_simulation(folder, self.benchmark, played)

    # -- figures -------------------------------------------------------------------------------------------------------

    def _said(self) -> Said:
        people = {role: Person(one.name, one.persona) for role, one in self.benchmark.people.items()}
        asked = {item.person for item in self.items}
        cast = self.players.cast
        places = []
        for k, item in enumerate(self.items):
            before = tuple((cast.display_name(t.speaker), t.text) for t in item.turns[-KEPT_TURNS:])
            replies = {side: answers[k].text for side, answers in self.answers.items()}
            real = item.references[0] if item.references else ""
            places.append(Place(item.id, item.unit, item.person, item.scenario, before, real, replies))
        models = {side.id: side.name for side in self.sides}
        shown = {role: person for role, person in people.items() if role in asked}
        title = f"{self.benchmark.name} played by {self.run.folder.name}"
        return Said(self.benchmark.language, shown, tuple(places), models, title)

    def _results(self) -> dict[str, Any]:
        return {
            "version": 1,
            "benchmark": self.benchmark.name,
            "run": self.run.folder.name,
            "seed": self.flags.seed,
            "models": {side.id: side.name for side in self.sides},
            "path": self.place.name,
            "files": {file.name: sha256_file(file) for file in self.benchmark.files},
            "items": len(self.items),
            "of": len(self.benchmark.items),
            "too_long": len(self.too_long),
            "roles": len(set(self._names())),
            "own_roles": sorted({name for name in self._names() if name in self.players.own}),
            "sides": {side: self._figures(answers) for side, answers in self.answers.items()},
            "difference": self._difference(),
            "samples": self._samples(),
        }

    def _names(self) -> list[str]:
        """Of those who were asked."""
        return list({item.person: self.benchmark.people[item.person].name for item in self.items}.values())

    def _samples(self) -> list[dict[str, Any]]:
        """The same places, both sides, and what the benchmark has there."""
        shown: list[dict[str, Any]] = []
        for k, item in enumerate(self.items[:SHOWN]):
            said = {side: answers[k].text for side, answers in self.answers.items()}
            real = item.references[0] if item.references else None
            question = item.turns[-1].text if item.turns else ""
            name = self.benchmark.people[item.person].name
            shown.append({"role": name, "question": question, "real": real, **said})
        return shown

    def _groups(self) -> list[str]:
        return [self.benchmark.people[item.person].group for item in self.items]

    def _rouge(self, answers: Sequence[Answer]) -> list[tuple[int, float]]:
        """(number of the item, ROUGE-L against the nearest reference) of each item that has references."""
        rows = enumerate(zip(self.items, answers, strict=True))
        return [(k, max(rouge_l(a.text, r) for r in item.references)) for k, (item, a) in rows if item.references]

    def _figures(self, answers: Sequence[Answer]) -> dict[str, Any]:
        groups, units = self._groups(), [item.unit for item in self.items]
        rouge = self._rouge(answers)
        found: dict[str, Any] = {
            "rouge_l": self._mean(rouge),
            "groups": {
                group: self._mean([row for row in rouge if groups[row[0]] == group]) for group in dict.fromkeys(groups)
            }
            if rouge
            else {},
        }
        for name, values in (
            ("empty", [float(not a.text.strip()) for a in answers]),
            ("cut", [float(a.cut) for a in answers]),
            ("speaks_for_others", [float(a.guarded) for a in answers]),
        ):
            figure = estimate(values, units, self.flags.seed, equal_shares(groups), is_rate=True)
            found[name] = figure.as_json() if figure else None
        return found

    def _mean(self, rows: Sequence[tuple[int, float]], is_rate: bool = True) -> dict[str, Any] | None:
        groups, units = self._groups(), [self.items[k].unit for k, _ in rows]
        shares = equal_shares([groups[k] for k, _ in rows])
        figure = estimate([value for _, value in rows], units, self.flags.seed, shares, is_rate=is_rate)
        return figure.as_json() if figure else None

    def _difference(self) -> dict[str, Any] | None:
        tuned, base = (self._rouge(self.answers[side]) for side in ("tuned", "base"))
        values = difference([value for _, value in tuned], [value for _, value in base])
        return self._mean([(k, value) for (k, _), value in zip(tuned, values, strict=True)], is_rate=False)
