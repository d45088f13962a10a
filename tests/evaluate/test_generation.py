"""What is counted in replies, against hand-computed values; lore; and asking many at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted import CAST, END, TEMPLATE, ScriptedEngine

pytest.importorskip("scipy")

from mrp.cast import Cast, Character, LoreEntry
from mrp.config import ChatOptions
from mrp.dialogue import Turn
from mrp.evaluate.asking import Answer, answer_all, ask_turns
from mrp.evaluate.generation import distinct, generation_figures, repeats_itself
from mrp.evaluate.kept import Kept
from mrp.evaluate.lore import lore_figures, lore_questions, recalled
from mrp.play.engine import Request, Token
from mrp.play.reply import Player


class EchoEngine(ScriptedEngine):
    """Answers with the last word of the prompt's text and the seed, whoever asks when."""

    def __init__(self) -> None:
        super().__init__(TEMPLATE, [])

    def stream(self, request: Request) -> Iterator[Token]:
        self.prompts.append(list(request.ids))
        self.voices.append(request.voice)
        last = TEMPLATE.tokenizer.decode(list(request.ids)).split("user\n")[-1].split("?")[0].split()[-1]
        for token in TEMPLATE.plain.ids(f"{last} {request.sampling.seed}", ""):
            yield Token(token)


def player_of(engine: ScriptedEngine) -> Player:
    return Player(engine, TEMPLATE, CAST, [END], ChatOptions(max_new_tokens=40))


def asks(player: Player, words: list[str]) -> list[object]:
    return [ask_turns(player, "tang", [Turn("other", f"And {word}?")], word, seed=1) for word in words]


def test_many_threads_give_what_one_gives_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    words = [f"w{k}" for k in range(12)]
    found = []
    for threads in (1, 6):
        engine = EchoEngine()
        player = player_of(engine)
        told: list[None] = []
        with Kept(tmp_path / f"{threads}.jsonl") as kept:
            args = (player, "m", asks(player, words), kept, threads)
            found.append(answer_all(*args, lambda told=told: told.append(None)))  # type: ignore[arg-type, misc]
        assert len(told) == 12 and len(engine.prompts) == 12
        assert set(engine.voices) == {"tang"}
    assert found[0] == found[1]
    assert [a.text.split()[0] for a in found[0]] == words
    assert len({a.text.split()[1] for a in found[0]}) == 12  # a seed each
    engine = EchoEngine()
    player = player_of(engine)
    with Kept(tmp_path / "1.jsonl") as kept:
        assert answer_all(player, "m", asks(player, words), kept, 2) == found[0]  # type: ignore[arg-type]
        assert engine.prompts == []
        answer_all(player, "another model", asks(player, words[:2]), kept, 2)  # type: ignore[arg-type]
        assert len(engine.prompts) == 2


def test_figures_of_replies_against_hand_computed_values() -> None:
    answers = [
        Answer("one two three four", 4, False, False),
        Answer("", 0, False, True),
        Answer("a b c d a b c d a b c d", 12, True, False),
        Answer("As an AI language model, I cannot.", 8, False, False),
    ]
    found = generation_figures(answers, ["tang", "tang", "wukong", "wukong"], list("abcd"), {"tang": 2, "wukong": 6}, 0)
    tang, wukong, everybody = found["characters"]["tang"], found["characters"]["wukong"], found["all"]
    assert tang["empty"]["value"] == tang["speaks_for_others"]["value"] == 0.5
    assert wukong["repeats"]["value"] == 0.5 and wukong["stops"]["value"] == 0.5
    assert wukong["disclaims"]["value"] == 0.5 and everybody["disclaims"]["value"] == 0.25
    assert tang["length"]["value"] == (4 / 2 + 0) / 2
    assert wukong["length"]["value"] == pytest.approx((12 / 6 + 7 / 6) / 2, abs=1e-6)
    assert tang["distinct_1"] == 1 and everybody["empty"]["n"] == 4


def test_repetition_and_variety() -> None:
    assert repeats_itself("ha ha ha ha ha ha") and not repeats_itself("no no no, not again, my friend")
    assert distinct(["a b a b"], 1) == 0.5 and distinct(["a b a b"], 2) == pytest.approx(2 / 3, abs=1e-6)
    assert distinct([], 1) is None and distinct(["a"], 2) is None


LORE = Cast(
    characters=[
        Character(id="a", name="Ann", lore=[LoreEntry(keys=["staff"], text="Ann's staff is iron and grows tall.")]),
        Character(id="b", name="Bob", lore=[LoreEntry(keys=["rake"], text="Bob fights with a nine-toothed rake.")]),
    ]
)


def test_lore_is_recalled_in_words_that_the_question_does_not_give() -> None:
    questions = lore_questions(LORE)
    assert [q.character for q in questions] == ["a", "b"]
    assert "staff" in questions[0].question
    assert questions[0].facts >= {"iron", "grows", "tall"} and not questions[0].facts & {"staff", "ann", "is", "and"}
    assert recalled(frozenset({"iron", "tall"}), "It is IRON.") == 0.5


def test_lore_stands_beside_what_chance_gives() -> None:
    questions = lore_questions(LORE)
    known = lore_figures(questions, ["iron, grows tall", "fights nine toothed"], seed=0)
    mixed_up = lore_figures(questions, ["fights nine toothed", "iron, grows tall"], seed=0)
    assert known and mixed_up
    assert known["gain"]["value"] > 0.6 and mixed_up["gain"]["value"] < -0.6
    assert lore_figures([], [], seed=0) is None
