"""What a model says when it plays: the parts of an evaluation that are made of replies.

    playing = Playing(material, side, player, kept, threads=8, report=report)
    playing.voice()["voice"]["as is"]["all"]          # figures; `playing.own` are the replies themselves

Used by `evaluation.py`, once for the base with the persona prompt and once for the tuned model.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mrp.cast import OTHER
from mrp.dialogue import Turn
from mrp.evaluate.asking import Answer, Ask, answer_all, ask_line, ask_turns, to_answer
from mrp.evaluate.drift import drift_figures, hold_talks
from mrp.evaluate.generation import generation_figures
from mrp.evaluate.kept import Kept
from mrp.evaluate.lines import Line, by_character, spread
from mrp.evaluate.lore import lore_figures, lore_questions
from mrp.evaluate.material import Material
from mrp.evaluate.questions import probes, question_figures
from mrp.evaluate.scenes import play_scene, scene_figures, scene_key, scene_plans
from mrp.evaluate.voice import Said, rows_of, signature_rates, swapped_figures, voice_figures
from mrp.evaluate.words import words
from mrp.play.reply import Player
from mrp.report import Reporter

if TYPE_CHECKING:
    from mrp.evaluate.sides import Side


class Playing:
    """A side at play. Each method asks for what its part needs and returns the figures under their names."""

    def __init__(
        self, material: Material, side: Side, player: Player, kept: Kept, threads: int, report: Reporter
    ) -> None:
        self.material, self.side, self.player, self.kept = material, side, player, kept
        self.threads, self.report = threads, report
        self.cast, self.counts, self.seed = material.cast, material.counts, material.seed
        self.own: list[Answer] = []  # of `voice`: the replies in the places of held-out lines,
        self.own_lines: list[Line] = []  # and those lines

    def _answer(self, asks: Sequence[Ask], label: str) -> list[Answer]:
        done, total = itertools.count(1), to_answer(self.player, self.side.name, asks, self.kept)
        with self.report.progress(f"{label}, {self.side.id}", total, "replies") as update:
            return self._ask(asks, lambda: update(next(done)))

    def _ask(self, asks: Sequence[Ask], told: Any) -> list[Answer]:
        return answer_all(self.player, self.side.name, asks, self.kept, self.threads, told)

    def voice(self) -> dict[str, Any]:
        """Replies in the place of held-out lines: under the own identity, and told to be another."""
        voices = self.material.voices
        lines = [
            line for own in self.material.held_by.values() for line in _repeated(own, self.counts.replies, self.seed)
        ]
        asks = [ask_line(self.player, line, line.character, self.seed, number) for number, line in enumerate(lines)]
        own = self._answer(asks, "replies")
        self.own, self.own_lines = own, lines
        said = _said(asks, own)
        scenes = [line for line in self.material.held if line.question]
        told = self._swaps(scenes)
        swapped_asks = [ask_line(self.player, line, who, self.seed) for line, who in told]
        swapped = self._answer(swapped_asks, "told to be another")
        pretended = _said(swapped_asks, swapped)
        real_words = {
            who: sum(len(words(line.text)) for line in mine) / len(mine)
            for who, mine in by_character(self.material.train, self.cast).items()
            if mine
        }
        characters, units = [one.character for one in said], [one.unit for one in said]
        return {
            "voice": voice_figures(voices, said, self.seed, self.material.real) | {"replies": rows_of(voices, said)},
            "signature_rates": signature_rates(voices, said),
            "swapped": swapped_figures(voices, pretended, [line.character for line, _ in told], self.seed)
            | {"replies": rows_of(voices, pretended)},
            "generation": generation_figures(own, characters, units, real_words, self.seed),
        }

    def _swaps(self, scenes: Sequence[Line]) -> list[tuple[Line, str]]:
        """For each character the same number of scenes of others, in which it shall speak."""
        told = []
        for who in self.material.ids:
            others = [line for line in scenes if line.character != who]
            told += [(line, who) for line in spread(others, self.counts.swapped, self.seed)]
        return told

    def questions(self) -> dict[str, Any]:
        """Who they are."""
        m = self.material
        asked = [p for who in m.ids for p in probes(self.cast, who, m.languages, self.counts.questions)]
        asks = [self._alone(p.character, p.question, f"{p.character} {p.question}") for p in asked]
        answers = [answer.text for answer in self._answer(asks, "who they are")]
        return {"questions": question_figures(self.cast, asked, answers, self.seed)}

    def _alone(self, character: str, question: str, unit: str) -> Ask:
        """A question of somebody unknown, as the first line of a conversation."""
        return ask_turns(self.player, character, [Turn(OTHER, question)], unit, self.seed)

    def lore(self) -> dict[str, Any]:
        """What they know of their lore."""
        questions = lore_questions(self.cast)
        asks = [self._alone(q.character, q.question, q.question) for q in questions]
        answers = self._answer(asks, "lore") if asks else []
        return {"lore": lore_figures(questions, [a.text for a in answers], self.seed)}

    def drift(self) -> dict[str, Any]:
        """Whether they stay themselves in a long conversation; its questions are held-out ones, then trained ones."""
        asked = [line for line in spread(self.material.held, len(self.material.held), self.seed) if line.question]
        asked += [line for line in spread(self.material.train, 3 * self.counts.drift_turns, self.seed) if line.question]
        questions = list(dict.fromkeys(line.question for line in asked))[: self.counts.drift_turns]
        if not questions:
            return {"drift": None}
        characters, turns = self.material.ids[: self.counts.drift_characters], self.counts.drift_turns
        done = itertools.count(1)
        with self.report.progress(f"{turns} turns, {self.side.id}", len(characters) * (turns + 1), "replies") as update:

            def answer(asks: Sequence[Ask]) -> list[Answer]:
                return self._ask(asks, lambda: update(next(done)))

            talks = hold_talks(self.player, characters, questions, turns, self.seed, answer)
        return {"drift": drift_figures(talks, self.material.voices, self.cast, self.seed)}

    def scenes(self) -> dict[str, Any]:
        """Scenes of several: who gets to speak, and who speaks for others."""
        plans = scene_plans(self.cast, self.counts.scenes, self.counts.scene_lines, self.seed)
        due = sum(scene_key(self.player, self.side.name, plan) not in self.kept for plan in plans)
        played, done = [], 0
        with self.report.progress(f"scenes, {self.side.id}", due, "scenes") as update:
            for plan in plans:
                is_new = scene_key(self.player, self.side.name, plan) not in self.kept
                played.append(play_scene(self.player, self.side.name, plan, self.kept))
                if is_new:
                    done += 1
                    update(done)
        return {"scenes": scene_figures(plans, played, self.material.voices, self.cast, self.seed)}


def _said(asks: Sequence[Ask], answers: Sequence[Answer]) -> list[Said]:
    return [Said(ask.character, answer.text, ask.unit) for ask, answer in zip(asks, answers, strict=True)]


def _repeated(lines: Sequence[Line], count: int, seed: int) -> list[Line]:
    """`count` places to answer: each line once, then all again (with other seeds) as often as it takes."""
    ordered = spread(lines, len(lines), seed)
    return [ordered[k % len(ordered)] for k in range(count)] if ordered else []
