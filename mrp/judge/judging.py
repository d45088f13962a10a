"""All of a judging: what is to be asked, what it would cost, the verdicts, and the figures made of them.

    work = Judging(said, server, kept, ("pairs", "marks"), replies=0, sides=("tuned", "base"), seed=0)
    work.plan()                                   # questions, tokens
    results = work.ask(budget, threads=4)

Used by `command.py`. The same replies, judge and seed give the same results, whatever was kept before.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from mrp.evaluate.kept import Kept
from mrp.judge.agreement import agreement
from mrp.judge.asking import Ruling, ask_all, due, estimate_of
from mrp.judge.budget import Budget
from mrp.judge.marks import mark_figures, mark_questions
from mrp.judge.pairwise import outcome, pair_figures, pair_questions
from mrp.judge.said import Said, some_places
from mrp.judge.server import JudgeServer
from mrp.report import SILENT, Reporter

KINDS = ("pairs", "marks")
SHOWN = 2  # pairs of each character, with what the judge said of them
VERSION = 1


class Judging:
    """The questions about the replies of two sides. Nothing is asked before `ask`."""

    def __init__(
        self,
        said: Said,
        server: JudgeServer,
        kept: Kept,
        kinds: Sequence[str],
        replies: int,
        sides: tuple[str, str],
        seed: int,
    ) -> None:
        self.said, self.server, self.kept, self.sides, self.seed = said, server, kept, sides, seed
        self.kinds = [kind for kind in KINDS if kind in kinds]
        self.places = some_places(said.places, replies)
        self.pairs = pair_questions(said, self.places, sides) if "pairs" in kinds else []
        self.marked = mark_questions(said, self.places, sides) if "marks" in kinds else []
        self.questions = [q for pair in self.pairs for q in pair.questions] + [m.question for m in self.marked]

    def plan(self) -> dict[str, int]:
        """How many questions there are, how many are not answered yet, and about how many tokens these are."""
        asked = due(self.server, self.questions, self.kept)
        tokens_in, tokens_out = estimate_of(asked)
        return {
            "questions": len(self.questions),
            "to_ask": len(asked),
            "tokens_in": tokens_in,
            "tokens_out": tokens_out,
        }

    def ask(self, budget: Budget, threads: int, report: Reporter = SILENT) -> dict[str, Any]:
        """The results, after asking what is not answered yet. Raises what `ask_all` does."""
        done = itertools.count(1)
        with report.progress("judging", self.plan()["to_ask"], "answers") as update:
            told = ask_all(self.server, self.questions, self.kept, budget, threads, lambda: update(next(done)))
        rulings = iter(told)
        of_pairs = [tuple(next(rulings) for _ in pair.questions) for pair in self.pairs]
        of_marks = list(rulings)
        return {
            "version": VERSION,
            "judge": self.server.identity() | {"left_out": sorted(self.server.left_out)},
            "seed": self.seed,
            "sides": list(self.sides),
            "models": self.said.models,
            "characters": [{"id": who, "name": person.name} for who, person in self.said.people.items()],
            "places": len(self.places),
            "pairs": pair_figures(self.pairs, of_pairs, self.seed) if self.pairs else None,
            "marks": mark_figures(self.marked, of_marks, self.sides, self.seed) if self.marked else None,
            "agreement": agreement(self.said, self.pairs, of_pairs, self.marked, of_marks, self.sides, self.seed),
            "answers": _counted(told),
            "samples": self._samples(of_pairs),
        }

    def _samples(self, rulings: Sequence[Sequence[Ruling]]) -> list[dict[str, Any]]:
        """Some pairs, with the first answer of the judge to each order."""
        shown: dict[str, int] = {}
        found = []
        for pair, own in zip(self.pairs, rulings, strict=True):
            who, result = pair.place.character, outcome(own)
            if not own or result is None or shown.get(who, 0) == SHOWN:
                continue
            shown[who] = shown.get(who, 0) + 1
            before = pair.place.before
            found.append(
                {"character": who, "question": before[-1][1] if before else "", "outcome": result}
                | {side: pair.place.said[side] for side in self.sides}
                | {"answers": [ruling.answers[-1] for ruling in own]}
            )
        return found


def _counted(rulings: Sequence[Ruling]) -> dict[str, Any]:
    """What became of the questions, and the tokens of the answers that the results are made of."""
    unread = [ruling for ruling in rulings if ruling.why]
    failed = [ruling for ruling in rulings if ruling.failure]
    return {
        "questions": len(rulings),
        "asked_again": sum(len(ruling.answers) > 1 for ruling in rulings),
        "nonsense": len(unread),
        "nonsense_sample": unread[0].answers[-1][:300] if unread else None,
        "failed": len(failed),
        "failure_sample": failed[0].failure if failed else None,
        "tokens_in": sum(ruling.tokens[0] for ruling in rulings),
        "tokens_out": sum(ruling.tokens[1] for ruling in rulings),
    }
